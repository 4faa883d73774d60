"""How a network is trained, in numbers, and that descent on any loss in one compiled scan."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import optax

from .errors import InputError
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
