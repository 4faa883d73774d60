"""One deterministic training, a function of the weights of its points, and how to retrain it."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import BilevelProblem, Minimize, Solver, sampling

from ..components.models import Model
from ..components.points import Points
from ..components.training import cross_entropy

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        num_steps: of the optimizer.
        batch_size: points in each step.
        learning_rate: its step size.
        adam: Adam in place of SGD with momentum 0.9.
    """

    num_steps: int
    batch_size: int
    learning_rate: float
    adam: bool = False

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Of Optax. The `eps_root` is one through which gradients predict."""
        if self.adam:
            return optax.adam(self.learning_rate, eps_root=1e-5)
        return optax.sgd(self.learning_rate, momentum=0.9)


class Start(NamedTuple):
    """What a training depends on beside the weights: all of it is data to compiled programs.

    Attributes:
        points: that it trains on.
        variables: to begin with.
        order: the key of its minibatches.
    """

    points: Points
    variables: PyTree
    order: jax.Array


@dataclasses.dataclass(frozen=True)
class Training:
    """A model and a recipe. Equal starts and weights give equal bits.

    Attributes:
        model: without statistics or dropout.
        recipe: how to train it.
    """

    model: Model
    recipe: Recipe

    def solver(self, order: jax.Array, **options: Any) -> Minimize:
        """The training as a solver; `options` are those of `Minimize`."""
        draw = sampling.Draw(self.recipe.batch_size, order, with_rows=True)
        return Minimize(self.recipe.optimizer, self.recipe.num_steps, draw, **options)

    def problem(self, start: Start) -> BilevelProblem:
        """Inner: the weighted mean of a minibatch. Outer: the mean loss of other points."""

        def inner_loss(weights: jax.Array, params: PyTree, seen: sampling.Numbered) -> jax.Array:
            return jnp.mean(weights[seen.rows] * self.losses(start, params, seen.data))

        def outer_loss(weights: jax.Array, params: PyTree, points: Points) -> jax.Array:
            return jnp.mean(self.losses(start, params, points))

        return BilevelProblem(outer_loss, inner_loss)

    def losses(self, start: Start, params: PyTree, points: Points) -> jax.Array:
        """Of each point."""
        return cross_entropy(self.logits(start, params, points.x), points.y)

    def logits(self, start: Start, params: PyTree, x: jax.Array) -> jax.Array:
        """Of each point."""
        return self.model.apply(start.variables | {"params": params}, x)

    def trained(self, start: Start, weights: jax.Array, solver: Solver | None = None) -> PyTree:
        """The parameters after training by these weights.

        Args:
            start: see there.
            weights: `[n]`, a factor on the loss of each point.
            solver: in place of `self.solver(start.order)`: what says how gradients flow.
        """
        solver = solver or self.solver(start.order)
        init = start.variables["params"]
        return solver(self.problem(start).inner_loss, weights, init, start.points)

    @functools.partial(jax.jit, static_argnums=0)
    def retrained(self, start: Start, weights: jax.Array, queries: Points) -> jax.Array:
        """Losses of the queries after one training for each row of weights: `[m, q]`.

        Four at a time: enough to fill a CPU's matrix units, few enough for its caches.
        """
        judge = lambda w: self.losses(start, self.trained(start, w), queries)
        return jax.lax.map(judge, weights, batch_size=4)
