"""Momentum SGD that is run backwards, bit by bit, in place of storing its iterates."""

import fractions
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _check, _tree
from bilevel._describe import settings
from bilevel._problem import Loss
from bilevel._stateful import require_plain, without_aux
from bilevel._tree import PyTree
from bilevel.solvers import _gradient
from bilevel.solvers._smoothness import differentiable_once

# The largest denominator of the momentum; a 32-bit buffer has room for it many times.
_MAX_DENOMINATOR = 256


class _Fixed(NamedTuple):
    """Position and velocity in fixed-point integers, and the bits that the momentum lost."""

    inner: PyTree
    velocity: PyTree
    buffer: PyTree
    overflow: jax.Array


@settings
class ReversibleSGD:
    """SGD with momentum whose unrolled gradient recomputes the iterates by running backwards.

        v <- momentum v + grad_y G(x, y),    y <- y - step_size v

    in fixed-point arithmetic, where every operation but the product with the momentum can be undone
    exactly; that one loses `log2(1 / momentum)` bits of each number and step, which are kept aside
    (0.15 bits at 0.9: a stored iterate's place holds 200 steps). The gradient is that of unrolled
    `Minimize(optax.sgd(step_size, momentum))` up to the fixed-point rounding. Time is that of
    `remat="step"`, memory far less on short horizons; on long ones `remat="binomial"` is the
    simpler choice. (Maclaurin, Duvenaud and Adams, ICML 2015, algorithms 2 and 3; it differs from
    the paper in that the momentum does not damp the gradient, and in that the bits are kept in
    32-bit words, a new one every few hundred steps.)

    Running back is exact only if the gradient comes out the same, bit by bit, in both directions.
    The start that it arrives at is compared with the one that was given; where they differ, every
    gradient is NaN. So is every result where a number leaves the range.

    Attributes:
        step_size: as for SGD, below `2 (1 + momentum) / L`.
        num_steps: inner steps.
        momentum: a fraction in (0, 1) with a denominator up to 256, such as 0.9 or 0.5.
        fraction_bits: resolution `2^-fraction_bits` of y and v. More is finer, and leaves a range
            of `2^(31 - fraction_bits)` (float32 and smaller; 63 in float64). None: 20, or 40 in
            float64.

    Raises:
        ValueError: a setting is out of its range. When its gradient is differentiated again.
    """

    step_size: float
    num_steps: int
    momentum: float = 0.9
    fraction_bits: int | None = None

    def __post_init__(self) -> None:
        _check.positive("step_size", self.step_size)
        _check.positive_integer("num_steps", self.num_steps)
        _check.positive("momentum", self.momentum)
        numerator, denominator = self._ratio
        if not 0 < numerator < denominator or numerator / denominator != self.momentum:
            raise ValueError(
                f"`momentum` must be a fraction in (0, 1) with a denominator up to"
                f" {_MAX_DENOMINATOR}, such as 0.9, got {self.momentum!r}."
            )
        if self.fraction_bits is not None:
            _check.positive_integer("fraction_bits", self.fraction_bits)
            if self.fraction_bits > 60:
                raise ValueError(
                    f"`fraction_bits` must be at most 60, got {self.fraction_bits}: the rest of the"
                    " integer is the range."
                )

    @property
    def _ratio(self) -> tuple[int, int]:
        ratio = fractions.Fraction(self.momentum).limit_denominator(_MAX_DENOMINATOR)
        return ratio.numerator, ratio.denominator

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """Take the steps from `init`; returns a pytree like `init`."""
        require_plain("ReversibleSGD", init)
        loss = without_aux(loss)
        init = _tree.strengthen(init)
        pure, consts = _tree.hoist(
            lambda parameters, y: loss(parameters[0], y, parameters[1]), (outer, data), init
        )
        defined = lambda parameters, y: pure(parameters[0], parameters[1:], y)

        @jax.custom_vjp
        def solve(init: PyTree, parameters: PyTree) -> PyTree:
            return forward(init, parameters)[0]

        def forward(init: PyTree, parameters: PyTree) -> tuple[PyTree, Any]:
            state, buffers = self._run(defined, init, parameters)
            broken = lambda a: jnp.where(state.overflow, jnp.nan, a)
            inner = jax.tree.map(broken, self._real(state.inner, init))
            return inner, (init, parameters, state, buffers)

        def backward(residuals: Any, cotangent: PyTree) -> tuple[PyTree, PyTree]:
            init, parameters, state, buffers = residuals
            pulled = self._run_back(defined, init, parameters, state, buffers, cotangent)
            inner_bar, leaves_bar = differentiable_once(pulled, "ReversibleSGD")
            return inner_bar, _tree.cotangent_like(parameters, leaves_bar)

        solve.defvjp(forward, backward)
        return solve(init, (consts, outer, data))

    def _run(self, loss: Any, init: PyTree, parameters: PyTree) -> tuple[_Fixed, list[PyTree]]:
        """The last state, and the filled buffers of each segment, in order."""
        slope = lambda y: _isolated(jax.grad(lambda y: loss(parameters, y)), y)
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.uint32), init)
        start, overflow = self._fixed(init)
        state = _Fixed(start, jax.tree.map(jnp.zeros_like, start), nothing, overflow)

        def step(state: _Fixed, _: None) -> tuple[_Fixed, None]:
            force, far = self._fixed(slope(self._real(state.inner, init)))
            velocity, buffer = _map2(self._squeeze, state.velocity, state.buffer)
            velocity = jax.tree.map(jnp.add, velocity, force)
            move, further = self._fixed(_tree.scale(self.step_size, self._real(velocity, init)))
            inner = jax.tree.map(jnp.subtract, state.inner, move)
            overflow = state.overflow | far | further | _large((inner, velocity))
            return _Fixed(inner, velocity, buffer, overflow), None

        def segment(length: int, state: _Fixed, _: None) -> tuple[_Fixed, PyTree]:
            state = jax.lax.scan(step, state._replace(buffer=nothing), length=length)[0]
            return state, state.buffer

        buffers = []
        for count, length in self._segments():
            state, filled = jax.lax.scan(functools.partial(segment, length), state, length=count)
            buffers.append(filled)
        return state._replace(buffer=nothing), buffers

    def _run_back(
        self,
        loss: Any,
        init: PyTree,
        parameters: PyTree,
        state: _Fixed,
        buffers: list[PyTree],
        cotangent: PyTree,
    ) -> tuple[PyTree, list[Any]]:
        """Cotangents of the start and of the floating leaves of the parameters."""
        leaves, merge = _tree.split_differentiable(parameters)
        slope = lambda y: _isolated(jax.grad(lambda y: loss(parameters, y)), y)

        def force_at(y: PyTree, leaves: list[Any]) -> PyTree:
            return _gradient.value_and_grad(lambda y: (loss(merge(leaves), y), None), y, "mixed")[1]

        def step(carry: Any, _: None) -> tuple[Any, None]:
            state, inner_bar, velocity_bar, leaves_bar = carry
            move = self._fixed(_tree.scale(self.step_size, self._real(state.velocity, init)))[0]
            inner = jax.tree.map(jnp.add, state.inner, move)
            y = self._real(inner, init)
            velocity = jax.tree.map(jnp.subtract, state.velocity, self._fixed(slope(y))[0])
            velocity, buffer = _map2(self._release, velocity, state.buffer)
            velocity_bar = _tree.add_scaled(velocity_bar, -self.step_size, inner_bar)
            by_inner, by_leaves = jax.vjp(force_at, y, leaves)[1](velocity_bar)
            inner_bar = jax.tree.map(jnp.add, inner_bar, by_inner)
            leaves_bar = jax.tree.map(jnp.add, leaves_bar, by_leaves)
            velocity_bar = _tree.scale(self.momentum, velocity_bar)
            state = _Fixed(inner, velocity, buffer, state.overflow)
            return (state, inner_bar, velocity_bar, leaves_bar), None

        def segment(length: int, carry: Any, filled: PyTree) -> tuple[Any, None]:
            carry = carry[0]._replace(buffer=filled), *carry[1:]
            return jax.lax.scan(step, carry, length=length)[0], None

        zeros = jax.tree.map(jnp.zeros_like, (cotangent, leaves))
        carry = state, cotangent, *zeros
        for (_, length), filled in zip(reversed(self._segments()), reversed(buffers), strict=True):
            carry, _ = jax.lax.scan(functools.partial(segment, length), carry, filled, reverse=True)
        state, inner_bar, _, leaves_bar = carry
        arrived = jax.tree.map(jnp.array_equal, state.inner, self._fixed(init)[0])
        at_rest = jax.tree.map(lambda v: jnp.all(v == 0), state.velocity)
        sound = jnp.all(jnp.stack(jax.tree.leaves((arrived, at_rest)))) & ~state.overflow
        return jax.tree.map(lambda a: jnp.where(sound, a, jnp.nan), (inner_bar, leaves_bar))

    def _segments(self) -> list[tuple[int, int]]:
        """`(count, length)`: as many steps to a segment as fit into a 32-bit buffer."""
        numerator, denominator = self._ratio
        largest, length = 0, 0
        while largest * denominator + denominator - 1 < 2**32:
            largest, length = (largest * denominator + denominator - 1) // numerator, length + 1
        count, rest = divmod(self.num_steps, length)
        return [part for part in ((count, length), (1, rest)) if part[0] and part[1]]

    def _squeeze(self, velocity: jax.Array, buffer: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`velocity * momentum`, with the digit that is lost pushed onto the buffer."""
        numerator, denominator = self._ratio
        buffer = buffer * denominator + (velocity % denominator).astype(jnp.uint32)
        velocity = velocity // denominator
        velocity = velocity * numerator + (buffer % numerator).astype(velocity.dtype)
        return velocity, buffer // numerator

    def _release(self, velocity: jax.Array, buffer: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Undo `_squeeze`."""
        numerator, denominator = self._ratio
        buffer = buffer * numerator + (velocity % numerator).astype(jnp.uint32)
        velocity = velocity // numerator
        velocity = velocity * denominator + (buffer % denominator).astype(velocity.dtype)
        return velocity, buffer // denominator

    def _bits(self, dtype: Any) -> tuple[int, Any]:
        wide = jnp.dtype(dtype).itemsize > 4
        default = 40 if wide else 20
        bits = default if self.fraction_bits is None else self.fraction_bits
        return bits, jnp.int64 if wide else jnp.int32

    def _fixed(self, tree: PyTree) -> tuple[PyTree, jax.Array]:
        """The nearest fixed-point integers, and whether an entry is too large to be one."""

        def convert(a: jax.Array) -> tuple[jax.Array, jax.Array]:
            bits, integer = self._bits(a.dtype)
            scaled = jnp.round(a * 2.0**bits)
            # See `_large`; NaN does not fit either.
            fits = jnp.all(jnp.abs(scaled) < 2.0 ** (8 * jnp.dtype(integer).itemsize - 3))
            return jnp.where(jnp.isfinite(scaled), scaled, 0.0).astype(integer), ~fits

        values, far = _map2(convert, tree)
        return values, jnp.any(jnp.stack(jax.tree.leaves(far)))

    def _real(self, tree: PyTree, like: PyTree) -> PyTree:
        return jax.tree.map(
            lambda a, b: a.astype(b.dtype) * 2.0 ** -self._bits(b.dtype)[0], tree, like
        )


def _large(tree: PyTree) -> jax.Array:
    """Whether an integer is so large that the sum of two steps could wrap round unseen."""
    limits = [(a, 2 ** (8 * a.dtype.itemsize - 3)) for a in jax.tree.leaves(tree)]
    return jnp.any(jnp.stack([jnp.any((a >= limit) | (a <= -limit)) for a, limit in limits]))


def _isolated(slope: Any, y: PyTree) -> PyTree:
    """The gradient behind barriers, so that XLA compiles it alike wherever it is used."""
    return jax.lax.optimization_barrier(slope(jax.lax.optimization_barrier(y)))


def _map2(fun: Any, *trees: PyTree) -> tuple[PyTree, PyTree]:
    """Map a function that returns a pair; a pair of trees."""
    leaves, structure = jax.tree.flatten(trees[0])
    others = [jax.tree.leaves(tree) for tree in trees[1:]]
    pairs = [fun(*args) for args in zip(leaves, *others, strict=True)]
    first, second = ([pair[i] for pair in pairs] for i in (0, 1))
    return jax.tree.unflatten(structure, first), jax.tree.unflatten(structure, second)
