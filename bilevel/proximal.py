"""Proximal operators of non-smooth penalties, for `ProximalGradient(prox=...)`.

Each is a frozen dataclass, callable as `prox(outer, point, step_size) -> point`: the minimiser of
`step_size * penalty(outer, y) + ||y - point||^2 / 2` over y. All are O(n) and exact to rounding at
every scale, in every floating dtype: they compute in float32 at least. A NaN stays NaN.

A strength is a number, an array that broadcasts to each leaf, a pytree with one of them for each
leaf or branch of the inner variable, or a function of the outer variable that returns any of these,
so that it can be learned: `L1(lambda outer: jnp.exp(outer["log_penalty"]))`. A negative strength is
an error where it is known, and makes NaN where it is traced: such a penalty would reward large
entries. A function of your own serves as a proximal operator as well.

Derivatives are those of the piece that a point lies in. A point exactly on a kink counts as set to
zero, with a derivative of 0; a strength of 0 is the identity, with a derivative of 1 even at 0.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel import _check, _vector
from bilevel._describe import settings
from bilevel._problem import PyTree

# A number, an array, a pytree of them, or a function of the outer variable that returns one.
Strength = PyTree | Callable[[PyTree], PyTree]
Prox = Callable[[PyTree, PyTree, float], PyTree]


class _Penalty:
    """Base of the penalties, all of whose settings are strengths."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            _check_strength(field.name, getattr(self, field.name))


@settings
class L1(_Penalty):
    """`penalty * sum |y|`: soft thresholding, the penalty of the lasso.

    Attributes:
        penalty: >= 0; larger sets more entries of the solution to exactly zero, and the derivative
            of those is exactly zero.

    Raises:
        ValueError: `penalty` is negative or, when called, does not fit the point.
        TypeError: `penalty` is no number, array or function; a leaf is no floating array.
    """

    penalty: Strength

    def __call__(self, outer: PyTree, point: PyTree, step_size: float) -> PyTree:
        """The proximal point of a pytree."""
        return _entrywise(_shrink, outer, point, step_size, penalty=self.penalty)


@settings
class ElasticNet(_Penalty):
    """`l1 * sum |y| + l2 * sum y^2 / 2`: soft thresholding, then shrinkage towards zero.

    Attributes:
        l1: >= 0; larger sets more entries to exactly zero.
        l2: >= 0; above 0 the solution is unique, and moves smoothly between changes of support.

    Raises:
        ValueError: `l1` or `l2` is negative or, when called, does not fit the point.
        TypeError: one is no number, array or function; a leaf is no floating array.
    """

    l1: Strength
    l2: Strength

    def __call__(self, outer: PyTree, point: PyTree, step_size: float) -> PyTree:
        """The proximal point of a pytree."""
        prox = lambda values, l1, l2: _shrink(values, l1) / (1 + l2)
        return _entrywise(prox, outer, point, step_size, l1=self.l1, l2=self.l2)


@settings
class NonNegativeL1(_Penalty):
    """`penalty * sum y` over `y >= 0`: the non-negative lasso, for parts, counts and mixtures.

    Attributes:
        penalty: >= 0; 0 is the projection onto `y >= 0`.

    Raises:
        ValueError: `penalty` is negative or, when called, does not fit the point.
        TypeError: `penalty` is no number, array or function; a leaf is no floating array.
    """

    penalty: Strength

    def __call__(self, outer: PyTree, point: PyTree, step_size: float) -> PyTree:
        """The proximal point of a pytree."""
        prox = lambda values, penalty: _positive_part(values - penalty)
        return _entrywise(prox, outer, point, step_size, penalty=self.penalty)


@settings
class NonNegativeRidge(_Penalty):
    """`penalty * sum y^2 / 2` over `y >= 0`: non-negative ridge regression.

    Attributes:
        penalty: >= 0; 0 is the projection onto `y >= 0`.

    Raises:
        ValueError: `penalty` is negative or, when called, does not fit the point.
        TypeError: `penalty` is no number, array or function; a leaf is no floating array.
    """

    penalty: Strength

    def __call__(self, outer: PyTree, point: PyTree, step_size: float) -> PyTree:
        """The proximal point of a pytree."""
        prox = lambda values, penalty: _positive_part(values) / (1 + penalty)
        return _entrywise(prox, outer, point, step_size, penalty=self.penalty)


@settings
class GroupL2(_Penalty):
    """`penalty * sum over rows of ||row||`: the group lasso, which removes whole rows.

    A row is a vector along the last axis of a leaf, so a vector is one group, and a scalar too.
    (Yuan and Lin, J. R. Stat. Soc. B 2006.)

    Attributes:
        penalty: >= 0; larger sets more rows to exactly zero. An array has one entry for each row:
            it broadcasts to the shape of a leaf without its last axis.

    Raises:
        ValueError: `penalty` is negative or, when called, does not fit the rows of the point.
        TypeError: `penalty` is no number, array or function; a leaf is no floating array.
    """

    penalty: Strength

    def __call__(self, outer: PyTree, point: PyTree, step_size: float) -> PyTree:
        """The proximal point of a pytree."""

        def prox(values: jax.Array, penalty: jax.Array) -> jax.Array:
            rows = jnp.atleast_1d(values)
            threshold = penalty.reshape(*rows.shape[:-1], 1)
            return _shorten(rows, _vector.norm(rows, axis=-1), threshold).reshape(values.shape)

        rows = lambda leaf: jnp.shape(leaf)[:-1]
        return _entrywise(prox, outer, point, step_size, rows, penalty=self.penalty)


@settings
class TreeL2(_Penalty):
    """`penalty * ||y||`, the norm over all leaves: the whole variable is one group.

    Attributes:
        penalty: >= 0, one number (for a function: one that returns a scalar).

    Raises:
        ValueError: `penalty` is negative, or no scalar.
        TypeError: `penalty` is no number or function; a leaf is no floating array.
    """

    penalty: Strength

    def __call__(self, outer: PyTree, point: PyTree, step_size: float) -> PyTree:
        """The proximal point of a pytree."""
        _vector.check_floating("point", point)
        length = _vector.tree_norm(point)

        def prox(values: jax.Array, penalty: jax.Array) -> jax.Array:
            return _shorten(values, length.astype(values.dtype), penalty)

        scalar = lambda leaf: ()
        return _entrywise(prox, outer, point, step_size, scalar, penalty=self.penalty)


def _entrywise(
    prox: Callable[..., jax.Array],
    outer: PyTree,
    point: PyTree,
    step_size: float,
    shape: Callable[[PyTree], tuple[int, ...]] = jnp.shape,
    **strengths: Strength,
) -> PyTree:
    """`prox(values, step_size * strength, ...)` of each leaf, strengths spread to `shape(leaf)`."""
    _vector.check_floating("point", point)

    def thresholds(name: str, strength: Strength) -> PyTree:
        value = strength(outer) if callable(strength) else strength
        _check.real_leaves(name, value)
        at_least_zero = lambda s: jnp.where(s >= 0, s, jnp.nan)
        scaled = lambda s: jnp.asarray(step_size, s.dtype) * at_least_zero(s)
        return jax.tree.map(scaled, _vector.spread(name, value, point, shape))

    def one_leaf(leaf: jax.Array, *scaled: jax.Array) -> jax.Array:
        return prox(_vector.lift(leaf), *scaled).astype(jnp.asarray(leaf).dtype)

    return jax.tree.map(one_leaf, point, *(thresholds(n, s) for n, s in strengths.items()))


def _shrink(values: jax.Array, threshold: jax.Array) -> jax.Array:
    removed = (jnp.abs(values) <= threshold) & (threshold > 0)  # neither holds of a NaN
    return jnp.where(removed, 0.0, values - jnp.sign(values) * threshold)


def _shorten(values: jax.Array, length: jax.Array, threshold: jax.Array) -> jax.Array:
    removed = (length <= threshold) & (threshold > 0)
    return jnp.where(removed, 0.0, values - threshold * _vector.unit(values, length))


def _positive_part(values: jax.Array) -> jax.Array:
    return jnp.where(values <= 0, 0.0, values)


def _check_strength(name: str, strength: Strength) -> None:
    if callable(strength):
        _check.function(name, strength, "of the outer variable such as `jnp.exp`")
        return
    for leaf in _check.real_leaves(name, strength):
        if jnp.ndim(leaf) == 0:
            _check.non_negative(name, leaf)
        elif not isinstance(leaf, jax.core.Tracer) and not jnp.all(jnp.asarray(leaf) >= 0):
            raise ValueError(f"`{name}` must hold numbers >= 0, got {strength}.")
