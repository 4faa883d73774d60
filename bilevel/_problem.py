"""A bi-level problem: two losses with the same arguments, `loss(outer, inner, data) -> scalar`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _check, _tree
from bilevel._describe import settings
from bilevel._tree import PyTree

Loss = Callable[[PyTree, PyTree, PyTree], jax.Array]


class Batch(NamedTuple):
    """What each level sees in one step; every field is any pytree, or None if a loss needs no data.

    Attributes:
        inner: third argument of the inner loss.
        outer: third argument of the outer loss.
        linear: separate data for Hessian-vector products, where the theory of a stochastic method
            asks for an independent sample. None: `inner` serves.
    """

    inner: PyTree = None
    outer: PyTree = None
    linear: PyTree = None


@settings
class BilevelProblem:
    """Minimise `outer_loss(x, y*(x))` over x, where `y*(x)` minimises `inner_loss(x, y)` over y.

    Both losses are `loss(outer, inner, data) -> scalar`, pure JAX functions. `outer` and `inner`
    are pytrees of floating arrays of any shape.

    Attributes:
        outer_loss: F, called as `outer_loss(outer, inner, batch.outer)`.
        inner_loss: G, called as `inner_loss(outer, inner, batch.inner)`.

    Raises:
        TypeError: a loss is not callable.
    """

    outer_loss: Loss
    inner_loss: Loss

    def __post_init__(self) -> None:
        for name in ("outer_loss", "inner_loss"):
            _check.function(name, getattr(self, name), "`(outer, inner, data) -> scalar`")


def check_is_problem(value: Any) -> None:
    """Raise a TypeError unless `value` is a `BilevelProblem`."""
    if not isinstance(value, BilevelProblem):
        raise TypeError(f"`problem` must be a `BilevelProblem`, got {value!r}.")


def check_variable(name: str, tree: PyTree) -> None:
    """Raise a TypeError that names the first leaf of `tree` with no derivative."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise TypeError(f"`{name}` has no array leaves, so there is nothing to optimise: {tree!r}.")
    for path, leaf in leaves:
        if not _tree.is_differentiable(leaf):
            raise TypeError(
                f"`{name}` must hold floating arrays only, got {_describe(leaf)} at"
                f" `{name}{jax.tree_util.keystr(path)}`. Cast it to a float if it is a parameter;"
                " move it to the batch if it is data; for a module with other leaves split it once,"
                " e.g. `params, static = eqx.partition(module, eqx.is_inexact_array)`, and combine"
                " the two inside the loss."
            )


def check_scalar(name: str, loss: Loss, outer: PyTree, inner: PyTree, data: PyTree) -> None:
    """Raise a TypeError unless `loss` returns one floating scalar for these arguments."""
    try:
        result = jax.eval_shape(loss, outer, inner, data)
    except Exception as error:  # whatever a user's function may raise
        arguments = {"outer": outer, "inner": inner, "data": data}
        described = "; ".join(_describe_leaves(*item) for item in arguments.items())
        level = name.removesuffix("_loss")
        forgotten = f" Is the data missing? Write `Batch({level}=...)`." if data is None else ""
        raise TypeError(
            f"`{name}` does not work for its arguments (outer, inner, data): {described}."
            f"{forgotten} It raised {type(error).__name__}: {error}"
        ) from error
    is_scalar = isinstance(result, jax.ShapeDtypeStruct) and result.shape == ()
    if not (is_scalar and jnp.issubdtype(result.dtype, jnp.floating)):
        raise TypeError(
            f"`{name}` must return one floating scalar, got {_describe(result)}."
            " Take a mean or a sum of per-example losses, and return no auxiliary output."
        )


def check_problem(problem: BilevelProblem, outer: PyTree, inner: PyTree, batch: Batch) -> None:
    """Check all that can be checked before any computing: types, structures, scalar losses."""
    check_variable("outer", outer)
    check_variable("inner", inner)
    if not isinstance(batch, Batch):
        raise TypeError(
            f"`batch` must be a `bilevel.Batch`, got {type(batch).__name__}."
            " Write `Batch(inner=..., outer=...)`: each loss sees its own field."
        )
    check_scalar("inner_loss", problem.inner_loss, outer, inner, batch.inner)
    check_scalar("outer_loss", problem.outer_loss, outer, inner, batch.outer)


def check_alike(name: str, tree: PyTree, expected_name: str, expected: PyTree) -> None:
    """Raise a ValueError that names the first leaf whose path, shape or dtype differs."""
    got, want = (dict(jax.tree_util.tree_leaves_with_path(t)) for t in (tree, expected))
    for path in [*want, *got]:
        if path in got and path in want and _signature(got[path]) == _signature(want[path]):
            continue
        there, here = (_describe(t[path]) if path in t else "nothing" for t in (got, want))
        raise ValueError(
            f"`{name}` must have the structure, shapes and dtypes of `{expected_name}`; at"
            f" `{name}{jax.tree_util.keystr(path)}` got {there}, expected {here}."
        )


def _describe_leaves(name: str, tree: PyTree) -> str:
    """The leaves of an argument by their paths, the first dozen of them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        return f"`{name}` is {tree!r}"
    shown = [
        f"`{name}{jax.tree_util.keystr(path)}` is {_describe(leaf)}" for path, leaf in leaves[:12]
    ]
    return ", ".join([*shown, f"{len(leaves) - 12} more"] if len(leaves) > 12 else shown)


def _signature(leaf: Any) -> tuple[Any, ...]:
    return jnp.shape(leaf), jnp.result_type(leaf)


def _describe(leaf: Any) -> str:
    """Short name of a leaf, e.g. `float32[3,4]`; of anything else, its type."""
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    if isinstance(leaf, bool | int | float | str):
        return f"{type(leaf).__name__} {leaf!r}"
    return f"a {type(leaf).__name__}"
