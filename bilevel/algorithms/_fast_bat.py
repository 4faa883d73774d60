"""Fast-BAT: a linearised lower level on a box, whose solution and derivative are closed forms.

Source: Zhang, Zhang, Khanduri, Hong, Chang and Liu, "Revisiting and advancing fast adversarial
training through the lens of bi-level optimization", ICML 2022.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _check, _tree
from bilevel._descent import Single, descend, first_states, start
from bilevel._describe import settings
from bilevel._problem import Batch, BilevelProblem, PyTree, check_problem
from bilevel._settings import Checked, Projection

Bounds = tuple[float | jax.Array, float | jax.Array]


class FastBATState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: x, the parameters of the model.
        inner: the latest lower solution, the attack; where the next starts unless `start` is given.
        opt_states: state of the outer optimizer.
        step_count: int32, steps taken, which picks the random starts.
    """

    outer: PyTree
    inner: PyTree
    opt_states: Single
    step_count: jax.Array


class FastBATInfo(NamedTuple):
    """What a person wants to see of one step; all refer to the outer variable before the update.

    Attributes:
        value: scalar, F at the lower solution.
        hypergrad_norm: scalar, Euclidean norm of the gradient, cross term included.
        inner_grad_norm: scalar, `||grad_y G||` where the lower level was linearised.
        finite: scalar bool, all of these and the gradient hold neither NaN nor infinity.
        free: scalar in [0, 1], the part of the coordinates strictly inside the box; only through
            these does the lower solution move with x.
    """

    value: jax.Array
    hypergrad_norm: jax.Array
    inner_grad_norm: jax.Array
    finite: jax.Array
    free: jax.Array


@settings
class FastBAT(Checked):
    """Biased: the implicit gradient of the lower level linearised at z, with a quadratic term.

        lower  y*(x) = argmin_{y in box} <grad_y G(x, z), y> + (sharpness / 2) ||y - z||^2
                     = clip(z - grad_y G(x, z) / sharpness)
        h      = grad_x F(x, y*) - (1 / sharpness) d/dx <grad_y G(x, z), free * grad_y F(x, y*)>

    z comes from `num_warm_steps` projected gradient steps, held constant; `free` is 1 where the
    clip does nothing. h is exact for the linearised lower level, and so for G itself where G is
    `sharpness / 2 ||y||^2` plus a term linear in y. Adversarial training is `inner_loss` the
    attack's loss, `outer_loss` the model's. Its two limits: `sharpness -> infinity` gives y* = z,
    training on the starting noise; `sharpness -> 0` puts y* on a corner by the sign of the gradient
    with `free = 0`, the one-step sign attack with no cross term. A step costs `num_warm_steps + 1`
    gradients of G, one of F, one reverse pass over the gradient of G (the cost of one
    Hessian-vector product), and the memory of that.

    Differs from the paper in: the step of the lower level is `1 / sharpness` throughout, where the
    released code steps by a rate of its own (5000 / 255) beside a sharpness of 10 in h: set
    `implicit_weight = 0.1` and `sharpness = 255 / 5000` for it. `free` is read before the clip, and
    needs no tolerance.

    Attributes:
        problem: the two losses; sum, do not average, `inner_loss` over a batch of attacks.
        outer_optimizer: of the outer variable.
        bounds: of the box: `(lower, upper)`, numbers or arrays that broadcast to every leaf, or a
            function from `batch.inner` to them (attacks that must stay images).
        sharpness: lambda > 0, the curvature that stands for that of G.
        implicit_weight: what stands for `1 / sharpness` in h, >= 0; None: `1 / sharpness`; 0 leaves
            the implicit term out.
        num_warm_steps: projected steps from the start to z; 0 linearises at the start itself.
        start: `(key, inner) -> inner`, a fresh random start in each step; None: the last solution,
            for lower variables that are not tied to a sample.
        seed: of the starts; the step's count is folded in.
        projection: maps the outer variable back to its feasible set; None for none.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: a number is out of its range, or the lower bound above the upper one.
    """

    problem: BilevelProblem
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    bounds: Bounds | Callable[[PyTree], Bounds]
    sharpness: float | jax.Array
    implicit_weight: float | jax.Array | None = None
    num_warm_steps: int = 1
    start: Callable[[jax.Array, PyTree], PyTree] | None = None
    seed: int | jax.Array = 0
    projection: Projection | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_bounds(self.bounds)

    def init(self, outer: PyTree, inner: PyTree) -> FastBATState:
        """The state before the first step; `outer` is projected first.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        outer, inner = start(self, outer, inner)
        return FastBATState(outer, inner, first_states(self, Single(outer)), jnp.int32(0))

    def step(self, state: FastBATState, batch: Batch) -> tuple[FastBATState, FastBATInfo]:
        """The warm steps, the linearised solution, and one outer update.

        Raises:
            TypeError: see `value_and_hypergrad`.
        """
        x = state.outer
        check_problem(self.problem, x, state.inner, batch)
        lower, upper = self.bounds(batch.inner) if callable(self.bounds) else self.bounds
        cast = lambda bound, like: jnp.asarray(bound, like.dtype)
        clip = lambda tree: jax.tree.map(
            lambda a: jnp.clip(a, cast(lower, a), cast(upper, a)), tree
        )
        slope_at = lambda x, z: jax.grad(self.problem.inner_loss, 1)(x, z, batch.inner)
        move = lambda z, slope: _tree.add_scaled(z, -1 / self.sharpness, slope)

        z = state.inner
        if self.start is not None:
            z = self.start(jax.random.fold_in(jax.random.key(self.seed), state.step_count), z)
        warm = lambda _, z: clip(move(z, slope_at(x, z)))
        z = jax.lax.fori_loop(0, self.num_warm_steps, warm, z)

        # The pullback of the gradient at z serves the cross term: no second gradient there.
        slope, pullback = jax.vjp(lambda x: slope_at(x, z), x)
        moved = move(z, slope)
        y = clip(moved)
        free = jax.tree.map(lambda a: (a > lower) & (a < upper), moved)
        value, (direct, cotangent) = jax.value_and_grad(self.problem.outer_loss, (0, 1))(
            x, y, batch.outer
        )
        weight = 1 / self.sharpness if self.implicit_weight is None else self.implicit_weight
        (cross,) = pullback(jax.tree.map(lambda f, c: f.astype(c.dtype) * c, free, cotangent))
        hypergrad = _tree.add_scaled(direct, -weight, cross)

        outer, outer_opt = descend(self, "outer", hypergrad, state.opt_states.outer, x, value)
        norm, inner_norm = _tree.norm(hypergrad), _tree.norm(slope)
        finite = _tree.all_finite((value, norm, inner_norm))
        info = FastBATInfo(value, norm, inner_norm, finite, _mean(free, value.dtype))
        return FastBATState(outer, y, Single(outer_opt), state.step_count + 1), info


def _check_bounds(bounds: object) -> None:
    _check.instance("bounds", bounds, "a pair (lower, upper) or a function of `batch.inner`")
    if callable(bounds):
        return
    if not (isinstance(bounds, tuple) and len(bounds) == 2):
        raise TypeError(
            "`bounds` must be a pair (lower, upper), or a function from `batch.inner` to one,"
            f" got {bounds!r}."
        )
    lower, upper = bounds
    if all(map(_check.is_known, bounds)) and not lower <= upper:
        raise ValueError(f"`bounds` must be ordered, got lower={lower} and upper={upper}.")


def _mean(tree: PyTree, dtype: jnp.dtype) -> jax.Array:
    """The part of all entries of all leaves that are True."""
    leaves = jax.tree.leaves(tree)
    total = sum(jnp.sum(a) for a in leaves)
    return jnp.asarray(total, dtype) / sum(a.size for a in leaves)
