"""The bi-level search of the worst-case forget set, point by point or class by class.

The search finds the *worst-case* forget set, the points that are hardest to forget: those on which
the model still does well after it was unlearned. It gives no certified privacy guarantee, and its
hypergradient is biased with respect to the exact minimiser of the lower level, for which sign steps
stand in.

Source: Fan, Liu, Hero and Liu, "Challenging Forgets: Unveiling the Worst-Case Forget Sets in
Machine Unlearning", ECCV 2024. Differs from the released code in that the weights start uniform by
default, that they are never made binary on the way, and that the outer loss is measured without
augmentation.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel

from ..components.errors import InputError
from ..components.points import Points, stratified
from ..components.training import crop_and_flip, cross_entropy, logits, predict

PyTree = Any
Rule = Literal["sign", "truncated", "unrolled", "implicit"]


@dataclasses.dataclass(frozen=True)
class ByClass:
    """Projects weights so that each class keeps its own number of points: a `CappedSimplex` each.

    Attributes:
        quotas: one for each class, from 0 to its number of points.
        labels: `[n]`, the class of each weight.
    """

    quotas: tuple[int, ...]
    labels: tuple[int, ...] = dataclasses.field(repr=False)

    def __call__(self, w: jax.Array) -> jax.Array:
        """The nearest weights, `[n]`."""
        labels = np.array(self.labels)
        rows = [np.flatnonzero(labels == label) for label in range(len(self.quotas))]
        longest = max(map(len, rows))
        # Short classes are filled up with one more weight, so small that it ends at 0.
        blocks = np.array([np.pad(r, (0, longest - len(r)), constant_values=len(w)) for r in rows])
        filled = jnp.append(w, jnp.min(w) - 2.0)[blocks]
        project = lambda v, quota: bilevel.projections.CappedSimplex(quota)(v)
        projected = jax.vmap(project)(filled, jnp.array(self.quotas, w.dtype))
        return jnp.zeros(len(w) + 1, w.dtype).at[blocks].set(projected)[:-1]


@dataclasses.dataclass(frozen=True)
class Search:
    """Settings of the bi-level search.

        min_w  sum_i w_g(i) l(theta(w); z_i) + gamma ||w||^2   over  0 <= w <= 1,  sum_g w_g = m
        theta(w) = steps on  sum_i (1 - w_g(i) - ascent w_g(i)) l(theta; z_i)

    where g(i) is the group of point i: itself, or its class.

    Attributes:
        model: whose loss is l.
        num_forget: m, points (or classes) to choose.
        num_epochs: passes of the lower level over the data.
        batch_size: points in each step of the lower level.
        sign_step: how far each parameter moves in each sign step of the lower level.
        outer_rate: step size of w; for classes, whose losses are summed, smaller by their size.
        gamma: larger spreads w over more points.
        ascent: 0 leaves forgotten points out of the lower level, as the released code does; 1 also
            climbs on their loss as hard as it descends on the others, as the paper's text says.
        augment: crop and flip in the lower level; the outer loss never does.
        rule: how the hypergradient is taken. "sign": sign steps, whose derivative is zero, the
            paper's. The others take momentum SGD in their place: "truncated" differentiates its
            last step alone, "unrolled" all steps, "implicit" the optimality condition on
            `linear_points` of the data. The last two see how the lower level moves with w.
        smooth_rate: step size of that SGD.
        ridge: added to the Hessian of "implicit", which a network makes indefinite; larger makes
            the term that the sign trick leaves out smaller.
        linear_points: points in each Hessian-vector product of "implicit".
        unit: what has a weight of its own, a point or a class.
        quotas: points to choose from each class; none: from wherever they are hardest to forget.
    """

    model: Any
    num_forget: int
    num_epochs: int
    batch_size: int
    sign_step: float
    outer_rate: float
    gamma: float = 1e-4
    ascent: float = 0.0
    augment: bool = False
    rule: Rule = "sign"
    smooth_rate: float = 0.02
    ridge: float = 0.1
    linear_points: int = 1000
    unit: Literal["point", "class"] = "point"
    quotas: tuple[int, ...] = ()

    def algorithm(self, labels: tuple[int, ...]) -> bilevel.DoubleLoop:
        """The bi-level algorithm for training points of these classes."""
        projection: Any = bilevel.projections.CappedSimplex(float(self.num_forget))
        if self.quotas:
            projection = ByClass(self.quotas, labels)
        return bilevel.DoubleLoop(
            bilevel.BilevelProblem(self._outer_loss, self._inner_loss),
            self._solver(self.num_epochs * (len(labels) // self.batch_size)),
            optax.sgd(self.outer_rate),
            projection=projection,
            warm_start=False,  # each unlearning starts from the original model, not from the last
        )

    def _solver(self, num_steps: int) -> bilevel.Solver:
        if self.rule == "sign":
            return bilevel.SignUnrolled(self.sign_step, num_steps, self._minibatch)
        optimizer = optax.sgd(self.smooth_rate, momentum=0.9)
        solver = bilevel.Minimize(optimizer, num_steps, self._minibatch, remat="binomial")
        if self.rule == "unrolled":
            return solver
        if self.rule == "truncated":
            return bilevel.Truncated(solver, last=1)
        return bilevel.Implicit(solver, bilevel.linear.CG(10, 1e-2, ridge=self.ridge))

    @property
    def step_setting(self) -> str:
        """What to lower where the lower level diverges."""
        name = "sign_step" if self.rule == "sign" else "smooth_rate"
        return f"`{name}` below {getattr(self, name)}"

    def _outer_loss(self, w: jax.Array, params: PyTree, data: "OuterData") -> jax.Array:
        losses = cross_entropy(predict(self.model, params, data.points.x), data.points.y)
        return jnp.vdot(w[data.groups], losses) + self.gamma * jnp.vdot(w, w)

    def _inner_loss(self, w: jax.Array, params: PyTree, seen: "Minibatch") -> jax.Array:
        losses = cross_entropy(logits(self.model, params, seen.x), seen.y)
        return jnp.mean((1 - (1 + self.ascent) * w[seen.groups]) * losses)

    def _minibatch(self, data: "LowerData", step: jax.Array) -> "Minibatch":
        rows = data.rows[step]
        x = data.points.x[rows]
        if self.augment:
            x = crop_and_flip(jax.random.wrap_key_data(data.key_data[step]), x)
        return Minibatch(x, data.points.y[rows], data.groups[rows])


class OuterData(NamedTuple):
    """All points, and the group `[n]` of each."""

    points: Points
    groups: jax.Array


class LowerData(NamedTuple):
    """All that the lower level sees in one outer step."""

    points: Points
    groups: jax.Array  # [n]
    rows: jax.Array  # [num_steps, batch_size]
    key_data: jax.Array  # [num_steps, ...] of the augmentation


class Minibatch(NamedTuple):
    """What one step of the lower level sees; `groups` finds the points' weights."""

    x: jax.Array
    y: jax.Array
    groups: jax.Array


def num_to_forget(budget: float, num_points: int) -> int:
    """Points that a budget stands for: a share of `num_points` if below 1, else a count.

    Raises:
        InputError: the budget is no share and no whole count, forgets nothing or everything.
    """
    count = round(budget * num_points) if 0 < budget < 1 else budget
    if not (math.isfinite(budget) and budget > 0 and count == int(count)):
        raise InputError(
            f"`budget` must be a share between 0 and 1 or a whole number of points, got {budget}."
        )
    if not 0 < count < num_points:
        raise InputError(
            f"`budget` must forget at least one point and retain at least one, got {budget}, which"
            f" is {int(count)} of {num_points} points."
        )
    return int(count)


def random_sets(key: jax.Array, num_points: int, num_forget: int, draws: int) -> np.ndarray:
    """Independent sets of rows, each drawn without replacement: `[draws, num_forget]` int32."""
    keys = jax.random.split(key, draws)
    orders = jax.vmap(lambda key: jax.random.permutation(key, num_points))(keys)
    return np.asarray(orders[:, :num_forget], np.int32)


def largest(scores: np.ndarray | jax.Array, count: int) -> np.ndarray:
    """Rows of the `count` largest scores, largest first; ties go to the lower row: int32."""
    return np.argsort(-np.asarray(scores), kind="stable")[:count].astype(np.int32)


def random_sets_like(
    key: jax.Array, labels: np.ndarray, rows: np.ndarray, draws: int
) -> np.ndarray:
    """Random sets with the class counts of the set `rows`: `[draws, len(rows)]` int32.

    What a chosen set scores beyond these is not due to its classes.
    """
    counts = np.bincount(labels[rows], minlength=labels.max() + 1)
    # The first of each class in a random order of all points are a random choice among them.
    orders = random_sets(key, len(labels), len(labels), draws)

    def first(order: np.ndarray) -> np.ndarray:
        own = [order[labels[order] == label][:count] for label, count in enumerate(counts)]
        return np.concatenate(own)

    return np.stack([first(order) for order in orders]).astype(np.int32)


def share_of_each_class(labels: np.ndarray, count: int, num_classes: int) -> tuple[int, ...]:
    """`count` points divided among the classes like all points are, rounded to whole ones."""
    chosen = stratified(labels, count, seed=0)
    return tuple(np.bincount(labels[chosen], minlength=num_classes).tolist())


def largest_of_each_class(scores: np.ndarray, labels: np.ndarray, quotas: tuple[int, ...]) -> Any:
    """Rows of the largest scores of each class, as many as its quota, largest first: int32."""
    order = largest(scores, len(scores))
    kept = [order[labels[order] == label][:quota] for label, quota in enumerate(quotas)]
    return order[np.isin(order, np.concatenate(kept))]
