"""One compiled loop that trains a classifier on a chosen set of points, and one that evaluates it.

Shuffling, augmentation, the schedule and all steps run inside a single `jit`. The data arrives as
arguments, so a second call with the same shapes compiles nothing, whichever points it trains on.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import optax

from .batches import crop_and_flip, shuffled_epochs
from .errors import InputError
from .points import Points
from .settings import is_known, numbers_as_data

PyTree = Any
Variables = dict[str, Any]


@numbers_as_data("learning_rate")
@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train: SGD with momentum over shuffled epochs.

    A compiled training serves every learning rate; whatever else changes compiles again.

    Attributes:
        num_epochs: passes over the points.
        batch_size: points in each step; the rest of an epoch that fills no batch is left out.
        learning_rate: at the first step.
        momentum: 0 for none.
        weight_decay: added to the gradient as `weight_decay * parameter`, biases included.
        schedule: "cosine" lets the rate fall to 0 at the last step; "constant" keeps it.
        augment: random crops of the zero-padded image, by up to 4 pixels, and horizontal flips.
        adam: take Adam in place of SGD; `momentum` then says nothing.
        nesterov: look ahead along the momentum (Nesterov, 1983): faster at large batches.
        warmup: share of the steps over which the rate first rises from 0 in a line.
        label_smoothing: share of each label that goes to all classes alike (Szegedy et al., CVPR
            2016).

    Raises:
        InputError: a setting is out of its range.
    """

    num_epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    augment: bool = False
    adam: bool = False
    nesterov: bool = False
    warmup: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` must be an integer >= 1, got {getattr(self, name)}.")
        for name in ("warmup", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"`{name}` must lie in [0, 1), got {getattr(self, name)}.")
        if is_known(self.learning_rate) and not 0 < self.learning_rate < float("inf"):
            raise InputError(f"`learning_rate` must be a number > 0, got {self.learning_rate}.")

    def num_steps(self, num_points: int) -> int:
        """Optimizer steps that training on so many points takes.

        Raises:
            InputError: the points fill no batch.
        """
        if num_points < self.batch_size:
            raise InputError(
                f"`batch_size` must not exceed the number of points to train on, got"
                f" {self.batch_size} for {num_points} points. Lower it or keep more points."
            )
        return self.num_epochs * (num_points // self.batch_size)

    def optimizer(self, num_steps: int | jax.Array) -> optax.GradientTransformation:
        """The Optax optimizer for a run of so many steps."""
        rate = lambda step: self.rate(step, num_steps)
        sgd = optax.sgd(rate, self.momentum or None, self.nesterov)
        move = optax.adam(rate) if self.adam else sgd
        return optax.chain(optax.add_decayed_weights(self.weight_decay), move)

    def rate(self, step: jax.Array, num_steps: int | jax.Array) -> jax.Array:
        """The step size at step 0, 1, ... of so many."""
        rise = jnp.ceil(self.warmup * num_steps) if self.warmup else 0
        if self.schedule == "cosine":
            # By hand, as Optax's wants a number of steps that is known when it is compiled.
            count = jnp.clip(step - rise, 0, num_steps - rise)
            falling = 0.5 * (1 + jnp.cos(jnp.pi * count / (num_steps - rise)))
            rate = self.learning_rate * falling
        else:
            rate = jnp.full_like(step, self.learning_rate, jnp.float32)
        return rate * jnp.minimum((step + 1) / rise, 1.0) if self.warmup else rate


@functools.partial(jax.jit, static_argnames="model")
def initialise(model: Any, x: jax.Array, key: jax.Array) -> Variables:
    """Fresh variables for points of the shape of `x[0]`."""
    return cast(Variables, model.init(key, x[:1]))


@functools.partial(jax.jit, static_argnames=("model", "record"))
def train(
    model: Any,
    recipe: Recipe,
    variables: Variables,
    points: Points,
    index: jax.Array,
    key: jax.Array,
    weight: jax.Array | None = None,
    mask: Variables | None = None,
    record: Callable[[Variables], PyTree] | None = None,
) -> Any:
    """Train on the points that `index` names; the others are never touched.

    Args:
        model: a `models.Model`, or a linen module without statistics or dropout.
        recipe: how.
        variables: to begin with.
        points: all points, `x[n, ...]` and `y[n]`.
        index: `[m]` integers, the points to train on.
        key: of the shuffling, the augmentation and dropout.
        weight: `[n]` factor on the loss of each point; None for 1.
        mask: like `variables`, 1 where a parameter may move and 0 where it stays; None for 1.
        record: `variables -> arrays`, what to note after each epoch.

    Returns:
        The variables after the last step; statistics, where the model has any, have moved too. With
        `record`, a pair of these and of what it noted, with an axis of epochs in front.

    Raises:
        InputError: `index` is shorter than a batch.
    """
    num_steps = recipe.num_steps(index.shape[0])
    order_key, augment_key = jax.random.split(key)
    order = shuffled_epochs(order_key, index, recipe.num_epochs, recipe.batch_size)

    loss_fn = loss_of(model, recipe, points, augment_key, weight)
    seen = order, jnp.arange(num_steps)
    if record is None:
        return descend(recipe, variables, loss_fn, seen, mask, has_variables=True)
    step_fn, state = descent(recipe, variables, loss_fn, num_steps, mask, has_variables=True)

    def epoch(state: Any, seen: PyTree) -> tuple[Any, PyTree]:
        state = jax.lax.scan(step_fn, state, seen)[0]
        return state, record(state[0])

    by_epoch = lambda a: a.reshape(recipe.num_epochs, -1, *a.shape[1:])
    steps = jax.tree.map(by_epoch, (seen, jnp.arange(num_steps)))
    (variables, _), noted = jax.lax.scan(epoch, state, steps)
    return variables, noted


def loss_of(
    model: Any,
    recipe: Recipe,
    points: Points,
    key: jax.Array,
    weight: jax.Array | None = None,
) -> Callable[[Variables, tuple[jax.Array, jax.Array]], tuple[jax.Array, Variables]]:
    """The loss of a step in training: `(variables, (rows, step)) -> (mean, variables)`.

    Args:
        model: see `train`; its statistics, where it has any, have moved in what comes back.
        recipe: for augmentation and label smoothing.
        points: all points.
        key: of augmentation and dropout; each step has its own.
        weight: `[n]` factor on the loss of each point; None for 1.
    """

    def loss_fn(variables: Variables, seen: tuple[jax.Array, jax.Array]) -> Any:
        rows, step_index = seen
        x, own_key = points.x[rows], jax.random.fold_in(key, step_index)
        if recipe.augment:
            x = crop_and_flip(own_key, x)
        scores, moved = in_training(model, variables, x, jax.random.fold_in(own_key, 1))
        losses = cross_entropy(scores, points.y[rows])
        if recipe.label_smoothing:
            of_all = -jnp.mean(jax.nn.log_softmax(scores), axis=1)
            losses = losses + recipe.label_smoothing * (of_all - losses)
        return jnp.mean(losses if weight is None else weight[rows] * losses), moved

    return loss_fn


def descend(
    recipe: Recipe,
    variables: Variables,
    loss_fn: Callable[[Variables, PyTree], Any],
    seen: PyTree,
    mask: Variables | None = None,
    after: Callable[[PyTree, PyTree, jax.Array], PyTree] | None = None,
    has_variables: bool = False,
) -> Variables:
    """The recipe's optimizer on any loss, one compiled scan.

    Args:
        recipe: its optimizer and schedule; batches and epochs are those of `seen`.
        variables: where to start. Only `variables["params"]` moves.
        loss_fn: `(variables, what this step sees) -> scalar`.
        seen: a pytree of arrays whose leading axis is that of the steps.
        mask: like `variables`, 0 where a parameter must not move. It multiplies the finished
            update, so neither momentum nor weight decay moves what it protects.
        after: `(params, what this step saw, learning rate) -> params`, such as a proximal step.
        has_variables: `loss_fn` returns `(scalar, variables)`, whose statistics are kept.

    Returns:
        The variables after the last step.
    """
    num_steps = jax.tree.leaves(seen)[0].shape[0]
    step, state = descent(recipe, variables, loss_fn, num_steps, mask, after, has_variables)
    return cast(Variables, jax.lax.scan(step, state, (seen, jnp.arange(num_steps)))[0][0])


def descent(
    recipe: Recipe,
    variables: Variables,
    loss_fn: Callable[[Variables, PyTree], Any],
    num_steps: int | jax.Array,
    mask: Variables | None = None,
    after: Callable[[PyTree, PyTree, jax.Array], PyTree] | None = None,
    has_variables: bool = False,
) -> tuple[Callable[[Any, Any], tuple[Any, None]], tuple[Variables, PyTree]]:
    """The step of `descend` for `lax.scan`, and its first state."""
    optimizer = recipe.optimizer(num_steps)
    with_variables = loss_fn if has_variables else lambda v, seen: (loss_fn(v, seen), v)

    def step(state: tuple[Any, Any], now: tuple[PyTree, jax.Array]) -> tuple[Any, None]:
        (variables, opt_state), (seen, index) = state, now
        params = variables["params"]
        of_params = lambda params: with_variables(variables | {"params": params}, seen)
        grads, moved = jax.grad(of_params, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        if mask is not None:
            updates = jax.tree.map(jnp.multiply, updates, mask["params"])
        params = optax.apply_updates(params, updates)
        if after is not None:
            params = after(params, seen, recipe.rate(index, num_steps))
        return (moved | {"params": params}, opt_state), None

    return step, (dict(variables), optimizer.init(variables["params"]))


@functools.partial(jax.jit, static_argnames=("model",))
def predict(model: Any, params: Variables, x: jax.Array) -> jax.Array:
    """Logits `[n, num_classes]` of points `[n, ...]`, `chunk_size()` in memory at a time."""
    return in_chunks(lambda points: logits(model, params, points), x)


def in_chunks(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`function` of a batch of points, `chunk_size()` of them in memory at a time: `[n, ...]`."""
    return jax.lax.map(lambda point: function(point[None])[0], x, batch_size=chunk_size())


def chunk_size() -> int:
    """Images at a time where nothing else decides: what a CPU's caches hold, or an accelerator."""
    return 50 if jax.default_backend() == "cpu" else 500


def logits(model: Any, params: Variables, x: jax.Array) -> jax.Array:
    """Logits `[batch, num_classes]` of images that fit into memory together."""
    return cast(jax.Array, model.apply(params, x))


def in_training(
    model: Any, variables: Variables, x: jax.Array, key: jax.Array
) -> tuple[jax.Array, Variables]:
    """Logits of a model in training, and its variables, whose statistics have moved."""
    step = getattr(model, "step", None)
    if step is None:
        return logits(model, variables, x), variables
    return cast(tuple[jax.Array, Variables], step(variables, x, key))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Loss of each point, accurate however small it is.

    Written as `softplus(logsumexp of the other logits - own logit)`. The usual difference of two
    numbers near the own logit rounds losses below 1e-7 to 0 in float32, and then the points that a
    model is surest of, which are those that a forget-set search looks for, can not be ranked.

    Args:
        logits: `[n, num_classes]`.
        labels: `[n]` integers, checked on the host.

    Returns:
        `[n]`.
    """
    is_own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    own = jnp.sum(jnp.where(is_own, logits, 0.0), axis=-1)
    others = jax.nn.logsumexp(jnp.where(is_own, -jnp.inf, logits), axis=-1)
    return jax.nn.softplus(others - own)
