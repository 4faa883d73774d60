"""Pretrain on chosen points and judge on the targets: every selection is data to one program.

A run is an order of rows, a weight for each unit and a number of steps, all of them arguments. So
seeds, selections, budgets and lengths share one compiled program, and a run on few rows really
takes fewer steps. Runs go one after the other, or `together` at a time under `vmap`, which suits an
accelerator: models must not mix points (no BatchNorm), as points of weight 0 would count there.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel

from ..components.calibration import QUALITY, quality
from ..components.errors import NonFiniteError
from ..components.models import Model
from ..components.points import Points
from ..components.training import Recipe, cross_entropy, in_chunks, initialise, train
from .plans import Plan, num_steps, order_of
from .probe import probe
from .tasks import Target

Variables = Any
LEAST = 1e-3  # probability that a probe gives a class


class Runs(NamedTuple):
    """Pretrainings as arguments of the compiled program, with a leading axis.

    Attributes:
        order: `[runs, longest, batch]` int32 rows; what is beyond a run's own steps is not seen.
        weight: `[runs, units]`, the factor on the loss of each unit's points.
        num_steps: `[runs]` int32.
        key: `[runs]` keys of the initialisation and of the head for finetuning.
    """

    order: Any
    weight: Any
    num_steps: Any
    key: Any


def pretrain(
    model: Model, recipe: Recipe, points: Points, unit_of: jax.Array, run: Runs
) -> tuple[Variables, jax.Array]:
    """One run, to be compiled: the variables and the loss of the last batch (0 without a step).

    Args:
        model: any `Model`.
        recipe: rate, momentum and weight decay; its epochs play no part.
        points: of the source.
        unit_of: `[n]`.
        run: one of `Runs`, without the leading axis.
    """
    variables = initialise(model, points.x, run.key)

    def rate(count: jax.Array) -> jax.Array:  # by a traced number of steps, which Optax's refuses
        return recipe.learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * count / run.num_steps))

    optimizer = optax.chain(
        optax.add_decayed_weights(recipe.weight_decay), optax.sgd(rate, recipe.momentum or None)
    )

    def step(index: jax.Array, state: Any) -> Any:
        (variables, opt_state, _), rows = state, run.order[index]

        @bilevel.fast_on_cpu
        def loss_fn(params: Any) -> Any:
            now = variables | {"params": params}
            if model.step is None:
                scores, moved = model.apply(now, points.x[rows]), now
            else:
                key = jax.random.fold_in(run.key, index)
                scores, moved = model.step(now, points.x[rows], key)
            losses = cross_entropy(scores, points.y[rows])
            return jnp.mean(run.weight[unit_of[rows]] * losses), moved

        (loss, moved), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return moved | {"params": params}, opt_state, loss

    start = variables, optimizer.init(variables["params"]), jnp.zeros(())
    variables, _, loss = jax.lax.fori_loop(0, run.num_steps, step, start)
    return variables, loss


def single(recipe: Recipe, plan: Plan, key: jax.Array) -> Runs:
    """One run on full weights, as `pretrained` takes it: such as the surrogate's."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    order = order_of(plan, recipe.batch_size, plan.num_steps, rng)
    return Runs(jnp.asarray(order), jnp.ones(1), jnp.int32(plan.num_steps), key)


@functools.partial(jax.jit, static_argnames="model")
def pretrained(model: Model, recipe: Recipe, points: Points, run: Runs) -> Variables:
    """The variables after one run."""
    return pretrain(model, recipe, points, jnp.zeros(len(points.y), jnp.int32), run)[0]


def features(model: Model, variables: Variables, x: jax.Array) -> jax.Array:
    """What the head sees of each point, a chunk of points at a time: `[n, width]`."""
    return in_chunks(functools.partial(model.features, variables), x)


@functools.partial(jax.jit, static_argnames=("model", "classes", "together"))
def transferred(
    model: Model,
    recipe: Recipe,
    finetune: Recipe | None,
    points: Points,
    unit_of: jax.Array,
    targets: Sequence[tuple[Points, Points]],
    classes: tuple[int, ...],
    runs: Runs,
    together: int,
) -> dict[str, Any]:
    """Pretrain and judge: `probe [runs, targets]`, `loss [runs]` and, if asked for, `finetune`.

    Also `said`, for each target `[runs, n, classes]`: the logarithms of the probe's predictions,
    held to at least `LEAST`, since a regression on 0 and 1 predicts probabilities.

    Args:
        model: any `Model`.
        recipe: of the pretraining.
        finetune: of the finetuning of all parameters; None leaves it out.
        points: of the source.
        unit_of: `[n]`.
        targets: training and test points of each.
        classes: of each; for finetuning at most those of the model, whose head is drawn again.
        runs: what to pretrain on.
        together: runs at a time.
    """

    def one(run: Runs) -> dict[str, Any]:
        variables, loss = pretrain(model, recipe, points, unit_of, run)
        judged: dict[str, Any] = {"probe": []}
        said = []
        for (seen, test), count in zip(targets, classes, strict=True):
            fit = probe(features(model, variables, seen.x), seen.y, count)
            predicted = fit(features(model, variables, test.x))
            said.append(jnp.log(jnp.maximum(predicted, LEAST)))
            guess = jnp.argmax(predicted, axis=1)
            judged["probe"].append(100 * jnp.mean(guess == test.y))
            if finetune is not None:
                tuned = finetuned(model, finetune, variables, seen, run.key)
                scores = in_chunks(functools.partial(model.apply, tuned), test.x)
                guess = jnp.argmax(scores, axis=1)
                judged.setdefault("finetune", []).append(100 * jnp.mean(guess == test.y))
        accuracies = {name: jnp.asarray(values) for name, values in judged.items()}
        return accuracies | {"loss": loss, "said": said}

    return jax.lax.map(one, runs, batch_size=together)


def finetuned(
    model: Model, recipe: Recipe, variables: Variables, seen: Points, key: jax.Array
) -> Variables:
    """All parameters trained on the target's points, from a fresh head; the last step counts."""
    head, head_key = model.layers[-1], jax.random.fold_in(key, 1)
    fresh = initialise(model, seen.x, head_key)["params"][head]
    start = variables | {"params": variables["params"] | {head: fresh}}
    return train(model, recipe, start, seen, jnp.arange(len(seen.y)), head_key)


@dataclasses.dataclass(frozen=True)
class Judge:
    """Accuracies after pretraining on any rows, all by one compiled program.

    Attributes:
        model: the network to pretrain.
        recipe: of the pretraining.
        finetune: of the finetuning; None for the probe alone.
        points: of the source, on the device.
        targets: to judge on.
        at_once: runs that one call takes; fewer are filled up with runs of no step.
        together: of these under `vmap`.
    """

    model: Model
    recipe: Recipe
    finetune: Recipe | None
    points: Points
    targets: tuple[Target, ...]
    at_once: int
    together: int = 1

    @property
    def longest(self) -> int:
        """Steps of the recipe on the whole source."""
        return num_steps(self.recipe, len(self.points.y))

    def __call__(self, plans: Sequence[Plan], key: jax.Array, name: str) -> dict[str, np.ndarray]:
        """What `transferred` gives for each plan, with `QUALITY [runs, targets]` for `said`.

        Args:
            plans: what to pretrain on; none longer than the recipe on the whole source.
            key: of the initialisation, which all plans share, and of their orders.
            name: for the error.

        Raises:
            NonFiniteError: a pretraining diverged.
        """
        idle = Plan(np.zeros(1, np.int32), 0)
        filled = [*plans, *[idle] * (-len(plans) % self.at_once)]
        data = np.asarray(jax.random.key_data(key)).ravel()
        # Every plan has the generator to itself: equal plans give equal networks.
        orders = [
            order_of(plan, self.recipe.batch_size, self.longest, np.random.default_rng(data))
            for plan in filled
        ]
        parts: list[dict[str, np.ndarray]] = []
        for first in range(0, len(filled), self.at_once):
            now = slice(first, first + self.at_once)
            runs = Runs(
                jnp.asarray(np.stack(orders[now])),
                jnp.ones((self.at_once, 1)),
                jnp.array([plan.num_steps for plan in filled[now]], jnp.int32),
                jnp.stack([key] * self.at_once),
            )
            found = jax.device_get(self._run(runs))
            if not all(np.isfinite(array).all() for array in (found["loss"], *found["said"])):
                raise NonFiniteError(
                    f"A pretraining of {name} diverged. Lower `learning_rate`, which is"
                    f" {self.recipe.learning_rate}."
                )
            parts.append(self._graded(found))
        return {k: np.concatenate([part[k] for part in parts])[: len(plans)] for k in parts[0]}

    def _graded(self, found: dict[str, Any]) -> dict[str, np.ndarray]:
        """With what the probabilities are worth in place of them."""
        said = zip(found.pop("said"), self.targets, strict=True)
        worth = [[quality(one, target.test.y) for one in own] for own, target in said]
        return found | {
            name: np.array([[one[name] for one in own] for own in worth]).T for name in QUALITY
        }

    def _run(self, runs: Runs) -> dict[str, Any]:
        return transferred(
            self.model,
            self.recipe,
            self.finetune,
            self.points,
            jnp.zeros(len(self.points.y), jnp.int32),
            [(target.train, target.test) for target in self.targets],
            tuple(target.num_classes for target in self.targets),
            runs,
            self.together,
        )
