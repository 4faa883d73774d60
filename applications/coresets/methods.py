"""Every way to choose a coreset, under one name each: `METHODS[name](study, size) -> Coreset`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from ..components import networks
from ..components.points import Points
from . import dynamics, geometry, gradients, greedy, searches
from .kernels import check_kernel, median_bandwidth, rbf, tangent_kernel
from .levels import Weighted
from .pool import Coreset, Pool, one_hot
from .proxy import Proxy, learn_weights


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the kernel proxy.

    Attributes:
        kernel: "rbf", or "ntk" of a finite network, dearer.
        bandwidth: of "rbf", in median distances between points of the pool.
        ridge: of the proxy's lower level.
        num_candidates: see `greedy.select`.
        weight_rate: see `proxy.learn_weights`.
        weight_steps: likewise.
    """

    kernel: Literal["rbf", "ntk"] = "rbf"
    bandwidth: float = 0.5
    ridge: float = 0.1
    num_candidates: int | None = None
    weight_rate: float = 0.1
    weight_steps: int = 60


class Study:
    """A pool, a seed, and what several methods share: computed once, when first asked for.

    Attributes:
        pool: to choose from.
        seed: of everything random.
        settings: of the kernel proxy.
    """

    def __init__(self, pool: Pool, seed: int, settings: Settings) -> None:
        self.pool, self.seed, self.settings = pool, seed, settings
        self.targets = jax.device_put(one_hot(pool.y, pool.num_classes))

    @functools.cached_property
    def kernel(self) -> jax.Array:
        """The proxy's kernel matrix.

        Raises:
            InputError: it is not positive definite, or the pool has no spread.
        """
        if self.settings.kernel == "ntk":
            model = networks.MLP(self.pool.num_classes, (64,))
            kernel = tangent_kernel(model, self.pool.x, jax.random.key(self.seed))
        else:
            flat = self.pool.flat
            bandwidth = self.settings.bandwidth * median_bandwidth(flat)
            kernel = rbf(flat, flat, bandwidth)
        check_kernel(kernel, self.settings.ridge)
        return kernel

    @functools.cached_property
    def observed(self) -> dynamics.Observed:
        """How a few small networks train on the pool."""
        model = networks.MLP(self.pool.num_classes, (64,))
        points = Points(jnp.asarray(self.pool.x), jnp.asarray(self.pool.y))
        return dynamics.observe(model, points, jax.random.key(self.seed))

    @property
    def gradient(self) -> jax.Array:
        """Gradients of the points in the last layer of one of them."""
        return self.observed.gradient


def coreset(study: Study, size: int) -> Coreset:
    """Greedy on the kernel proxy, all weights 1."""
    settings, count = study.settings, study.settings.num_candidates
    key = None if count is None else jax.random.key(study.seed)
    chosen = greedy.select(
        study.kernel, study.targets, size, settings.ridge, key, num_candidates=count
    )
    return Coreset.unweighted(chosen.rows)


def weighted(choose: "Method", study: Study, size: int) -> Coreset:
    """What another method chose, with weights learned on the proxy."""
    settings, rows = study.settings, choose(study, size).rows
    proxy = Proxy("squared", settings.ridge)
    return learn_weights(
        proxy, study.kernel, study.targets, rows, settings.weight_rate, settings.weight_steps
    )


Method = Callable[[Study, int], Coreset]


def _geometric(select: Callable[[Pool, int, int], Coreset]) -> Method:
    return lambda study, size: select(study.pool, size, study.seed)


def _gradients(select: gradients.Match) -> Method:
    return lambda study, size: gradients.by_class(select, study.gradient, study.pool.y, size)


def _scored(score: dynamics.Score) -> Method:
    return lambda study, size: dynamics.hardest(score, study.pool, study.observed, size)


def _searched(search: Callable[[Weighted], searches.Search], decay: float = 0.01) -> Method:
    def choose(study: Study, size: int) -> Coreset:
        levels = Weighted(networks.MLP(study.pool.num_classes, (32,)), decay)
        return searches.select(search(levels), study.pool, size, study.seed)

    return choose


METHODS: dict[str, Method] = {
    "uniform": _geometric(geometry.uniform),
    "balanced": _geometric(geometry.balanced),
    "k_center": _geometric(geometry.k_center),
    "k_means": _geometric(geometry.k_means),
    "herding": _geometric(geometry.herding),
    "moderate": _geometric(geometry.moderate),
    "el2n": _scored(dynamics.el2n),
    "grand": _scored(dynamics.grand),
    "forgetting": _scored(dynamics.forgetting),
    "uncertainty": _scored(dynamics.uncertainty),
    "craig": _gradients(gradients.craig),
    "grad_match": _gradients(gradients.grad_match),
    "glister": _gradients(gradients.glister),
    "coreset": coreset,
    "coreset_weighted": functools.partial(weighted, coreset),
    "uniform_weighted": functools.partial(weighted, _geometric(geometry.uniform)),
    "bcsr": _searched(searches.BCSR),
    "pbcs": _searched(searches.PBCS),
    "direct": _searched(searches.Direct, decay=0.3),
}
