"""Unlearning by training the forget set on labels that are not its own."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..components.errors import InputError
from ..components.points import Points
from ..components.settings import numbers_as_data
from ..components.training import Recipe, cross_entropy, descend, logits, predict, train
from .batches import epoch_of_step, epochs
from .methods import Task, masked

PyTree = Any
NEW_CLASS = "forgotten"


@numbers_as_data("recipe")
@dataclasses.dataclass(frozen=True)
class RandomLabels:
    """Train on everything, the forget set with new labels drawn in each epoch.

    Labels are uniform over all classes, the true one included, as in the released code of SalUn
    and of Fan et al., ECCV 2024; forgotten and retained points are shuffled together. (Golatkar,
    Achille and Soatto, CVPR 2020.)

    Attributes:
        recipe: of the steps.
    """

    recipe: Recipe

    def __call__(self, task: Task, key: jax.Array) -> PyTree:
        """Unlearn."""
        return _random_labels(self.recipe, task, key, task.mask)


@numbers_as_data("recipe")
@dataclasses.dataclass(frozen=True)
class SalUn:
    """Random labels, but only the weights that the forget set cares most about may move.

    The saliency of a weight is the size of the gradient of the forget set's loss at the original
    model; one threshold holds for all layers. (Fan, Liu, Zhang, Wong, Wei and Liu, ICLR 2024,
    equations 3 to 5.) As in the release, neither momentum nor weight decay moves the other weights.
    Differs from it, on CIFAR-10, in that forgotten and retained points are shuffled together; there
    the batches of the forget set come first in each epoch.

    Attributes:
        recipe: of the steps.
        share: of the weights that may move, in (0, 1]; 1 is `RandomLabels`.

    Raises:
        InputError: `share` is not in (0, 1].
    """

    recipe: Recipe
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"`share` must lie in (0, 1], got {self.share}.")

    def __call__(self, task: Task, key: jax.Array) -> PyTree:
        """Unlearn."""
        saliency = self.saliency(task)
        # Statistics, which no step moves, have no part in the share.
        salient = saliency | {"params": largest_share(saliency["params"], self.share)}
        return _random_labels(self.recipe, task, key, masked(salient, task.mask))

    def saliency(self, task: Task) -> PyTree:
        """`|d/d theta sum_f l(theta; f)|` at the original model, a pytree like it."""
        x, y = task.points.x[task.forget], task.points.y[task.forget]

        def loss_fn(params: PyTree) -> jax.Array:
            return jnp.sum(cross_entropy(predict(task.model, params, x), y))

        return jax.tree.map(jnp.abs, jax.grad(loss_fn)(task.original))


@numbers_as_data("recipe")
@dataclasses.dataclass(frozen=True)
class BoundaryShrink:
    """Train each forgotten point on the wrong class that an attack on it finds nearest.

    The attack is one step of the fast gradient sign method against the original model. Only the
    forget set is trained on. (Chen, Gao, Liu, Peng and Wang, CVPR 2023, section 3.2.) Differs from
    the released code in that the images are neither clipped nor rounded to 1 / 255, since they are
    standardised here; its bound of 0.1 in pixels is 0.1 / deviation here, 0.4 on CIFAR-10.

    Attributes:
        recipe: of the steps.
        bound: size of the attack in standardised pixels; too small finds the true class again.
    """

    recipe: Recipe
    bound: float = 0.3

    def __call__(self, task: Task, key: jax.Array) -> PyTree:
        """Unlearn."""
        x, y = task.points.x[task.forget], task.points.y[task.forget]
        wrong = self.nearest_class(task.model, task.original, x, y)
        relabelled = Points(x, wrong)
        return _train_all(self.recipe, task.model, task.original, relabelled, key, task.mask)

    def nearest_class(self, model: Any, params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        """What `params` takes the attacked images `x[n, ...]` for, `[n]` int32."""

        def loss_fn(x: jax.Array) -> jax.Array:
            return jnp.sum(cross_entropy(predict(model, params, x), y))

        attacked = x + self.bound * jnp.sign(jax.grad(loss_fn)(x))
        return jnp.argmax(predict(model, params, attacked), axis=-1).astype(y.dtype)


@numbers_as_data("recipe")
@dataclasses.dataclass(frozen=True)
class BoundaryExpand:
    """Train the forget set on a class of its own, and take that class away afterwards.

    The classifier gets one more output, whose weights start small and random; only the forget set
    is trained on. (Chen, Gao, Liu, Peng and Wang, CVPR 2023, section 3.3.)

    Attributes:
        recipe: of the steps.
        scale: deviation of the new output's first weights.
    """

    recipe: Recipe
    scale: float = 1e-2

    def __call__(self, task: Task, key: jax.Array) -> PyTree:
        """Unlearn."""
        new_key, train_key = jax.random.split(key)
        model, x = task.model, task.points.x[task.forget]
        width = model.features(task.original, x[:1]).shape[1]
        column = self.scale * jax.random.normal(new_key, (width,))
        start = _with_layer(task.original, {"column": column, "bias": jnp.zeros(())})
        mask = task.mask
        if mask is not None:
            mask = _with_layer(mask, {"column": jnp.ones(width), "bias": jnp.ones(())})
        own = jnp.full(len(x), model.num_classes, jnp.int32)

        def loss_fn(wide: PyTree, rows: jax.Array) -> jax.Array:
            variables, new = _without_layer(wide), wide["params"][NEW_CLASS]
            added = model.features(variables, x[rows]) @ new["column"] + new["bias"]
            outputs = jnp.concatenate([model.apply(variables, x[rows]), added[:, None]], axis=1)
            return jnp.mean(cross_entropy(outputs, own[rows]))

        rows = epochs(train_key, jnp.arange(len(x), dtype=jnp.int32), self.recipe)
        return _without_layer(descend(self.recipe, start, loss_fn, rows, mask))


def largest_share(scores: PyTree, share: float) -> PyTree:
    """1 for the largest `share` of all entries of a pytree together, 0 for the others.

    The number of ones is rounded to a whole one; entries that tie with the last are all kept.
    """
    flat = jnp.concatenate([a.ravel() for a in jax.tree.leaves(scores)])
    threshold = jnp.sort(flat)[flat.size - max(round(share * flat.size), 1)]
    return jax.tree.map(lambda a: (a >= threshold).astype(a.dtype), scores)


def _random_labels(recipe: Recipe, task: Task, key: jax.Array, mask: PyTree | None) -> PyTree:
    order_key, label_key = jax.random.split(key)
    num_points, num_classes = len(task.points.y), task.model.num_classes
    order = epochs(order_key, jnp.concatenate([task.forget, task.retain]), recipe)
    drawn = jax.random.randint(label_key, (recipe.num_epochs, num_points), 0, num_classes)
    is_forgotten = jnp.zeros(num_points, bool).at[task.forget].set(True)
    labels = jnp.where(is_forgotten[None], drawn, task.points.y[None])

    def loss_fn(params: PyTree, seen: tuple[jax.Array, jax.Array]) -> jax.Array:
        rows, epoch = seen
        outputs = logits(task.model, params, task.points.x[rows])
        return jnp.mean(cross_entropy(outputs, labels[epoch, rows]))

    seen = order, epoch_of_step(recipe.num_epochs, len(order))
    return descend(recipe, task.original, loss_fn, seen, mask)


def _train_all(
    recipe: Recipe, model: Any, params: PyTree, points: Points, key: jax.Array, mask: PyTree | None
) -> PyTree:
    """Train on all of `points`, which may be fewer than a batch."""
    recipe = dataclasses.replace(recipe, batch_size=min(recipe.batch_size, len(points.y)))
    rows = jnp.arange(len(points.y), dtype=jnp.int32)
    return train(model, recipe, params, points, rows, key, mask=mask)


def _with_layer(variables: PyTree, layer: PyTree) -> PyTree:
    """With the output of a class of its own for the forget set."""
    return variables | {"params": variables["params"] | {NEW_CLASS: layer}}


def _without_layer(variables: PyTree) -> PyTree:
    params = {name: layer for name, layer in variables["params"].items() if name != NEW_CLASS}
    return variables | {"params": params}
