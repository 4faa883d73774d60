"""The projection onto a transport polytope, by Newton's method on its dual."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _vector


def transport(values: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The nearest `[n, m]` to `values` that is at least 0 and has the given sums.

    `rows` `[n]` and `columns` `[m]` are at least 0 and have one total.
    """
    size = jnp.maximum(jnp.max(rows), jnp.max(columns))
    unit = _vector.power_of_two(size)
    fixed = jax.lax.stop_gradient((values / unit, rows / unit, columns / unit))
    shifted, rows_fixed, columns_fixed = fixed
    # Potentials absorb what a row has in common; less is left to round.
    shifted = shifted - jnp.max(shifted, axis=1, keepdims=True)
    found = jnp.maximum(_shifted(shifted, rows_fixed, columns_fixed), 0.0)
    spoiled = jnp.any(jnp.isnan(values)) | jnp.any(jnp.isnan(rows)) | jnp.any(jnp.isnan(columns))
    found = jnp.where(spoiled, jnp.nan, found)
    return unit * _differentiable(found, values / unit, rows / unit, columns / unit)


def _differentiable(
    found: jax.Array, values: jax.Array, rows: jax.Array, columns: jax.Array
) -> jax.Array:
    """`found` with its derivatives: given which entries are above 0, it is a linear formula."""
    support = jax.lax.stop_gradient(found) > 0
    inverse = _pseudo_inverse(_hessian(support, values.dtype))
    kept = jnp.where(support, values, 0.0)
    missed = jnp.concatenate([rows - jnp.sum(kept, axis=1), columns - jnp.sum(kept, axis=0)])
    potentials = jnp.matmul(inverse, missed, precision=jax.lax.Precision.HIGHEST)
    row, column = potentials[: len(rows)], potentials[len(rows) :]
    moved = jnp.where(support, values + row[:, None] + column[None], 0.0)
    return jax.lax.stop_gradient(found) + (moved - jax.lax.stop_gradient(moved))


def _hessian(support: jax.Array, dtype: Any) -> jax.Array:
    """Of the dual, `[n + m, n + m]`; 0 along potentials that cancel within a connected group."""
    edges = support.astype(dtype)
    upper = jnp.concatenate([jnp.diag(jnp.sum(edges, axis=1)), edges], axis=1)
    lower = jnp.concatenate([edges.T, jnp.diag(jnp.sum(edges, axis=0))], axis=1)
    return jnp.concatenate([upper, lower])


def _pseudo_inverse(matrix: jax.Array) -> jax.Array:
    values, basis = jnp.linalg.eigh(matrix)
    cut = len(matrix) * jnp.finfo(matrix.dtype).eps * jnp.max(values)
    inverse = jnp.where(values > cut, 1.0 / jnp.where(values > cut, values, 1.0), 0.0)
    return jnp.matmul(basis * inverse[None], basis.T, precision=jax.lax.Precision.HIGHEST)


class _State(NamedTuple):
    potentials: jax.Array
    best: jax.Array
    least: jax.Array  # the largest missed sum at `best`
    stale: jax.Array  # steps since that fell
    steps: jax.Array


def _shifted(values: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """`V + a 1' + 1 b'`. A second pass starts where the first ended, so that it rounds less."""

    def again(index: Any, values: jax.Array) -> jax.Array:
        potentials = _potentials(values, rows, columns, index == 0)
        return values + potentials[: len(rows), None] + potentials[None, len(rows) :]

    return jax.lax.fori_loop(0, 2, again, values)


def _potentials(values: jax.Array, rows: jax.Array, columns: jax.Array, first: Any) -> jax.Array:
    """Minimises the dual `|max(V + a 1' + 1 b', 0)|^2 / 2 - <rows, a> - <columns, b>`."""
    n, dtype = len(rows), values.dtype
    sums = jnp.concatenate([rows, columns])
    at = lambda p: jnp.maximum(values + p[:n, None] + p[None, n:], 0.0)

    def value_and_slope(p: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = at(p)
        slope = jnp.concatenate([jnp.sum(x, axis=1), jnp.sum(x, axis=0)]) - sums
        return jnp.sum(x * x) / 2 - jnp.vdot(sums, p), slope

    def step(state: _State) -> _State:
        p = state.potentials
        value, slope = value_and_slope(p)
        missed = jnp.max(jnp.abs(slope))
        hessian = _hessian(at(p) > 0, dtype)
        ridge = jnp.finfo(dtype).eps ** 0.75 * len(sums) + 1e-3 * jnp.minimum(missed, 1.0)
        regular = hessian + ridge * jnp.eye(len(sums), dtype=dtype)
        factor = jax.scipy.linalg.cho_factor(regular)
        move = -jax.scipy.linalg.cho_solve(factor, slope)
        promised = jnp.vdot(slope, move)

        def poor(length: jax.Array) -> jax.Array:
            there, slope = value_and_slope(p + length * move)
            falls = there <= value + 1e-4 * length * promised
            return ~falls & (jnp.max(jnp.abs(slope)) > 0.5 * missed) & (length > 1e-6)

        length = jax.lax.while_loop(poor, lambda length: length / 2, jnp.ones((), dtype))
        p = p + length * move
        missed = jnp.max(jnp.abs(value_and_slope(p)[1]))
        better = missed < state.least
        best = jnp.where(better, p, state.best)
        stale = jnp.where(missed < 0.9 * state.least, 0, state.stale + 1)
        return _State(p, best, jnp.where(better, missed, state.least), stale, state.steps + 1)

    # The largest entry of each row alone carries the row's total: no row begins empty.
    start = jnp.where(first, jnp.concatenate([rows, jnp.zeros_like(columns)]), 0.0)
    least = jnp.max(jnp.abs(value_and_slope(start)[1]))
    state = _State(start, start, least, jnp.int32(0), jnp.int32(0))
    unfinished = lambda s: (s.least > 0) & (s.stale < 10) & (s.steps < 200)
    return jax.lax.while_loop(unfinished, step, state).best
