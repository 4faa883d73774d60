"""Sets that ask no network: real points of each class, and the centres of each class."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import sklearn.cluster

from ..components.geometry import farthest, herd, nearest_to_means
from ..components.points import Points
from .synthetic import Synthetic, labelled

SELECTORS: dict[str, Callable[[np.ndarray, int, np.random.Generator], Any]] = {
    "herding": lambda x, ipc, rng: herd(x, ipc),
    "k_center": lambda x, ipc, rng: farthest(jnp.asarray(x), rng.integers(len(x)), ipc),
    "k_means_real": nearest_to_means,
}
"""`(points of a class [n, d], how many, rng) -> rows`; by pixels, where the papers also take
embeddings."""


def real_rows(name: str, train: Points, num_classes: int, ipc: int, rng: Any) -> np.ndarray:
    """Rows that a selector takes of each class, `[C * ipc]`, ordered by class."""
    flat = train.x.reshape(len(train.x), -1)
    members = [np.flatnonzero(train.y == label) for label in range(num_classes)]
    chosen = [own[np.asarray(SELECTORS[name](flat[own], ipc, rng))] for own in members]
    return np.concatenate(chosen)


def k_means(train: Points, num_classes: int, ipc: int, rng: np.random.Generator) -> Synthetic:
    """The k-means centres of each class: no real points."""
    flat, seed = train.x.reshape(len(train.x), -1), int(rng.integers(2**31))
    centres = [
        sklearn.cluster.KMeans(ipc, n_init=1, random_state=seed).fit(flat[train.y == label])
        for label in range(num_classes)
    ]
    x = np.concatenate([means.cluster_centers_ for means in centres]).astype(np.float32)
    return labelled(jnp.asarray(x.reshape(-1, *train.x.shape[1:])), num_classes)
