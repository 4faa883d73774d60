"""Attacks on images within `max |delta| <= eps`: projected gradients, random search, transfer.

Perturbations are in units of pixels, whatever the standardisation of the points: `pixel_ball`. An
attack is `(scores, ball, x, y, key) -> Attacked`, with `scores` a function from points to logits;
it keeps the strongest perturbation that it meets, so that more steps never weaken it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from .errors import InputError
from .pixel_ball import Ball
from .points import Points
from .training import chunk_size, cross_entropy, logits

Scores = Callable[[jax.Array], jax.Array]
SHRINK_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which squares halve
FIRST_AREA = 0.3  # of the image that the first squares cover


class Attacked(NamedTuple):
    """What an attack found.

    Attributes:
        delta: like the points, in pixels.
        margin: `[n]`, the largest other logit minus that of the true class: > 0 is an error.
    """

    delta: jax.Array
    margin: jax.Array

    def or_stronger(self, delta: jax.Array, margin: jax.Array) -> "Attacked":
        """Point by point the one with the larger margin."""
        better = margin > self.margin
        where = better.reshape(-1, *[1] * (delta.ndim - 1))
        return Attacked(jnp.where(where, delta, self.delta), jnp.where(better, margin, self.margin))


class Attack(Protocol):
    """What this module calls an attack."""

    def __call__(
        self, scores: Scores, ball: Ball, x: jax.Array, y: jax.Array, key: jax.Array
    ) -> Attacked:
        """The strongest perturbation of each point, `x[n, height, width, channels]`."""
        ...


def margins(scores: jax.Array, y: jax.Array) -> jax.Array:
    """The largest other logit minus that of the true class, `[n]`."""
    own = jax.nn.one_hot(y, scores.shape[-1], dtype=bool)
    others = jnp.max(jnp.where(own, -jnp.inf, scores), axis=-1)
    return others - jnp.sum(jnp.where(own, scores, 0), axis=-1)


@dataclasses.dataclass(frozen=True)
class PGD:
    """Signed gradient steps from random starts (Madry et al., ICLR 2018).

    Attributes:
        num_steps: gradients of each start.
        num_restarts: random starts.
        step: of each pixel, as a share of eps; below 1 the sum of steps should exceed 2.
        targeted: each restart lowers the loss of another class, the likeliest first, in place of
            raising that of the true one: it fails less often where losses are flat.
        last: take the last perturbation of each start, stronger or not. One-step training that
            collapses does so by making its own step harmless: the strongest would hide that.
    """

    num_steps: int = 20
    num_restarts: int = 1
    step: float = 0.25
    targeted: bool = False
    last: bool = False

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.num_restarts < 1 or not self.step > 0:
            raise InputError(
                "`num_steps` and `num_restarts` must be integers >= 1 and `step` > 0, got"
                f" {self.num_steps}, {self.num_restarts} and {self.step}."
            )

    def __call__(
        self, scores: Scores, ball: Ball, x: jax.Array, y: jax.Array, key: jax.Array
    ) -> Attacked:
        """See `Attack`."""
        ranked = _likeliest(scores(x), y) if self.targeted else None

        def restart(best: Attacked, number: jax.Array) -> tuple[Attacked, None]:
            begin = ball.noise(jax.random.fold_in(key, number), x)
            goal = None if ranked is None else ranked[:, number % (ranked.shape[1] - 1)]
            return self._climb(scores, ball, x, y, begin, goal, best)[0], None

        return jax.lax.scan(restart, _nothing(x), jnp.arange(self.num_restarts))[0]

    def course(
        self, scores: Scores, ball: Ball, x: jax.Array, y: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Margins at the first start and after each step but the last: `[num_steps, n]`."""
        begin = ball.noise(jax.random.fold_in(key, 0), x)
        return self._climb(scores, ball, x, y, begin, None, _nothing(x))[1]

    def _climb(
        self,
        scores: Scores,
        ball: Ball,
        x: jax.Array,
        y: jax.Array,
        begin: jax.Array,
        goal: jax.Array | None,
        best: Attacked,
    ) -> tuple[Attacked, jax.Array]:
        """All steps from one start, away from the true class or towards a goal."""

        def value(delta: jax.Array) -> tuple[jax.Array, jax.Array]:
            seen = scores(ball.moved(x, delta))
            losses = cross_entropy(seen, y) if goal is None else -cross_entropy(seen, goal)
            return jnp.sum(losses), margins(seen, y)

        def step(state: tuple[jax.Array, Attacked], _: None) -> Any:
            delta, best = state
            slope, margin = jax.grad(value, has_aux=True)(delta)
            best = best.or_stronger(delta, margin)
            delta = ball.clip(delta + self.step * ball.eps * jnp.sign(slope), x)
            return (delta, best), margin

        (last, best), course = jax.lax.scan(step, (begin, best), length=self.num_steps)
        margin = value(last)[1]
        return (Attacked(last, margin) if self.last else best.or_stronger(last, margin)), course


def _nothing(x: jax.Array) -> Attacked:
    """Weaker than any attack."""
    return Attacked(jnp.zeros_like(x), jnp.full(len(x), -jnp.inf, x.dtype))


def _likeliest(scores: jax.Array, y: jax.Array) -> jax.Array:
    """Classes of each point, the likeliest wrong one first and the true one last."""
    own = jax.nn.one_hot(y, scores.shape[-1], dtype=bool)
    return jnp.argsort(-jnp.where(own, -jnp.inf, scores), axis=-1)


@dataclasses.dataclass(frozen=True)
class RandomSearch:
    """Squares of random signs, kept where they raise the margin: no gradient is asked.

    It cannot be fooled by a gradient that is masked, so it should find fewer errors than `PGD`.
    (Andriushchenko et al., "Square Attack", ECCV 2020. Differs from the paper in that squares
    shrink after fixed numbers of queries, so that more queries never weaken it.)

    Attributes:
        num_queries: forward passes.
    """

    num_queries: int = 500

    def __post_init__(self) -> None:
        if self.num_queries < 1:
            raise InputError(f"`num_queries` must be an integer >= 1, got {self.num_queries}.")

    def __call__(
        self, scores: Scores, ball: Ball, x: jax.Array, y: jax.Array, key: jax.Array
    ) -> Attacked:
        """See `Attack`."""
        count, height, width, channels = x.shape
        shape = jnp.array([[height, width]], x.dtype)
        judged = lambda delta: margins(scores(ball.moved(x, delta)), y)

        def query(best: Attacked, number: jax.Array) -> tuple[Attacked, None]:
            place_key, sign_key = jax.random.split(jax.random.fold_in(key, number + 1))
            halvings = jnp.sum(number >= jnp.array(SHRINK_AT))
            side = jnp.round(jnp.sqrt(FIRST_AREA * 0.5**halvings * height * width)).clip(1)
            corner = jnp.round(jax.random.uniform(place_key, (count, 2)) * (shape - side))
            hit = lambda size, at: (
                (jnp.arange(size)[None] >= at) & (jnp.arange(size)[None] < at + side)
            )
            inside = hit(height, corner[:, :1])[:, :, None] & hit(width, corner[:, 1:])[:, None]
            sign = jax.random.rademacher(sign_key, (count, 1, 1, channels), x.dtype)
            delta = ball.clip(jnp.where(inside[..., None], ball.eps * sign, best.delta), x)
            return best.or_stronger(delta, judged(delta)), None

        stripes = jax.random.rademacher(key, (count, 1, width, channels), x.dtype)
        start = ball.clip(jnp.broadcast_to(ball.eps * stripes, x.shape), x)
        found = Attacked(start, judged(start))
        return jax.lax.scan(query, found, jnp.arange(self.num_queries))[0]


@functools.partial(jax.jit, static_argnames=("model", "attack"))
def attacked_margins(
    model: Any,
    attack: Attack,
    variables: Any,
    offset: jax.Array,
    points: Points,
    ball: Ball,
    key: jax.Array,
    source: Any = None,
) -> jax.Array:
    """Margins under an attack, `[n]`, a chunk of points at a time; an error stays one.

    Args:
        model: from points to logits.
        attack: how.
        variables: of the model.
        offset: `[1, num_classes]`, added to the logits, to rule classes out.
        points: to attack.
        ball: where.
        key: of the starts.
        source: variables of another network, whose errors are carried over to the model (transfer);
            None attacks the model itself.
    """
    scores_of = lambda variables, x: logits(model, variables, x) + offset

    def one(seen: tuple[Points, jax.Array]) -> jax.Array:
        (x, y), own_key = seen
        x, y = x[None], y[None]
        attacker = variables if source is None else source
        found = attack(functools.partial(scores_of, attacker), ball, x, y, own_key)
        moved = margins(scores_of(variables, ball.moved(x, found.delta)), y)
        return jnp.maximum(moved, margins(scores_of(variables, x), y))[0]

    keys = jax.random.split(key, len(points.y))
    return jax.lax.map(one, (points, keys), batch_size=chunk_size())


def slopes(scores: Scores, ball: Ball, x: jax.Array, y: jax.Array) -> jax.Array:
    """The norm of each loss's gradient in the pixels, `[n]`; zero where gradients are masked."""

    def total(delta: jax.Array) -> jax.Array:
        return jnp.sum(cross_entropy(scores(ball.moved(x, delta)), y))

    gradient = jax.grad(total)(jnp.zeros_like(x))
    return jnp.linalg.norm(gradient.reshape(len(x), -1), axis=1)
