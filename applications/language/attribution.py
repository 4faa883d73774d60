"""Which weights may move: masks by attribution, WAGLE's among them.

WAGLE asks how the forget loss changes with a mask e on the weights, the weights being optimal for
what is kept under that mask. By the implicit function theorem, with `gamma` on the diagonal,

    S = (gamma theta - g_r) * (H_r + gamma I)^-1 g_f          (times 1 / gamma, which no order sees)

and with H = 0 this is the released `(theta - g_r / gamma) * g_f`; as gamma grows it becomes the
`theta * g_f` of SNIP. (Jia et al., "WAGLE", NeurIPS 2024: the released score `snip_advanced`; with
the curvature it is ours.)
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from bilevel import linear

from ..components.errors import InputError
from ..components.settings import is_known, numbers_as_data
from .curvature import fisher_factors
from .learning import Params, Task, mean_loss
from .objectives import CHUNK

Score = Literal[
    "random", "weight", "gradient", "snip", "product", "wagle", "wagle_cg", "wagle_ekfac"
]
CURVED = "wagle_cg", "wagle_ekfac"


@numbers_as_data("share", "gamma")
@dataclasses.dataclass(frozen=True)
class Attribution:
    """Let the weights of the largest scores move, one order over the whole model.

    Attributes:
        score: random; weight, `|theta|`; gradient, `|g_f|`; snip, `|theta g_f|`; product,
            `|g_f g_r|`; or wagle, without curvature, with it by conjugate gradients, or by EKFAC.
        share: of the weights that may move.
        gamma: of wagle; the release has 1e-6, for sums over batches where these are means.

    Raises:
        InputError: `share` is not in (0, 1].
    """

    score: Score = "wagle"
    share: float | jax.Array = 0.8
    gamma: float | jax.Array = 1e-6

    def __post_init__(self) -> None:
        if is_known(self.share) and not 0 < self.share <= 1:
            raise InputError(f"`share` must lie in (0, 1], got {self.share}.")

    def mask(self, task: Task, key: jax.Array) -> Params:
        """True where a weight may move, like the parameters."""
        flat, unravel = ravel_pytree(self.scores(task, key))
        order = jnp.argsort(jnp.argsort(-flat))  # ties go by position, so the count is exact
        count = jnp.round(self.share * flat.size)
        return jax.tree.map(lambda a: a > 0, unravel((order < count).astype(flat.dtype)))

    def scores(self, task: Task, key: jax.Array) -> Params:
        """Like the parameters, >= 0."""
        if self.score == "random":
            return optax.tree.random_like(key, task.original, jax.random.uniform)
        if self.score == "weight":
            return jax.tree.map(jnp.abs, task.original)
        forget, retain = self.slopes(task, key)
        if self.score in CURVED:
            forget = self._solved(task, forget, key)
        parts = {
            "gradient": lambda w, f, r: f,
            "snip": lambda w, f, r: w * f,
            "product": lambda w, f, r: f * r,
        }
        price = 1 / (1 + jnp.asarray(self.gamma, float))
        pull = jnp.where(price > 0, self.gamma * price, 1.0)  # gamma = infinity is SNIP
        wagle = lambda w, f, r: (pull * w - price * r) * f
        one = parts.get(self.score, wagle)
        return jax.tree.map(lambda *a: jnp.abs(one(*a)), task.original, forget, retain)

    def slopes(self, task: Task, key: jax.Array) -> tuple[Params, Params]:
        """Gradients of the mean losses of the texts to forget, and of as many to keep."""
        rows = jax.random.permutation(key, len(task.retain.ids))[: len(task.forget.ids)]
        return tuple(_mean_slope(task, texts) for texts in (task.forget, task.retain.at(rows)))

    def _solved(self, task: Task, forget: Params, key: jax.Array) -> Params:
        """`(H_r + gamma I)^-1 g_f`, on a sample of the texts to keep."""
        rows = jax.random.permutation(key, len(task.retain.ids))[:CHUNK]
        texts = task.retain.at(rows)
        slope = jax.grad(lambda p: mean_loss(task.model, p, texts))
        matvec = lambda v: jax.jvp(slope, (task.original,), (v,))[1]
        if self.score == "wagle_ekfac":
            factors = fisher_factors(task, texts, key)
            inverse = linear.KroneckerFactored(factors, ridge=self.gamma)  # type: ignore[arg-type]
            return inverse.build(matvec, forget)(forget)
        damped = lambda v: optax.tree.add_scale(matvec(v), self.gamma, v)
        return linear.CG(max_steps=20, tolerance=1e-3)(damped, forget).value


def _mean_slope(task: Task, texts: Any) -> Params:
    """The gradient of the mean loss, a part of the texts at a time."""
    tokens = jnp.sum(texts.weights)

    def part(text: Any) -> Params:
        total = lambda p: mean_loss(task.model, p, text) * jnp.sum(text.weights)
        return jax.grad(total)(task.original)

    def add(total: Params, text: Any) -> tuple[Params, None]:
        return optax.tree.add(total, part(text)), None

    size = len(texts.ids) // CHUNK * CHUNK
    chunks = jax.tree.map(lambda a: a[:size].reshape(-1, CHUNK, *a.shape[1:]), texts)
    total = jax.lax.scan(add, optax.tree.zeros_like(task.original), chunks)[0]
    if size < len(texts.ids):
        total = optax.tree.add(total, part(texts.at(slice(size, None))))
    return optax.tree.scale(1 / tokens, total)
