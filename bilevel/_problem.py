"""A bi-level problem: two losses with the same arguments, `loss(outer, inner, data) -> scalar`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _check, _tree
from bilevel._describe import settings
from bilevel._hidden_state import check_no_hidden_state
from bilevel._tree import PyTree

# Of a scalar, or of `(scalar, Aux)`.
Loss = Callable[[PyTree, PyTree, PyTree], Any]


class Aux(NamedTuple):
    """What a loss computes beside its value: `return value, Aux(...)`.

    Attributes:
        state: the model's state after this call, like `inner.state` (see `Stateful`): the inner
            loss alone may return one. None: there is no state.
        metrics: what a person wants to see, e.g. `{"accuracy": accuracy}`: any pytree of arrays.
            It comes out in `info.metrics`; its scalars are what `fit` writes down.
    """

    state: PyTree = None
    metrics: PyTree = None


class Stateful(NamedTuple):
    """An inner variable with a state of the model beside it, in the place of `inner`.

    For statistics of BatchNorm, counters, spectral norms: what a pass through the model moves and
    no gradient does. Losses get it as their second argument. The inner loss returns
    `value, Aux(state=new_state)`, and the new state takes the place of the old one at each inner
    step. Optimizers, adjoints and linear solves see `variable` alone.

    Attributes:
        variable: a pytree of floating arrays, what the optimizer moves.
        state: a pytree of arrays, integers and keys too.
    """

    variable: PyTree
    state: PyTree


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
    are pytrees of floating arrays of any shape. A loss may also return `(scalar, Aux(...))`, with
    metrics and, where `inner` is a `Stateful`, the model's new state; `hypergradient` and
    `DoubleLoop` take such losses as they are, all other algorithms in `WithAux`.

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
    if isinstance(tree, Stateful):
        raise TypeError(
            f"`{name}` is a `Stateful`, and this method moves a plain variable. Wrap the algorithm:"
            " `WithAux(lambda problem: SOBA(problem, ...), problem)`; or take `DoubleLoop` with a"
            " `Minimize`, which carry the state themselves."
        )
    check_no_hidden_state(name, tree)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise TypeError(f"`{name}` has no array leaves, so there is nothing to optimise: {tree!r}.")
    for path, leaf in leaves:
        if not _tree.is_differentiable(leaf):
            raise TypeError(
                f"`{name}` must hold floating arrays only, got {_tree.describe(leaf)} at"
                f" `{name}{jax.tree_util.keystr(path)}`. Cast it to a float if it is a parameter;"
                " move it to the batch if it is data or a random key (`sampling.minibatches(...,"
                " with_key=True)` draws one for each step), or to the state of a `Stateful` if the"
                " model moves it; for a module with other leaves split it once,"
                " e.g. `params, static = eqx.partition(module, eqx.is_inexact_array)`, and combine"
                " the two inside the loss."
            )


def parse(name: str, result: Any) -> tuple[Any, Aux]:
    """The value and the `Aux` of what a loss returned; a TypeError if it is something else."""
    if not isinstance(result, tuple):
        return result, Aux()
    if len(result) != 2 or not isinstance(result[1], Aux):
        parts = ", ".join(map(_tree.describe, result))
        raise TypeError(
            f"`{name}` must return a scalar or `(scalar, Aux)`, got a tuple ({parts}). Write"
            " `return value, bilevel.Aux(metrics={...})`, or `bilevel.Aux(state=...)` for a state"
            " of the model."
        )
    return result


def check_moved_state(name: str, aux: Aux, inner: PyTree) -> None:
    """Raise an error unless it returned a state like that of `inner`, or none if it has none."""
    if isinstance(inner, Stateful):
        if aux.state is None:
            raise TypeError(
                f"`{name}` got a `Stateful` and must return the model's state after it: write"
                " `return value, bilevel.Aux(state=...)`, `state=inner.state` if it does not move."
            )
        check_alike(f"the state that `{name}` returns", aux.state, "inner.state", inner.state)
    elif aux.state is not None:
        raise TypeError(
            f"`{name}` returns a state, and `inner` has none to replace: give"
            " `bilevel.Stateful(variable, state)` as the inner variable."
        )


def check_scalar(name: str, loss: Loss, outer: PyTree, inner: PyTree, data: PyTree) -> None:
    """Raise a TypeError unless `loss` returns one floating scalar alone for these arguments."""
    _refuse_aux(name, _aux_shape(name, loss, outer, inner, data))


def _aux_shape(name: str, loss: Loss, outer: PyTree, inner: PyTree, data: PyTree) -> Aux | None:
    """Raise a TypeError unless `loss` returns one floating scalar, with or without an `Aux`.

    Returns:
        The shapes and dtypes of its `Aux`; None where it returns the value alone.
    """
    try:
        result = jax.eval_shape(loss, outer, inner, data)
    except Exception as error:  # whatever a user's function may raise
        arguments = {"outer": outer, "inner": inner, "data": data}
        described = "; ".join(_tree.describe_leaves(*item) for item in arguments.items())
        level = name.removesuffix("_loss")
        forgotten = f" Is the data missing? Write `Batch({level}=...)`." if data is None else ""
        raise TypeError(
            f"`{name}` does not work for its arguments (outer, inner, data): {described}."
            f"{forgotten} It raised {type(error).__name__}: {error}"
        ) from error
    value, aux = parse(name, result)
    is_scalar = isinstance(value, jax.ShapeDtypeStruct) and value.shape == ()
    if not (is_scalar and jnp.issubdtype(value.dtype, jnp.floating)):
        raise TypeError(
            f"`{name}` must return one floating scalar, got {_tree.describe(value)}."
            " Take a mean or a sum of per-example losses; what else it computes goes into"
            " `return value, bilevel.Aux(metrics={...})`."
        )
    return aux if isinstance(result, tuple) else None


def check_problem(problem: BilevelProblem, outer: PyTree, inner: PyTree, batch: Batch) -> None:
    """Check all that can be checked before any computing: types, structures, scalar losses."""
    check_variable("inner", inner)
    auxes = check_problem_with_aux(problem, outer, inner, batch)
    for name, aux in zip(("inner_loss", "outer_loss"), auxes, strict=True):
        _refuse_aux(name, aux)


def _refuse_aux(name: str, aux: Aux | None) -> None:
    if aux is not None:
        raise TypeError(
            f"`{name}` returns an `Aux`, for which this method has no place. Wrap the algorithm,"
            " `WithAux(lambda problem: SOBA(problem, ...), problem)`, or return the value alone."
        )


def check_problem_with_aux(
    problem: BilevelProblem, outer: PyTree, inner: PyTree, batch: Batch
) -> tuple[Aux | None, Aux | None]:
    """`check_problem` where losses may return an `Aux` and `inner` may be a `Stateful`.

    Returns:
        The shapes and dtypes of the `Aux` of the inner and of the outer loss; None for a loss that
        returns its value alone.
    """
    check_variable("outer", outer)
    if isinstance(inner, Stateful):
        check_variable("inner.variable", inner.variable)
    else:
        check_variable("inner", inner)
    if not isinstance(batch, Batch):
        raise TypeError(
            f"`batch` must be a `bilevel.Batch`, got {type(batch).__name__}."
            " Write `Batch(inner=..., outer=...)`: each loss sees its own field."
        )
    inner_aux = _aux_shape("inner_loss", problem.inner_loss, outer, inner, batch.inner)
    check_moved_state("inner_loss", inner_aux or Aux(), inner)
    outer_aux = _aux_shape("outer_loss", problem.outer_loss, outer, inner, batch.outer)
    if outer_aux is not None and outer_aux.state is not None:
        raise TypeError(
            "`outer_loss` returns a state, but only the inner loss moves the model's state: write"
            " `return value, bilevel.Aux(metrics=...)`, or the value alone."
        )
    return inner_aux, outer_aux


def check_alike(name: str, tree: PyTree, expected_name: str, expected: PyTree) -> None:
    """Raise a ValueError that names the first leaf whose path, shape or dtype differs."""
    got, want = (dict(jax.tree_util.tree_leaves_with_path(t)) for t in (tree, expected))
    for path in [*want, *got]:
        if path in got and path in want and _signature(got[path]) == _signature(want[path]):
            continue
        there, here = (_tree.describe(t[path]) if path in t else "nothing" for t in (got, want))
        raise ValueError(
            f"`{name}` must have the structure, shapes and dtypes of `{expected_name}`; at"
            f" `{name}{jax.tree_util.keystr(path)}` got {there}, expected {here}."
        )


def _signature(leaf: Any) -> tuple[Any, ...]:
    return jnp.shape(leaf), jnp.result_type(leaf)
