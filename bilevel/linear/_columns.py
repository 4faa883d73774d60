"""The matrix of a linear function, by its products with the unit vectors."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp

from bilevel._tree import PyTree


def columns(product: Callable[[PyTree], jax.Array], like: PyTree) -> jax.Array:
    """`[m, n]`, of a linear `product` from pytrees like `like`, of n numbers, to vectors `[m]`.

    All products are taken at once. In `X' (D (X v))` the first of them would be that of X with the
    identity, half of the work, which gives the columns of X: so they are taken as they are. That
    holds wherever a leaf of the vector meets a known array in a product of matrices.
    """
    leaves, structure = jax.tree.flatten(like)
    closed = jax.make_jaxpr(lambda *leaves: product(jax.tree.unflatten(structure, leaves)))(*leaves)
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    sizes = [leaf.size for leaf in leaves]
    total = sum(sizes)
    begins = {v: sum(sizes[:i]) for i, v in enumerate(jaxpr.invars)}
    taken = [e for e in jaxpr.eqns if _meets_known(e, begins, known)]
    rest = [e for e in jaxpr.eqns if all(e is not other for other in taken)]

    made = {}
    for equation in taken:
        left, right = equation.invars
        begin = begins[left if left in begins else right]
        rows = _rows(equation, known[right if left in begins else left], left in begins)
        pad = (begin, total - begin - rows.shape[0])
        made[equation.outvars[0]] = jnp.pad(rows, [pad] + [(0, 0)] * (rows.ndim - 1))
    for var, leaf in zip(jaxpr.invars, leaves, strict=True):
        unit = jnp.eye(total, leaf.size, -begins[var], dtype=leaf.dtype)
        made[var] = unit.reshape(total, *leaf.shape)
    left_over = jaxpr.replace(
        eqns=rest, invars=[*made], debug_info=jaxpr.debug_info.with_unknown_names()
    )
    run = jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(left_over, closed.consts))
    return jax.vmap(lambda *parts: run(*parts)[0], out_axes=1)(*made.values())


def _meets_known(equation: Any, unknown: dict[Any, int], known: dict[Any, Any]) -> bool:
    """Whether it multiplies a leaf of the vector, as it is, by an array that is known."""
    if equation.primitive.name != "dot_general":
        return False
    left, right = equation.invars
    if any(isinstance(v, jex.core.Literal) for v in equation.invars):
        return False
    _, batched = equation.params["dimension_numbers"]
    one = (left in unknown and right in known) or (left in known and right in unknown)
    return one and batched == ((), ())


def _rows(equation: Any, array: jax.Array, leaf_is_left: bool) -> jax.Array:
    """What a product with an array gives for each unit vector of the leaf, along the first axis."""
    contracted, _ = equation.params["dimension_numbers"]
    own, others = contracted if leaf_is_left else contracted[::-1]
    leaf = equation.invars[0 if leaf_is_left else 1].aval
    free = [i for i in range(leaf.ndim) if i not in own]
    apart = [i for i in range(array.ndim) if i not in others]
    # Of the unit vector at (c, r), c in the contracted axes, r in the others: array[c, :] at r.
    array = jnp.transpose(array, (*others, *apart))
    shape, copies = array.shape[: len(own)], [leaf.shape[i] for i in free]
    array = array.reshape(math.prod(shape), 1, 1, -1)
    each = jnp.eye(math.prod(copies), dtype=array.dtype)[None, :, :, None]
    rows = (array * each).reshape(*shape, *copies, math.prod(copies), -1)
    rows = jnp.transpose(
        rows, (*(([*own, *free]).index(i) for i in range(leaf.ndim)), leaf.ndim, leaf.ndim + 1)
    )
    rows = rows if leaf_is_left else jnp.swapaxes(rows, -1, -2)
    out = equation.outvars[0].aval
    return rows.reshape(leaf.size, *out.shape).astype(out.dtype)
