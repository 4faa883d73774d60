"""Persistent evolution strategies: unbiased outer gradients from short pieces of a long inner run.

Source: Vicol, Metz and Sohl-Dickstein, "Unbiased gradient estimation in unrolled computation graphs
with persistent evolution strategies", ICML 2021, algorithm 2.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from bilevel import _tree
from bilevel._descent import Single, copied, descend, first_states, start
from bilevel._describe import settings
from bilevel._problem import Batch, BilevelProblem, PyTree
from bilevel._settings import Checked, Projection
from bilevel.solvers import Minimize, MinimizeState


class PESState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: the outer variable.
        inner: that of the first particle, for a look.
        start: where every inner run starts.
        particles: states of the inner runs, with leading axes `[2, num_pairs]` (sign, pair).
        noise: `[num_pairs, n]`, sum of each pair's perturbations since its run began.
        opt_states: state of the outer optimizer.
        step_count: int32, steps taken.
        key: random key.
    """

    outer: PyTree
    inner: PyTree
    start: PyTree
    particles: MinimizeState
    noise: jax.Array
    opt_states: Single
    step_count: jax.Array
    key: jax.Array


class PESInfo(NamedTuple):
    """What a person wants to see of one step.

    Attributes:
        value: scalar, the mean outer loss over all particles.
        hypergrad_norm: scalar, Euclidean norm of the estimate.
        finite: scalar bool, value and estimate hold neither NaN nor infinity.
        hypergrad: the estimate, like the outer variable.
    """

    value: jax.Array
    hypergrad_norm: jax.Array
    finite: jax.Array
    hypergrad: PyTree


@settings
class PES(Checked):
    """Descends `mean over t of F(x, y_t(x))` along an inner run, by perturbations that persist.

    Each step moves every particle by the solver's `num_steps` inner steps, under its own outer
    variable `x +- s e_i` with a fresh `e_i`, and weights its outer loss by the *sum* of all that it
    has been perturbed by since its run began:

        g = sum_i xi_i (F(x + s e_i, y_i+) - F(x - s e_i, y_i-)) / (2 N s^2),  xi_i = s sum_t e_it

    That makes the sum of the estimates over a run an unbiased gradient of the smoothed outer loss
    along it, where evolution strategies on one piece (truncated) do not see how earlier pieces
    depend on x. No derivative of the outer loss is taken, and none through the inner steps, so no
    memory grows with them. Its variance grows with the number of pieces in a run. The bias of
    the smoothing is `O(sigma^2)`, and moving `outer` during a run adds one of the order of the
    outer rate.

    Differs from the paper in that the loss of a piece is the outer loss at its end.

    Attributes:
        problem: the two losses; the outer one needs no derivative.
        solver: the steps of one piece, a `Minimize`; its optimizer state persists too.
        outer_optimizer: of the outer variable, any Optax transformation.
        num_pairs: N; 2 N inner runs are kept at once, and the variance falls with 1 / N.
        sigma: s, in units of the outer variable: see `evolution_hypergrad`.
        num_pieces: pieces of a run, after which all particles start anew from `inner` given to
            `init`. Longer runs look further ahead, at more variance.
        projection: maps the outer variable back to its feasible set after each step; None for none.
            The perturbed variables are not projected.
        seed: of the perturbations.

    Raises:
        TypeError: `problem`, `solver`, `outer_optimizer` or `projection` is of the wrong kind.
        ValueError: a setting is out of its range, or `solver` has a tolerance.
    """

    problem: BilevelProblem
    solver: Minimize
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    num_pairs: int = 16
    sigma: float | jax.Array = 0.1
    num_pieces: int = 10
    projection: Projection | None = None
    seed: int | jax.Array = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.solver, Minimize):
            raise TypeError(
                f"`solver` must be a `Minimize`, whose steps can go on, got {self.solver!r}."
            )
        if self.solver.tolerance is not None:
            raise ValueError(
                "`solver` must stop at no tolerance, as every piece has `num_steps` steps, got"
                f" tolerance={self.solver.tolerance!r}. Leave it out."
            )

    def init(self, outer: PyTree, inner: PyTree) -> PESState:
        """The state before the first step; `outer` is projected first.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        outer, inner = start(self, outer, inner)
        flat = ravel_pytree(outer)[0]
        return PESState(
            outer=outer,
            inner=copied(inner),
            start=inner,
            particles=self._fresh(inner),
            noise=jnp.zeros((self.num_pairs, flat.size), flat.dtype),
            opt_states=first_states(self, Single(outer)),
            step_count=jnp.int32(0),
            key=jax.random.key(self.seed),
        )

    def step(self, state: PESState, batch: Batch) -> tuple[PESState, PESInfo]:
        """One piece of every inner run, one estimate, one outer update."""
        particles, noise, values, hypergrad = self._estimate(state, batch)
        value, norm = jnp.mean(values), _tree.norm(hypergrad)
        outer, outer_opt = descend(
            self, "outer", hypergrad, state.opt_states.outer, state.outer, value
        )
        info = PESInfo(value, norm, _tree.all_finite((value, norm)), hypergrad)
        ends = (state.step_count + 1) % self.num_pieces == 0
        state = state._replace(
            outer=outer,
            inner=jax.tree.map(lambda a: a[0, 0], particles.inner),
            particles=_tree.where(ends, self._fresh(state.start), particles),
            noise=jnp.where(ends, 0.0, noise),
            opt_states=Single(outer_opt),
            step_count=state.step_count + 1,
        )
        return state, info

    def _estimate(
        self, state: PESState, batch: Batch
    ) -> tuple[MinimizeState, jax.Array, jax.Array, PyTree]:
        flat, unravel = ravel_pytree(state.outer)
        key = jax.random.fold_in(state.key, state.step_count)
        sigma = jnp.asarray(self.sigma, flat.dtype)
        fresh = sigma * jax.random.normal(key, state.noise.shape, flat.dtype)
        noise = state.noise + fresh
        outers = flat[None, None] + jnp.stack([fresh, -fresh])
        first = (state.step_count % self.num_pieces) * self.solver.num_steps

        def piece(outer: jax.Array, particle: MinimizeState) -> tuple[MinimizeState, jax.Array]:
            moved = self.solver.advance(
                self.problem.inner_loss,
                unravel(outer),
                particle,
                batch.inner,
                first,
                self.solver.num_steps,
            )
            return moved, self.problem.outer_loss(unravel(outer), moved.inner, batch.outer)

        particles, values = jax.vmap(jax.vmap(piece))(outers, state.particles)
        weights = (values[0] - values[1]) / (2 * self.num_pairs * sigma**2)
        return particles, noise, values, unravel(weights @ noise)

    def _fresh(self, start: PyTree) -> MinimizeState:
        """All particles at the start of a run."""
        repeat = lambda a: jnp.broadcast_to(a, (2, self.num_pairs, *jnp.shape(a)))
        return jax.tree.map(repeat, self.solver.start(start))
