"""Attribution methods: each gives the change of every query's loss with the weight of every point.

A method is a frozen dataclass with `scores(study) -> [queries, points]`, and `tuned()`, the
settings to try where it has a damping to choose. All predict from one training, or from its
gradient; none sees a bank.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import Truncated, linear

from ..components.curvature import gauss_newton_product
from ..components.points import Points
from ..components.training import cross_entropy
from .networks import tapped
from .training import Start, Training

PyTree = Any
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)


class Study(NamedTuple):
    """What is attributed.

    Attributes:
        training: the model and how it is trained.
        start: where, and on which points.
        queries: whose losses are explained.
        weight: of every point, where the question is asked.
    """

    training: Training
    start: Start
    queries: Points
    weight: float

    @property
    def weights(self) -> jax.Array:
        """The same for each point."""
        return jnp.full(len(self.start.points.y), self.weight, jnp.float32)

    def trained(self) -> PyTree:
        """The variables that the training ends with, compiled once for equal studies."""
        return self.start.variables | {"params": _trained(self.training, self.start, self.weights)}


class Method(Protocol):
    """What a method must have; `title` is a property or an attribute."""

    @property
    def title(self) -> str:
        """For tables, and for the names of what is kept."""

    def scores(self, study: Study) -> jax.Array:
        """The change of each query's loss with the weight of each point: `[queries, points]`."""

    def tuned(self) -> Sequence["Method"]:
        """The settings to choose from on a bank of its own; the method alone if there are none."""


@dataclasses.dataclass(frozen=True)
class Metagradient:
    """The exact derivative of the training, all of its steps differentiated.

    Attributes:
        at_one: take it at weight 1, whatever is asked.
        last: differentiate only so many steps at the end; 0 for all.
    """

    at_one: bool = False
    last: int = 0

    @property
    def title(self) -> str:
        """For tables."""
        if self.last:
            return f"last {self.last} steps"
        return "metagradient at weight 1" if self.at_one else "metagradient"

    def scores(self, study: Study) -> jax.Array:
        """One backward pass for all queries together."""
        study = study._replace(weight=1.0) if self.at_one else study
        return _jacobian(study.training, study.start, study.queries, study.weights, self.last)

    def tuned(self) -> Sequence[Method]:
        """Nothing to choose."""
        return [self]


@dataclasses.dataclass(frozen=True)
class Influence:
    """`-grad l_q' (G + ridge I)^-1 grad l_i / n` at the trained parameters, G the Gauss-Newton.

    G and not the Hessian, which a network makes indefinite: no solver with a small ridge survives.

    Attributes:
        kind: "EKFAC", "CG", "Nystrom", or "one step", which puts the identity for G.
        ridge: added to the diagonal.
    """

    kind: str
    ridge: float = 1e-2

    @property
    def title(self) -> str:
        """For tables."""
        return {"CG": "implicit, CG", "Nystrom": "implicit, Nystrom"}.get(self.kind, self.kind)

    def scores(self, study: Study) -> jax.Array:
        """One linear solve for each query, then one forward derivative of all losses."""
        variables = study.trained()
        factors = _factors(study, variables) if self.kind == "EKFAC" else None
        seen = study.start, study.queries, variables, factors, jnp.float32(self.ridge)
        return _influence(study.training, self.kind, *seen)

    def tuned(self) -> Sequence[Method]:
        """One for each ridge."""
        if self.kind == "one step":
            return [self]
        return [dataclasses.replace(self, ridge=ridge) for ridge in RIDGES]


@dataclasses.dataclass(frozen=True)
class Projected:
    """Random projections of the gradients of the margin, and their least squares (TRAK).

    Differs from the paper (Park et al., ICML 2023) in that it sees one model, as all others do
    here, and that the ridge is chosen.

    Attributes:
        size: numbers that each gradient is projected to.
        ridge: added to the mean of the squares, relative to their mean diagonal.
    """

    size: int = 256
    ridge: float = 1e-2
    title = "random projections"

    def scores(self, study: Study) -> jax.Array:
        """Projected gradients of all points and queries, one solve."""
        seen = study.training, study.start, study.queries, study.trained()
        return _projected(*seen, self.size, self.ridge)

    def tuned(self) -> Sequence[Method]:
        """One for each ridge."""
        return [dataclasses.replace(self, ridge=ridge) for ridge in RIDGES]


def standard(num_steps: int) -> list[Method]:
    """The methods of the page for a training of so many steps."""
    kinds = ("EKFAC", "CG", "Nystrom")
    return [
        Metagradient(),
        Metagradient(at_one=True),
        Metagradient(last=max(1, num_steps // 8)),
        *(Influence(kind) for kind in kinds),
        Influence("one step"),
        Projected(),
    ]


@functools.partial(jax.jit, static_argnums=0)
def _trained(training: Training, start: Start, weights: jax.Array) -> PyTree:
    return training.trained(start, weights)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _jacobian(
    training: Training, start: Start, queries: Points, weights: jax.Array, last: int
) -> jax.Array:
    plain = training.solver(start.order, remat="binomial")
    solver = Truncated(plain, last) if last else plain
    judge = lambda w: training.losses(start, training.trained(start, w, solver), queries)
    return jax.jacrev(judge)(weights)


def _factors(study: Study, variables: PyTree) -> linear.KroneckerFactors:
    """Of at most 500 points: eigenvectors need no more, and all are in memory at once."""
    sample = jax.tree.map(lambda a: a[:500], study.start.points)
    return _kronecker(study.training, variables, sample)


@functools.partial(jax.jit, static_argnums=0)
def _kronecker(training: Training, variables: PyTree, sample: Points) -> linear.KroneckerFactors:
    loss = lambda logits, point: cross_entropy(logits[None], point.y[None])[0]
    model = tapped(training.model, variables)
    return linear.kronecker_factors(model, loss, variables["params"], sample)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _influence(
    training: Training,
    kind: str,
    start: Start,
    queries: Points,
    variables: PyTree,
    factors: Any,
    ridge: Any,
) -> jax.Array:
    solver: Any = {
        "CG": lambda: linear.CG(max_steps=30, ridge=ridge),
        "Nystrom": lambda: linear.Nystrom(30, ridge=ridge),
        "EKFAC": lambda: linear.KroneckerFactored(factors, ridge),
        "one step": linear.Identity,
    }[kind]()
    count, params = len(start.points.y), variables["params"]
    mean = jnp.full(count, 1.0 / count)
    constant = {k: jnp.zeros_like(v) for k, v in variables.items() if k != "params"}

    def matvec(vector: PyTree) -> PyTree:
        moved = constant | {"params": vector}
        product = gauss_newton_product(training.model, variables, start.points, mean, moved)
        return product["params"]

    def one(query: Points) -> jax.Array:
        single = jax.tree.map(lambda a: a[None], query)
        slope = jax.grad(lambda p: training.losses(start, p, single)[0])(params)
        adjoint = solver(matvec, slope).value
        losses = lambda p: training.losses(start, p, start.points)
        return -jax.jvp(losses, (params,), (adjoint,))[1] / count

    return jax.lax.map(one, queries)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _projected(
    training: Training, start: Start, queries: Points, variables: PyTree, size: int, ridge: float
) -> jax.Array:
    params = variables["params"]
    flat, unravel = ravel_pytree(params)

    def along(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The slope of every loss along one random direction, and the losses."""
        direction = unravel(jax.random.normal(key, flat.shape, flat.dtype))
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), start.points, queries)
        losses = lambda p: training.losses(start, p, both)
        return jax.jvp(losses, (params,), (direction,))

    losses, slopes = jax.lax.map(along, jax.random.split(jax.random.key(0), size))
    count = len(start.points.y)
    # The gradient of the margin log(p / (1 - p)) is that of the loss over p - 1.
    missing = jnp.maximum(-jnp.expm1(-losses[0, :count]), 1e-3)
    margins = slopes[:, :count] / missing[None]
    moments = margins @ margins.T / count
    moments += ridge * jnp.trace(moments) / size * jnp.eye(size)
    return -slopes[:, count:].T @ jnp.linalg.solve(moments, slopes[:, :count]) / count
