"""The box section `{lower <= x <= upper, <weights, x> = total}`, which other sets are cases of.

The projection is `x = clip(v - mu w, lower, upper)` with the mu at which the total is right: the
root of a function that falls piecewise linearly. Newton's method inside a bracket finds the exact
piece in a handful of O(n) passes; no sort.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Section(NamedTuple):
    """A point and a set, all of one dtype.

    Attributes:
        values: v, `[n]`.
        weights: w, `[n]` or a scalar.
        lower: `[n]` or a scalar; -inf for none.
        upper: `[n]` or a scalar; inf for none.
        total: scalar.
    """

    values: jax.Array
    weights: jax.Array
    lower: jax.Array
    upper: jax.Array
    total: jax.Array


def box_section(section: Section) -> jax.Array:
    """The projection `[n]`; all NaN if an entry is NaN, a bound is crossed or the set is empty."""
    size = jnp.max(jnp.abs(jax.lax.stop_gradient(section.weights)), initial=0.0)
    # A power of two, so that no weight is rounded.
    size = jnp.where((size > 0) & (size < jnp.inf), jnp.ldexp(1.0, jnp.frexp(size)[1]), 1.0)
    size = size.astype(section.values.dtype)
    section = section._replace(weights=section.weights / size, total=section.total / size)
    return differentiable(_solve(jax.lax.stop_gradient(section)), section)


def simplex(values: jax.Array, total: jax.Array) -> jax.Array:
    """The projection of a vector of at least one entry onto `{x >= 0, sum x = total}`."""
    # Only entries within `total` of the largest can be above 0. In units of `total`, counted from
    # the largest, neither huge nor tiny numbers are left, and the gaps of close ones are exact.
    fixed, unit = jax.lax.stop_gradient((values, total))
    gaps = jnp.maximum((fixed - jnp.max(fixed)) / unit, -1.0)
    one = jnp.ones((), values.dtype)
    scaled = Section(gaps, one, 0 * one, jnp.inf * one, one)
    found = unit * jnp.clip(_shifted(scaled), 0.0, 1.0)
    return differentiable(found, Section(values, one, 0 * one, jnp.inf * one, total))


def differentiable(found: jax.Array, section: Section) -> jax.Array:
    """`found`, a projection known by value, with its derivatives of every order.

    Entries strictly between their bounds move, those on a bound stay. Where none moves, the
    derivative in the point is 0 and that in the total is one-sided, from above: it belongs to the
    entries that are the next to leave their bounds. At the largest total it is from below.

    No `custom_jvp`: within a scan JAX 0.10 drops it where the value of a `value_and_grad` is
    differentiated, without a word. Given which entries are free, the projection is a formula.
    """
    v, w, lower, upper, total = section
    x = jax.lax.stop_gradient(found)
    free = (x > lower) & (x < upper)
    mover = free & (w != 0)
    mover = jnp.where(jnp.any(mover), mover, _next(x, jax.lax.stop_gradient(section)))
    square = jnp.sum(jnp.where(mover, w * w, 0.0))
    # A mover on a bound rests there, but for its share of a changed total.
    base = jnp.where(free, v, jnp.where(x <= lower, lower, upper))
    gap = jnp.sum(w * base) - total
    moved = base - jnp.where(mover, w, 0.0) * (gap / jnp.where(square > 0, square, 1.0))
    return x + (moved - jax.lax.stop_gradient(moved))


def _next(x: jax.Array, section: Section) -> jax.Array:
    """Which entries leave their bounds first as the total grows, or else as it falls."""
    rising, falling = _breaks(section)
    grows = jnp.where(section.weights > 0, x < section.upper, x > section.lower)
    grows &= section.weights != 0
    up = jnp.where(grows, rising, -jnp.inf)
    down = jnp.where((section.weights != 0) & ~grows, falling, jnp.inf)
    return jnp.where(jnp.any(grows), grows & (up == jnp.max(up)), down == jnp.min(down))


def _breaks(section: Section) -> tuple[jax.Array, jax.Array]:
    """The two mu of every entry: it leaves its bound as mu falls below one, rises above other."""
    v, w, lower, upper, _ = section
    divisor = jnp.where(w == 0, 1.0, w)
    low, high = (v - lower) / divisor, (v - upper) / divisor
    low, high = (jnp.where(w == 0, jnp.inf, mu) for mu in (low, high))
    return jnp.where(w > 0, low, high), jnp.where(w > 0, high, low)


def _solve(section: Section) -> jax.Array:
    v, w, lower, upper, total = section
    clipped = jnp.clip(v, lower, upper)
    fixed = (w == 0) | jnp.isinf(v)  # whatever mu is
    least_at = jnp.where(fixed, clipped, jnp.where(w > 0, lower, upper))
    most_at = jnp.where(fixed, clipped, jnp.where(w > 0, upper, lower))
    product = lambda x: jnp.where(w == 0, 0.0, w * x)
    least, most = jnp.sum(product(least_at)), jnp.sum(product(most_at))
    slack = 16 * jnp.finfo(v.dtype).eps
    few = slack * jnp.sum(jnp.abs(product(least_at)))
    many = slack * jnp.sum(jnp.abs(product(most_at)))
    feasible = (total >= least - few) & (total <= most + many) & jnp.all(lower <= upper)
    bounded = section._replace(total=jnp.clip(total, least, most))
    x = jnp.clip(_shifted(bounded), lower, upper)
    x = jnp.where(total <= least, least_at, jnp.where(total >= most, most_at, x))
    return jnp.where(feasible & ~jnp.any(jnp.isnan(v)), x, jnp.nan)


def _shifted(section: Section) -> jax.Array:
    """`v - mu w`. A second pass starts where the first ended, so that large values stay exact.

    Values around 1e8 in float32 are spaced 8 apart, far wider than a unit interval.
    """
    # A loop, since two copies of the search take twice as long to compile.
    again = lambda _, v: v - section.weights * _multiplier(section._replace(values=v))
    return jax.lax.fori_loop(0, 2, again, section.values)


def _multiplier(section: Section) -> jax.Array:
    """The mu where `<w, clip(v - mu w, lower, upper)>`, which falls with mu, meets the total."""
    v, w, lower, upper, total = section
    eps = jnp.finfo(v.dtype).eps

    def evaluate(mu: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        shifted = v - mu * w
        free = (shifted > lower) & (shifted < upper)
        product = jnp.where(w == 0, 0.0, w * jnp.clip(shifted, lower, upper))
        # Summed apart, the entries on bounds that are whole numbers leave no rounding.
        bound, loose = jnp.sum(jnp.where(free, 0.0, product)), jnp.where(free, product, 0.0)
        noise = eps * (jnp.abs(total) + jnp.sum(jnp.abs(product)))
        slope = jnp.sum(jnp.where(free, w * w, 0.0))
        return (bound - total) + jnp.sum(loose), slope, noise

    def step(state: Any) -> Any:
        low, high, mu, last, _ = state
        excess, slope, noise = evaluate(mu)
        low, high = jnp.where(excess >= 0, mu, low), jnp.where(excess <= 0, mu, high)
        move = excess / jnp.where(slope > 0, slope, 1.0)
        newton, middle = mu + move, low + (high - low) / 2
        # Steps that do not halve could crawl from piece to piece: halve the bracket in their place.
        good = (slope > 0) & (newton > low) & (newton < high) & (2 * jnp.abs(move) < last)
        candidate = jnp.where(good, newton, middle)
        moves = (candidate > low) & (candidate < high) & (jnp.abs(excess) > noise)
        return low, high, jnp.where(moves, candidate, mu), jnp.abs(candidate - mu), ~moves

    low, high, at_low, at_high = _bracket(section, lambda mu: evaluate(mu)[0])
    middle = low + (high - low) / 2
    start = jnp.where(at_low, low, jnp.where(at_high, high, middle))
    state = (low, high, start, jnp.full_like(low, jnp.inf), at_low | at_high)
    return jax.lax.while_loop(lambda s: ~s[4], step, state)[2]


def _bracket(section: Section, excess: Any) -> tuple[jax.Array, ...]:
    """The outermost finite breakpoints, and whether one of them is the root.

    Where entries without a bound move beyond a breakpoint, the end lies out there, past the root.
    """
    _, w, lower, upper, _ = section
    breaks = jnp.stack([jnp.broadcast_to(b, section.values.shape) for b in _breaks(section)])
    proper = ~jnp.isinf(breaks)
    low = jnp.min(jnp.where(proper, breaks, jnp.inf))
    high = jnp.max(jnp.where(proper, breaks, -jnp.inf))
    low, high = jnp.where(jnp.isinf(low), 0.0, low), jnp.where(jnp.isinf(high), 0.0, high)
    no_upper, no_lower = upper == jnp.inf, lower == -jnp.inf
    ray = lambda open_end: jnp.sum(jnp.where(open_end, w * w, jnp.zeros_like(section.values)))
    left = ray(((w > 0) & no_upper) | ((w < 0) & no_lower))
    right = ray(((w > 0) & no_lower) | ((w < 0) & no_upper))
    first, last = excess(low), excess(high)
    below = jnp.maximum(-first, 0.0) / jnp.where(left > 0, left, jnp.inf)
    above = jnp.maximum(last, 0.0) / jnp.where(right > 0, right, jnp.inf)
    at_low = (first == 0) | ((first < 0) & (left == 0))
    at_high = (last == 0) | ((last > 0) & (right == 0))
    return low - 2 * below, high + 2 * above, at_low, at_high
