"""Which outer loss tunes a classifier best when 30 % of all labels it sees are wrong?

The lower level is a weighted logistic regression, the outer variable its regulariser and, in a
second round, a weight for each class. Training and held-out labels are both noisy; the judge is the
error on clean points, of a model trained from a cold start.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel import Batch, BilevelProblem, DoubleLoop, Implicit, Minimize, linear, run

from ..components.bolt import bolt
from ..components.frame import named_key

PyTree = Any
NUM_TRAIN, NUM_HELD_OUT, NOISE = 300, 300, 0.3
NUM_OUTER_STEPS, NUM_INNER_STEPS, NUM_FINAL_STEPS = 40, 60, 300
FIRST_LOG_RIDGE = -6.0


def _true_class(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None], axis=1)[:, 0]


def _brier(logits: jax.Array, labels: jax.Array) -> jax.Array:
    truth = jax.nn.one_hot(labels, logits.shape[1])
    return jnp.sum((jax.nn.softmax(logits) - truth) ** 2, axis=1)


OUTER_LOSSES: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cross-entropy": optax.softmax_cross_entropy_with_integer_labels,
    "Brier": _brier,
    "mean absolute error": lambda logits, labels: 1 - _true_class(logits, labels),
    "BOLT L1": lambda logits, labels: bolt(jax.nn.softmax(logits), labels, "l1"),
    "BOLT L2": lambda logits, labels: bolt(jax.nn.softmax(logits), labels, "l2"),
}


def clean_errors(
    x: np.ndarray, y: np.ndarray, loss: str, weigh_classes: bool, seeds: tuple[int, ...]
) -> np.ndarray:
    """Errors in percent on clean points, `[seeds, 2]`: before and after tuning.

    Args:
        x: `[n, features]`.
        y: `[n]` labels from 0 to 9, right ones; they are made noisy here.
        loss: a name of `OUTER_LOSSES`.
        weigh_classes: whether the class weights are tuned too.
        seeds: of the split and of the noise, all in one compiled program.
    """
    tune = lambda key, x, y: _tune(key, x, y, OUTER_LOSSES[loss], weigh_classes)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    found = jax.jit(jax.vmap(tune, (0, None, None)))(keys, jnp.asarray(x), jnp.asarray(y))
    return 100 * np.stack(found, axis=1)


def _tune(
    key: jax.Array, x: jax.Array, y: jax.Array, loss: Callable[..., jax.Array], weigh: bool
) -> tuple[jax.Array, jax.Array]:
    order = jax.random.permutation(named_key(key, "split"), len(y))
    wrong = (y + jax.random.randint(named_key(key, "labels"), y.shape, 1, 10)) % 10
    noisy = jnp.where(jax.random.uniform(named_key(key, "noise"), y.shape) < NOISE, wrong, y)
    train, held_out = order[:NUM_TRAIN], order[NUM_TRAIN : NUM_TRAIN + NUM_HELD_OUT]
    judged = order[NUM_TRAIN + NUM_HELD_OUT :]

    def inner_loss(outer: PyTree, model: PyTree, data: PyTree) -> jax.Array:
        x, labels = data
        losses = OUTER_LOSSES["cross-entropy"](_logits(model, x), labels)
        weights = 10 * jax.nn.softmax(outer["class_weights"])[labels] if weigh else 1.0
        return jnp.mean(weights * losses) + jnp.exp(outer["log_ridge"]) / 2 * jnp.sum(
            model["kernel"] ** 2
        )

    def outer_loss(outer: PyTree, model: PyTree, data: PyTree) -> jax.Array:
        return jnp.mean(loss(_logits(model, data[0]), data[1]))

    descent = optax.sgd(0.5, momentum=0.9, nesterov=True)
    problem = BilevelProblem(outer_loss, inner_loss)
    solver = Implicit(Minimize(descent, NUM_INNER_STEPS), linear.CG(30))
    algorithm = DoubleLoop(problem, solver, optax.adam(0.1))
    start = {"class_weights": jnp.zeros(10), "log_ridge": jnp.float32(FIRST_LOG_RIDGE)}
    model = {"kernel": jnp.zeros((x.shape[1], 10)), "bias": jnp.zeros(10)}
    batch = Batch(inner=(x[train], noisy[train]), outer=(x[held_out], noisy[held_out]))

    def error(outer: PyTree) -> jax.Array:
        trained = Minimize(descent, NUM_FINAL_STEPS)(inner_loss, outer, model, batch.inner)
        return jnp.mean(jnp.argmax(_logits(trained, x[judged]), axis=1) != y[judged])

    state, _ = run(algorithm, algorithm.init(start, model), batch, NUM_OUTER_STEPS)
    return error(start), error(state.outer)


def _logits(model: PyTree, x: jax.Array) -> jax.Array:
    return x @ model["kernel"] + model["bias"][None, :]
