"""Every way to choose a coreset, under one name each: `METHODS[name](study, size) -> Coreset`."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..components import geometry, networks, scores
from ..components.errors import check_numbers
from ..components.frame import named_key
from ..components.models import Model
from ..components.training import Recipe, in_chunks
from . import gradients, greedy, searches
from .kernels import check_kernel, median_bandwidth, rbf, tangent_kernel
from .levels import Weighted
from .original import Original
from .pool import Coreset, Pool, by_class, one_hot
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
        settings: of the kernel proxy.
        scores: what methods found for each point, by name.
    """

    def __init__(self, pool: Pool, model: Model, key: jax.Array, settings: Settings) -> None:
        self.pool, self.model, self.settings, self._key = pool, model, settings, key
        self.targets = jax.device_put(one_hot(pool.y, pool.num_classes))
        self.scores: dict[str, np.ndarray] = {}
        # How the networks that scores of difficulty look at are trained.
        self._recipe = Recipe(NUM_EPOCHS, min(64, len(pool.y)), learning_rate=0.05)

    def key(self, name: str) -> jax.Array:
        """The key that belongs to a name, whatever else a run has."""
        return named_key(self._key, name)

    def rng(self, name: str) -> np.random.Generator:
        """The same for NumPy."""
        return np.random.default_rng(np.asarray(jax.random.key_data(self.key(name))))

    def score(self, name: str, make: Callable[["Study"], Any]) -> np.ndarray:
        """A number for each point, `[n]`, which the results keep under this name."""
        if name not in self.scores:
            self.scores[name] = np.asarray(make(self))
        return self.scores[name]

    @functools.cached_property
    def kernel(self) -> jax.Array:
        """The proxy's kernel matrix; an InputError if it is not positive definite."""
        if self.settings.kernel == "ntk":
            kernel = tangent_kernel(self.model, jnp.asarray(self.pool.x), self.key("kernel"))
        else:
            flat = self.pool.flat
            kernel = rbf(flat, flat, self.settings.bandwidth * median_bandwidth(flat))
        check_kernel(kernel, self.settings.ridge)
        return kernel

    @functools.cached_property
    def early(self) -> Any:
        """A few networks early in their training; leaves have an axis of networks in front."""
        return scores.early(*self._training("early"))

    @functools.cached_property
    def trained(self) -> Any:
        """A few trained networks."""
        return scores.networks(*self._training("trained"))

    @property
    def history(self) -> jax.Array:
        """What a few networks got right after each epoch, `[networks, epochs, n]`."""
        return scores.history(*self._training("history"))

    def _training(self, name: str) -> tuple[Any, ...]:
        return self.model, self._recipe, self.pool.points, self.key(name), NUM_NETWORKS

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


def uniform(study: Study, size: int) -> Coreset:
    """At random, without replacement."""
    return Coreset.of(study.rng("uniform").permutation(len(study.pool.y))[:size])


def balanced(study: Study, size: int) -> Coreset:
    """At random, with equal class counts as far as the pool and the size allow."""
    rng = study.rng("balanced")
    draw = lambda members, count: rng.permutation(len(members))[:count]
    return by_class(draw, study.pool.y, size, rng)


def k_center(study: Study, size: int) -> Coreset:
    """Each point is the farthest from those before: covers outliers too."""
    first = study.rng("k_center").integers(len(study.pool.y))
    return Coreset.of(geometry.farthest(jnp.asarray(study.pool.flat), first, size))


def k_means(study: Study, size: int) -> Coreset:
    """The point nearest to each of `size` k-means centres."""
    return Coreset.of(geometry.nearest_to_means(study.pool.flat, size, study.rng("k_means")))


def moderate(study: Study, size: int) -> Coreset:
    """Class by class, points at the usual distance from the mean feature of their class."""

    def score(study: Study) -> np.ndarray:
        first = jax.tree.map(lambda leaf: leaf[0], study.trained)
        features = in_chunks(lambda x: study.model.features(first, x), study.pool.points.x)
        return scores.moderate(features, study.pool.y)

    unusual = study.score("moderate", score)
    usual_first = lambda members, count: np.argsort(unusual[members], kind="stable")[:count]
    return by_class(usual_first, study.pool.y, size)


def _hardest(name: str, score: Callable[[Study], Any]) -> Method:
    """The points with the highest score, which suits large coresets; ties go to the lower row."""
    return lambda study, size: Coreset.of(
        np.argsort(-study.score(name, score), kind="stable")[:size]
    )


def _by_class(select: Callable[[np.ndarray, int], Any], of: Callable[[Study], Any]) -> Method:
    """Class by class, from rows of what the study knows of the points, such as gradients."""

    def choose(study: Study, size: int) -> Coreset:
        known = of(study)
        return by_class(lambda rows, count: select(known[rows], count), study.pool.y, size)

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


_GRADIENT = operator.attrgetter("gradient")
METHODS: dict[str, Method] = {
    "uniform": uniform,
    "balanced": balanced,
    "k_center": k_center,
    "k_means": k_means,
    "herding": _by_class(geometry.herd, lambda study: study.pool.flat),
    "kernel_herding": _in_kernel(geometry.kernel_herd),
    "facility_location": _in_kernel(geometry.facility_location),
    "moderate": moderate,
    "el2n": _hardest("el2n", lambda s: scores.el2n(s.model, s.early, s.pool.points)),
    "grand": _hardest("grand", lambda s: scores.grand(s.model, s.early, s.pool.points)),
    "forgetting": _hardest("forgetting", lambda s: scores.forgetting(s.history)),
    "uncertainty": _hardest(
        "uncertainty", lambda s: scores.uncertainty(s.model, s.trained, s.pool.points)
    ),
    "craig": _by_class(gradients.craig, _GRADIENT),
    "grad_match": _by_class(gradients.grad_match, _GRADIENT),
    "glister": _by_class(gradients.glister, _GRADIENT),
    "coreset": coreset,
    "coreset_weighted": functools.partial(weighted, coreset),
    "uniform_weighted": functools.partial(weighted, uniform),
    "original": original,
    "bcsr": _searched("bcsr", searches.BCSR, 0.01),
    "pbcs": _searched("pbcs", searches.PBCS, 0.01),
    "direct": _searched("direct", searches.Direct, 0.3),
    "all": everything,
}
