"""One model of a world judged: every metric, and models brought to equal utility."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import metrics, wagle_metrics
from .learning import Params
from .objectives import CHUNK
from .texts import Questions, Texts
from .worlds import World

STEPS_BACK = tuple(np.linspace(1.0, 0.0, 11).tolist())
LEAST_UTILITY = 0.95


class Answers(NamedTuple):
    """What a model says of some texts, on the host.

    Attributes:
        losses: `[n, T]` of each token of the answers, 0 elsewhere.
        is_right: `[n, T]`, whether a token is the likeliest one.
        confidence: `[n, T]`, the probability of the likeliest one.
        mask: `[n, T]`, 1 at tokens of the answers.
    """

    losses: np.ndarray
    is_right: np.ndarray
    confidence: np.ndarray
    mask: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """`[n]`, the mean loss of a token of each answer."""
        return np.asarray(self.losses.sum(axis=1) / self.mask.sum(axis=1))


def in_parts(function: Callable[[Texts], tuple[jax.Array, ...]], texts: Texts) -> list[np.ndarray]:
    """What a function gives for each text, a part at a time.

    The last part is filled up, so that one compiled program serves sets of all sizes.

    Args:
        function: from some texts to arrays whose leading axis is theirs.
        texts: all of them.
    """
    ids, weights = map(np.asarray, texts)
    count = len(ids)
    begins = range(0, count, CHUNK)
    parts = (np.minimum(np.arange(begin, begin + CHUNK), count - 1) for begin in begins)
    found = [function(Texts(ids[rows], weights[rows])) for rows in parts]  # type: ignore[arg-type]
    return [np.concatenate(arrays)[:count] for arrays in zip(*found, strict=True)]


@functools.partial(jax.jit, static_argnums=0)
def _answers(model: Any, params: Params, texts: Texts) -> tuple[jax.Array, ...]:
    logits = model.logits(params, texts.ids[:, :-1])
    log_prob = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(log_prob, texts.ids[:, 1:, None], axis=2)[..., 0]
    right = jnp.argmax(logits, axis=2) == texts.ids[:, 1:]
    return -own * texts.weights[:, 1:], right, jnp.exp(jnp.max(log_prob, axis=2))


def answers(model: Any, params: Params, texts: Texts) -> Answers:
    """What the model says of each text, read a part at a time."""
    found = in_parts(functools.partial(_answers, model, params), texts)
    return Answers(*found, np.asarray(texts.weights)[:, 1:])  # type: ignore[call-arg]


@functools.partial(jax.jit, static_argnums=0)
def _divergence(
    model: Any, retrained: Params, params: Params, texts: Texts
) -> tuple[jax.Array, ...]:
    log_p, log_q = (
        jax.nn.log_softmax(model.logits(p, texts.ids[:, :-1])) for p in (retrained, params)
    )
    each = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=2)
    return (jnp.sum(each * texts.weights[:, 1:], axis=1),)


def divergence(model: Any, retrained: Params, params: Params, texts: Texts) -> float:
    """Mean over the answers' tokens of `KL(p_retrained || p)`, summed over the vocabulary."""
    (sums,) = in_parts(functools.partial(_divergence, model, retrained, params), texts)
    return float(np.sum(sums) / np.sum(texts.weights))


@functools.partial(jax.jit, static_argnums=0)
def decode(model: Any, params: Params, texts: Texts) -> jax.Array:
    """The likeliest continuation of each question, `[n, length]`, the question included."""
    if hasattr(model, "decode"):
        return model.decode(params, texts)

    def step(ids: jax.Array, place: jax.Array) -> tuple[jax.Array, None]:
        said = jnp.argmax(model.logits(params, ids)[:, place], axis=-1)
        told = jnp.where(place + 1 < texts.starts, texts.ids[:, place + 1], said)
        return ids.at[:, place + 1].set(told), None

    return jax.lax.scan(step, texts.ids, jnp.arange(texts.ids.shape[1] - 1))[0]


def rouge(world: World, params: Params, texts: Texts) -> float:
    """Mean ROUGE-L recall of the likeliest continuations, each as long as its answer at most.

    Of words where the world can spell, else of tokens; of the first `world.num_decoded` texts.
    """
    texts = texts.at(slice(world.num_decoded))
    said = np.asarray(decode(world.model, params, texts))
    scores = []
    for row, ids, mask in zip(said, np.asarray(texts.ids), np.asarray(texts.weights), strict=True):
        start, true = int(np.argmax(mask > 0)), ids[mask > 0]
        answer = row[start : start + len(true)]
        scores.append(metrics.rouge_recall(world.words(answer), world.words(true)))
    return float(np.mean(scores))


class Known(NamedTuple):
    """What all models of a seed are compared with.

    Attributes:
        retrained: the parameters of Retrain.
        ratio: its truth ratios on the questions to forget.
        wagle_ratio: the same by WAGLE's rule.
        kept: mean probability of the original model on the questions to keep.
    """

    retrained: Params
    ratio: np.ndarray
    wagle_ratio: np.ndarray
    kept: float

    @classmethod
    def of(cls, world: World, original: Params, retrained: Params) -> "Known":
        """Read the two models."""
        losses = _ratio_losses(world, retrained, world.asked_forget)
        return cls(
            retrained,
            metrics.truth_ratios(*losses).ratio,
            wagle_metrics.truth_ratio(*losses),
            kept_probability(world, original),
        )


def _ratio_losses(world: World, params: Params, asked: Questions) -> tuple[Any, Any]:
    right = answers(world.model, params, asked.paraphrase).mean
    count, wrong, length = asked.perturbed.ids.shape
    flat = Texts(*(a.reshape(count * wrong, length) for a in asked.perturbed))
    return right, answers(world.model, params, flat).mean.reshape(count, wrong)


def kept_probability(world: World, params: Params) -> float:
    """The one number by which models are brought to equal utility."""
    return metrics.probability(answers(world.model, params, world.asked_retain.answer).mean)


def stepped_back(
    world: World, known: Known, original: Params, params: Params
) -> tuple[Params, float]:
    """The model as far as utility allows on the way from the original to the unlearned one.

    The largest of eleven shares of the way at which the probability of the answers to keep is at
    least 95 % of the original's, so that methods are compared at equal utility. (UWC: Wang et al.,
    "Unlearning with Control", 2024.) NaN in the model stops at the original.
    """
    for share in STEPS_BACK:
        mixed = jax.tree.map(
            lambda a, b, s=share: (1 - s) * a + s * b if s else a, original, params
        )
        if kept_probability(world, mixed) >= LEAST_UTILITY * known.kept:
            return mixed, share
    return original, 0.0


def divergences(world: World, known: Known, params: Params) -> dict[str, float]:
    """From Retrain, by group, and over all groups to forget."""
    own = {
        f"KL {name}": divergence(world.model, known.retrained, params, texts)
        for name, texts in world.groups.items()
    }
    parts = [value for name, value in own.items() if name != "KL retain"]
    return own | {"KL forget": float(np.mean(parts))}


def judge(world: World, known: Known, params: Params) -> dict[str, float]:
    """Every metric of one model; those of texts never seen only where the world has some."""
    forget, retain = (
        answers(world.model, params, asked.answer)
        for asked in (world.asked_forget, world.asked_retain)
    )
    asked = _ratio_losses(world, params, world.asked_forget)
    ratios = metrics.truth_ratios(*asked)
    kept = _kept(world, params, retain)
    return {
        **divergences(world, known, params),
        "log10 FQ": metrics.forget_quality(ratios.ratio, known.ratio),
        "truth ratio": ratios.on_forget,
        "p forget": metrics.probability(forget.mean),
        "p retain": kept[0],
        "ROUGE forget": rouge(world, params, world.asked_forget.answer),
        "ROUGE retain": kept[1],
        "truth retain": kept[2],
        "utility": metrics.harmonic_mean(kept),
        "ES": metrics.extraction_strength(forget.is_right, forget.mask),
        "WAGLE FQ": wagle_metrics.quality(wagle_metrics.truth_ratio(*asked), known.wagle_ratio),
        "WAGLE accuracy": wagle_metrics.accuracy(*asked),
        "WAGLE MIA": wagle_metrics.membership(
            (retain.losses, retain.mask), (forget.losses, forget.mask)
        ),
        **_on_general(world, params, kept),
        **_on_fresh(world, params, forget),
    }


def _kept(world: World, params: Params, retain: Answers) -> list[float]:
    """Probability, ROUGE-L and truth ratio on questions to keep: TOFU's utility has them."""
    ratios = metrics.truth_ratios(*_ratio_losses(world, params, world.asked_retain))
    said = rouge(world, params, world.asked_retain.answer)
    return [metrics.probability(retain.mean), said, ratios.on_retain]


def _on_general(world: World, params: Params, kept: list[float]) -> dict[str, float]:
    """The parts of model utility that are about the world, and the utility of all parts."""
    found: dict[str, float] = {}
    for name, asked in world.general.items():
        right, wrong = _ratio_losses(world, params, asked)
        found |= {
            f"p {name}": metrics.normalised_probability(right, wrong),
            f"ROUGE {name}": rouge(world, params, asked.answer),
            f"truth {name}": metrics.truth_ratios(right, wrong).on_retain,
        }
    return found | ({"MU": metrics.harmonic_mean([*kept, *found.values()])} if found else {})


def _on_fresh(world: World, params: Params, forget: Answers) -> dict[str, float]:
    """Membership of what was to be forgotten, and calibration, by texts that were never seen."""
    if world.held_out is None:
        return {}
    fresh = answers(world.model, params, world.held_out)
    tokens = fresh.mask > 0
    return {
        "Min-k AUC": metrics.area(
            metrics.min_k(forget.losses, forget.mask), metrics.min_k(fresh.losses, fresh.mask)
        ),
        "ECE": metrics.calibration_error(fresh.confidence[tokens], fresh.is_right[tokens]),
    }
