"""Pytree arithmetic that `optax.tree` lacks: safe norms, hoisted closures, split leaves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np

PyTree = Any


def vdot(left: PyTree, right: PyTree) -> jax.Array:
    """Inner product over all leaves, accumulated in float32 at least."""

    def leaf_vdot(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.vdot(a, b, preferred_element_type=widest(a, b))

    products = jax.tree.leaves(jax.tree.map(leaf_vdot, left, right))
    dtype = widest(*products)
    return sum((p.astype(dtype) for p in products), start=jnp.zeros((), dtype))


def widest(*arrays: Any) -> Any:
    """The widest floating dtype among the arrays, float32 at least.

    Not `jnp.promote_types`, which `jax_numpy_dtype_promotion="strict"` forbids.
    """
    floating = (d for d in map(jnp.result_type, arrays) if jnp.issubdtype(d, jnp.floating))
    return max([jnp.dtype(jnp.float32), *floating], key=lambda d: jnp.finfo(d).bits)


def norm(tree: PyTree) -> jax.Array:
    """Euclidean norm over all leaves that neither overflows nor underflows.

    Scaling by the largest magnitude first keeps a float32 vector of norm 1e-25,
    whose squares are all zero, from looking like zero.
    """
    largest = max_abs(tree)
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    scaled = jax.tree.map(lambda a: a / scale.astype(a.dtype), tree)
    return scale * jnp.sqrt(vdot(scaled, scaled))


def max_abs(tree: PyTree) -> jax.Array:
    """Largest magnitude over all leaves; 0 for an empty tree, NaN where any entry is NaN."""
    leaves = [jnp.max(jnp.abs(a), initial=0.0) for a in jax.tree.leaves(tree)]
    dtype = widest(*leaves)
    return jnp.max(jnp.stack([jnp.zeros((), dtype), *(a.astype(dtype) for a in leaves)]))


def add_scaled(tree: PyTree, scale: jax.Array | float, other: PyTree) -> PyTree:
    """`tree + scale * other`, each leaf kept in its own dtype."""
    return jax.tree.map(lambda a, b: a + jnp.asarray(scale, a.dtype) * b, tree, other)


def add(tree: PyTree, other: PyTree) -> PyTree:
    """`tree + other`."""
    return jax.tree.map(jnp.add, tree, other)


def subtract(tree: PyTree, other: PyTree) -> PyTree:
    """`tree - other`."""
    return jax.tree.map(jnp.subtract, tree, other)


def scale(factor: jax.Array | float, tree: PyTree) -> PyTree:
    """`factor * tree`, each leaf kept in its own dtype."""
    return jax.tree.map(lambda a: jnp.asarray(factor, a.dtype) * a, tree)


def where(condition: jax.Array, tree: PyTree, other: PyTree) -> PyTree:
    """`tree` where the scalar `condition` holds, `other` elsewhere."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), tree, other)


def all_finite(tree: PyTree) -> jax.Array:
    """Scalar bool: every entry of every floating leaf is finite."""
    # By the largest magnitude, which a norm of the same tree has computed already.
    floating = [a for a in jax.tree.leaves(tree) if is_differentiable(a)]
    return jnp.isfinite(max_abs(floating)) if floating else jnp.bool_(True)


def is_differentiable(leaf: Any) -> bool:
    """Whether a leaf is a floating array (or a Python float), so has a real derivative."""
    if isinstance(leaf, float):
        return True
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def strengthen(tree: PyTree) -> PyTree:
    """Arrays of the same values and dtypes that are not weakly typed.

    A weakly typed state changes its type after one step, and the step compiles again.
    """

    def strong(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        weak = getattr(leaf, "weak_type", False)
        return jax.lax.convert_element_type(leaf, leaf.dtype) if weak else leaf

    return jax.tree.map(strong, tree)


def leading_size(name: str, tree: PyTree) -> int:
    """The common length of the leaves' first axes, at least 1; a ValueError otherwise."""
    sizes = sorted({jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)})
    if len(sizes) != 1 or not sizes[0] or sizes[0][0] == 0:
        raise ValueError(
            f"`{name}` must be a pytree of arrays with a common first axis, got first axes"
            f" {[size[0] if size else 'none' for size in sizes]}."
        )
    return sizes[0][0]


def split_differentiable(tree: PyTree) -> tuple[list[Any], Callable[[list[Any]], PyTree]]:
    """The differentiable leaves of `tree`, and the function that puts others in their place."""
    leaves, structure = jax.tree.flatten(tree)
    positions = [i for i, leaf in enumerate(leaves) if is_differentiable(leaf)]

    def merge(replacements: list[Any]) -> PyTree:
        merged = list(leaves)
        for i, leaf in zip(positions, replacements, strict=True):
            merged[i] = leaf
        return jax.tree.unflatten(structure, merged)

    return [leaves[i] for i in positions], merge


def cotangent_like(tree: PyTree, differentiable: list[Any]) -> PyTree:
    """A cotangent of `tree`: the given ones at its differentiable leaves, `float0` elsewhere."""
    leaves, structure = jax.tree.flatten(tree)
    given = iter(differentiable)
    return jax.tree.unflatten(
        structure,
        [
            next(given) if is_differentiable(a) else np.zeros(jnp.shape(a), jax.dtypes.float0)
            for a in leaves
        ],
    )


def hoist(
    fun: Callable[..., PyTree], *args: PyTree
) -> tuple[Callable[..., PyTree], tuple[Any, ...]]:
    """Turn what `fun` closes over into arguments: `fun(*args) == pure(consts, *args)`.

    `jax.closure_convert` hoists only what looks differentiable, so an integer array of an
    enclosing `vmap` stays behind and leaks; this hoists every array.
    """
    closed, out_shape = jax.make_jaxpr(fun, return_shape=True)(*args)
    out_structure, jaxpr = jax.tree.structure(out_shape), closed.jaxpr

    # Holds the program without its constants, which may be tracers that must not outlive a trace.
    def pure(consts: tuple[Any, ...], *args: PyTree) -> PyTree:
        run = jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(jaxpr, consts))
        return jax.tree.unflatten(out_structure, run(*jax.tree.leaves(args)))

    return pure, tuple(closed.consts)


def describe(leaf: Any) -> str:
    """Short name of a leaf, e.g. `float32[3,4]`; of anything else, its type."""
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    if isinstance(leaf, bool | int | float | str):
        return f"{type(leaf).__name__} {leaf!r}"
    return f"a {type(leaf).__name__}"


def describe_leaves(name: str, tree: PyTree) -> str:
    """The leaves of an argument by their paths, the first dozen of them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        return f"`{name}` is {tree!r}"
    shown = [
        f"`{name}{jax.tree_util.keystr(path)}` is {describe(leaf)}" for path, leaf in leaves[:12]
    ]
    return ", ".join([*shown, f"{len(leaves) - 12} more"] if len(leaves) > 12 else shown)
