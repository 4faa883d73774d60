"""Every way to choose a coreset, under one name each: `METHODS[name](study, size) -> Coreset`."""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..components import networks, scores
from ..components.errors import InputError, check_numbers
from ..components.frame import named_key
from ..components.models import Model, load_name
from ..components.training import Recipe, in_chunks
from . import geometry, gradients, greedy, searches
from .kernels import check_kernel, median_bandwidth, rbf, tangent_kernel
from .levels import Weighted
from .original import Original
from .pool import Coreset, Pool, by_class, check_size, one_hot
from .proxy import Proxy, RidgeSolver, batch_of, optimise

NUM_NETWORKS = 4
NUM_EPOCHS = 20  # of the networks that the scores of difficulty look at


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the kernel proxy."""

    kernel: Literal["rbf", "ntk"] = "rbf"
    """Proxy of the network: ntk is the tangent kernel of --model, which costs more."""
    bandwidth: float = 0.5
    """Of rbf, in median distances; smaller sees more detail and knows less between points."""
    ridge: float = 0.1
    """Of the proxy; larger trusts each point less: raise it for noisy labels."""
    num_candidates: int | None = None
    """Score a random batch of this many points in each greedy step; None scores all."""
    weight_step_size: float = 0.1
    """Step size of learned weights."""
    weight_steps: int = 60
    """Steps of learned weights."""

    def check(self) -> None:
        """Raise an InputError unless all are in their range."""
        names = (field.name for field in dataclasses.fields(Settings) if field.name != "kernel")
        check_numbers(self, *names)


class Study:
    """A pool, a key, and what several methods share: computed once, when first asked for.

    Attributes:
        pool: to choose from.
        model: a network for these points, which scores of difficulty and gradients look at.
        key: of everything random.
        settings: of the kernel proxy.
        scores: what methods found for each point, by name.
    """

    def __init__(self, pool: Pool, model: Model, key: jax.Array, settings: Settings) -> None:
        self.pool, self.model, self.settings, self._key = pool, model, settings, key
        self.targets = jax.device_put(one_hot(pool.y, pool.num_classes))
        self.scores: dict[str, np.ndarray] = {}

    def key(self, name: str) -> jax.Array:
        """The key that belongs to a name, whatever else a run has."""
        return named_key(self._key, name)

    def rng(self, name: str) -> np.random.Generator:
        """The same for NumPy."""
        return np.random.default_rng(np.asarray(jax.random.key_data(self.key(name))))

    @functools.cached_property
    def kernel(self) -> jax.Array:
        """The proxy's kernel matrix.

        Raises:
            InputError: it is not positive definite, or the pool has no spread.
        """
        if self.settings.kernel == "ntk":
            kernel = tangent_kernel(self.model, jnp.asarray(self.pool.x), self.key("kernel"))
        else:
            flat = self.pool.flat
            kernel = rbf(flat, flat, self.settings.bandwidth * median_bandwidth(flat))
        check_kernel(kernel, self.settings.ridge)
        return kernel

    @property
    def recipe(self) -> Recipe:
        """How the networks that methods look at are trained."""
        return Recipe(NUM_EPOCHS, min(64, len(self.pool.y)), learning_rate=0.05)

    @functools.cached_property
    def early(self) -> Any:
        """A few networks early in their training; leaves have an axis of networks in front."""
        args = self.model, self.recipe, self.pool.points, self.key("early")
        return scores.early(*args, num_networks=NUM_NETWORKS)

    @functools.cached_property
    def trained(self) -> Any:
        """A few trained networks."""
        args = self.model, self.recipe, self.pool.points, self.key("trained")
        return scores.networks(*args, num_networks=NUM_NETWORKS)

    @functools.cached_property
    def gradient(self) -> np.ndarray:
        """Gradients of the points in the last layer of an early network, `[n, p]`."""
        first = jax.tree.map(lambda leaf: leaf[0], self.early)
        return gradients.last_layer(self.model, first, self.pool.points)


Method = Callable[[Study, int], Coreset]


def coreset(study: Study, size: int) -> Coreset:
    """Greedy on the kernel proxy, all weights 1."""
    settings = study.settings
    begin = greedy.start(study.kernel, study.targets, settings.ridge)
    key = study.key("candidates")
    return Coreset.of(greedy.select(begin, size, key, settings.num_candidates).rows)


def original(study: Study, size: int) -> Coreset:
    """The published algorithm with the kernel of this study."""
    return Original().select(study.kernel, study.targets, size, study.key("original"))


def weighted(choose: Method, study: Study, size: int) -> Coreset:
    """What another method chose, with weights learned on the proxy."""
    settings, rows = study.settings, choose(study, size).rows
    ridge = settings.ridge
    args = Proxy("squared", ridge), RidgeSolver(ridge), batch_of(study.kernel, study.targets, rows)
    weights, _ = optimise(*args, settings.weight_step_size, settings.weight_steps)
    return Coreset.of(rows, weights)


def everything(study: Study, size: int) -> Coreset:
    """All points of the pool: what a coreset gives up."""
    del size
    return Coreset.of(np.arange(len(study.pool.y)))


def moderate(study: Study, size: int) -> Coreset:
    """Class by class, points at the usual distance from the mean feature of their class."""
    first = jax.tree.map(lambda leaf: leaf[0], study.trained)
    features = in_chunks(lambda x: study.model.features(first, x), study.pool.points.x)
    unusual = study.scores["moderate"] = scores.moderate(features, study.pool.y)
    usual_first = lambda members, count: np.argsort(unusual[members], kind="stable")[:count]
    return by_class(usual_first, study.pool.y, size)


def _el2n(study: Study) -> jax.Array:
    return scores.el2n(study.model, study.early, study.pool.points)


def _grand(study: Study) -> jax.Array:
    return scores.grand(study.model, study.early, study.pool.points)


def _forgetting(study: Study) -> jax.Array:
    args = study.model, study.recipe, study.pool.points, study.key("history")
    return scores.forgetting(scores.history(*args, num_networks=NUM_NETWORKS))


def _uncertainty(study: Study) -> jax.Array:
    return scores.uncertainty(study.model, study.trained, study.pool.points)


def _hardest(name: str, score: Callable[[Study], jax.Array]) -> Method:
    """The points with the highest score, which suits large coresets; ties go to the lower row."""

    def choose(study: Study, size: int) -> Coreset:
        if name not in study.scores:
            study.scores[name] = np.asarray(score(study))
        return Coreset.of(np.argsort(-study.scores[name], kind="stable")[:size])

    return choose


def _placed(name: str, select: Callable[[Pool, int, np.random.Generator], Coreset]) -> Method:
    return lambda study, size: select(study.pool, size, study.rng(name))


def _matched(select: Callable[[np.ndarray, int], Any]) -> Method:
    def choose(study: Study, size: int) -> Coreset:
        gradient = study.gradient
        return by_class(lambda rows, count: select(gradient[rows], count), study.pool.y, size)

    return choose


def _in_kernel(select: Callable[[np.ndarray, int], Any]) -> Method:
    """Class by class, in the kernel of the proxy but without its bi-level problem."""

    def choose(study: Study, size: int) -> Coreset:
        kernel = np.asarray(study.kernel)
        inside = lambda rows, count: select(kernel[np.ix_(rows, rows)], count)
        return by_class(inside, study.pool.y, size)

    return choose


def _searched(name: str, search: Callable[[Weighted], searches.Search], decay: float) -> Method:
    def choose(study: Study, size: int) -> Coreset:
        levels = Weighted(networks.MLP(study.pool.num_classes, (32,)), decay)
        return searches.select(search(levels), study.pool, size, study.key(name))

    return choose


METHODS: dict[str, Method] = {
    "uniform": _placed("uniform", geometry.uniform),
    "balanced": _placed("balanced", geometry.balanced),
    "k_center": _placed("k_center", geometry.k_center),
    "k_means": _placed("k_means", geometry.k_means),
    "herding": _placed("herding", geometry.herding),
    "kernel_herding": _in_kernel(geometry.kernel_herd),
    "facility_location": _in_kernel(geometry.facility_location),
    "moderate": moderate,
    "el2n": _hardest("el2n", _el2n),
    "grand": _hardest("grand", _grand),
    "forgetting": _hardest("forgetting", _forgetting),
    "uncertainty": _hardest("uncertainty", _uncertainty),
    "craig": _matched(gradients.craig),
    "grad_match": _matched(gradients.grad_match),
    "glister": _matched(gradients.glister),
    "coreset": coreset,
    "coreset_weighted": functools.partial(weighted, coreset),
    "uniform_weighted": functools.partial(weighted, _placed("uniform", geometry.uniform)),
    "original": original,
    "bcsr": _searched("bcsr", searches.BCSR, 0.01),
    "pbcs": _searched("pbcs", searches.PBCS, 0.01),
    "direct": _searched("direct", searches.Direct, 0.3),
    "all": everything,
}


def find(names: Collection[str]) -> dict[str, Method]:
    """The methods of these names, and yours as `module.path:Name`.

    Raises:
        InputError: there is no such method, or none is named.
    """
    unknown = [name for name in names if name not in METHODS and ":" not in name]
    if unknown or not names:
        raise InputError(
            f"`methods` must be among {', '.join(METHODS)}, or yours as module.path:Name, got"
            f" {', '.join(unknown) or 'none'}."
        )
    return {name: METHODS.get(name) or as_method(load_name(name, "methods")) for name in names}


def as_method(given: Any) -> Method:
    """A selector from what a user wrote: `(study, size) -> rows`, or a pair of rows and weights.

    A class is made into an object first. What it returns is checked each time.

    Raises:
        InputError: it cannot be called.
    """
    method = given() if isinstance(given, type) else given
    if not callable(method):
        raise InputError(f"A method must be called as `(study, size)`, got {method!r}.")

    def choose(study: Study, size: int) -> Coreset:
        found = method(study, size)
        chosen = found if isinstance(found, Coreset) else None
        if chosen is None:
            chosen = Coreset.of(*found) if isinstance(found, tuple) else Coreset.of(found)
        check_size(size, len(study.pool.y))
        rows = chosen.rows
        if rows.shape != (size,) or len(np.unique(rows)) < size or len(chosen.weights) != size:
            raise InputError(f"{given!r} must return {size} different rows, got {rows.tolist()}.")
        if rows.min() < 0 or rows.max() >= len(study.pool.y):
            raise InputError(
                f"{given!r} must return rows from 0 to {len(study.pool.y) - 1}, got"
                f" {rows.min()} to {rows.max()}."
            )
        return chosen

    return choose
