"""The rows of the table: what each keeps of a task, and how it trains on that.

A policy is `look -> memory`. Those made by `chosen` give every task the same number of places and
cut older tasks to the points that were chosen first; the reservoirs see each point once.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ..components import geometry
from ..components.points import Points
from ..condensing.condense import Budget, condense
from ..condensing.methods import recipes
from ..condensing.synthetic import make_real, start
from ..coresets import gradients
from ..coresets import memory as streamed
from ..coresets.pool import Pool
from .bilevel_coreset import RULES, Coreset, select
from .look import ATTACK, Look
from .memory import Memory

Policy = Callable[[Look], Memory]
Selector = Callable[[Look, int], np.ndarray]  # positions among the task's points, best first
CONDENSING_STEPS = 100


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to remember.

    Attributes:
        policy: what it keeps; None for nothing.
        slots: places, as a multiple of those of the other rows.
        distill: weight of the squared distance to the logits in memory, as in DER++.
        from_scratch: train a fresh network on the memory alone when a task is over.
        joint: train on all tasks at once, the bound that no memory exceeds but by chance.
    """

    policy: Policy | None
    slots: int = 1
    distill: float = 0.0
    from_scratch: bool = False
    joint: bool = False


def chosen(selector: Selector) -> Policy:
    """Keep what the selector chooses of each task."""

    def policy(look: Look) -> Memory:
        share = min(look.share, len(look.rows))
        return look.keep(look.memory.cut(look.share), selector(look, share))

    return policy


def herding(look: Look, share: int) -> np.ndarray:
    """Points whose mean in the robust network's features follows that of their class."""
    return by_class(look, lambda rows, size: geometry.herd(look.features[rows], size), share)


def craig(look: Look, share: int) -> np.ndarray:
    """Points whose gradients under attack are the nearest ones to those of their class.

    (Mirzasoleiman et al., ICML 2020, with the adversarial gradients of Dolatabadi et al., "l_inf
    robustness and beyond", ECCV 2022. Differs in that points count alike.)
    """
    return by_class(look, lambda rows, size: gradients.craig(look.gradients[rows], size)[0], share)


def grad_match(look: Look, share: int) -> np.ndarray:
    """Points whose gradients under attack sum to that of their class.

    (Killamsetty et al., ICML 2021, otherwise as `craig`.)
    """
    own = look.gradients
    return by_class(look, lambda rows, size: gradients.grad_match(own[rows], size)[0], share)


def by_class(look: Look, choose: Callable[[np.ndarray, int], np.ndarray], share: int) -> np.ndarray:
    """What is chosen of each class, `(its positions, how many) -> which of them`, in turns."""
    classes = [np.flatnonzero(look.labels == label) for label in np.unique(look.labels)]
    ranked = [rows[choose(rows, min(share, len(rows)))] for rows in classes]
    return in_turns(look, np.concatenate(ranked), share)


def k_center(look: Look, share: int) -> np.ndarray:
    """Each point is the farthest in the robust network's features from those before."""
    first = np.random.default_rng([look.seed, look.task]).integers(len(look.labels))
    return np.asarray(geometry.farthest(jnp.asarray(look.features), first, share))


def uniform(look: Look, share: int) -> np.ndarray:
    """At random, equally many of each class as far as that goes."""
    shuffled = np.random.default_rng([look.seed, look.task]).permutation(len(look.labels))
    return in_turns(look, shuffled, share)


def by_coreset(search: Coreset) -> Selector:
    """Choose by a bi-level search."""
    return lambda look, share: select(search, look.pool(search.attacked), share)


def in_turns(look: Look, ranked: np.ndarray, share: int) -> np.ndarray:
    """The first of a ranking of the task's points, class by class in turns."""
    classes = [ranked[look.labels[ranked] == label] for label in np.unique(look.labels)]
    turns = [queue[turn] for turn in range(share) for queue in classes if turn < len(queue)]
    return np.array(turns[:share])


def raer(look: Look, share: int) -> np.ndarray:
    """At random among the points that withstand more than half of an attack's steps.

    (The selection of Mi et al., "Adversarial robust memory-based continual learner", ICCV 2025,
    from descriptions of it. Differs in that points are shared out by class, and that weaker ones
    follow where there are too few.)
    """
    steps, _ = look.difficulty
    weak = np.where(steps > ATTACK.num_steps // 2, 0, ATTACK.num_steps - steps)
    shuffled = np.random.default_rng([look.seed, look.task]).permutation(len(steps))
    return in_turns(look, shuffled[np.argsort(weak[shuffled], kind="stable")], share)


def easy_core(look: Look, share: int) -> np.ndarray:
    """The points with the least gradient in the input.

    ("EasyCore", arXiv 2510.11018, from its abstract. Differs in that the norm is that at the end of
    training, where theirs is the mean over it, and that points are shared out by class.)
    """
    return in_turns(look, np.argsort(look.difficulty[1], kind="stable"), share)


def reservoir(policy: streamed.Policy) -> Policy:
    """Keep what a policy of `coresets.memory` keeps of a stream that is seen once."""

    def keep(look: Look) -> Memory:
        parts = look.stream.rows[: look.task + 1]
        rows, labels = np.concatenate(parts), np.asarray(look.stream.points.y)
        stream = Pool(rows[:, None], labels[rows], look.stream.num_classes)
        # From the start each time: the draws depend on labels alone, and nothing need be saved.
        rng, first = np.random.default_rng(look.seed), 0
        kept = streamed.Memory(np.zeros(0, int), len(look.memory.y))
        for part in parts:
            new = np.arange(first, first + len(part))
            kept, first = policy(stream, kept, new, rng), first + len(part)
        old = look.memory.at(np.flatnonzero(np.isin(look.memory.rows, rows[kept.rows])))
        return look.keep(old, np.flatnonzero(np.isin(look.rows, rows[kept.rows])))

    return keep


def condensed(look: Look) -> Memory:
    """Synthetic images by distribution matching, equally many of each class from its end on."""
    per_class = len(look.memory.y) // look.stream.num_classes
    classes = look.stream.classes[look.task]
    points = Points(np.asarray(look.stream.points.x)[look.rows], look.labels)
    real = make_real(points, len(classes), per_class)
    recipe = recipes(look.model, look.model, per_class)["dm"]
    start_key, key = jax.random.split(look.key)
    found = condense(recipe, real, start(real, per_class, start_key), Budget(CONDENSING_STEPS), key)
    x, labels = found[-1].outer.x, np.repeat(np.arange(len(classes)), per_class)
    x = jnp.clip(x, (0 - look.ball.mean) / look.ball.std, (1 - look.ball.mean) / look.ball.std)
    scores = look.model.apply(look.variables, x) + look.stream.seen_only(look.task)
    return look.memory.added(x, classes[labels], scores, look.task)


def _robust(rule: str, **settings: bool) -> Row:
    return Row(chosen(by_coreset(Coreset(RULES[rule], **settings))))


UNIFORM = chosen(uniform)
RESERVOIR = reservoir(streamed.reservoir)

ROWS: dict[str, Row] = {
    "no_replay": Row(None),
    "reservoir": Row(RESERVOIR),
    "class_balancing": Row(reservoir(streamed.class_balancing)),
    "uniform": Row(UNIFORM),
    "herding": Row(chosen(herding)),
    "k_center": Row(chosen(k_center)),
    "craig": Row(chosen(craig)),
    "grad_match": Row(chosen(grad_match)),
    "clean_coreset": _robust("cg", attacked=False),
    "robust_coreset": _robust("cg"),
    "robust_nystrom": _robust("nystrom"),
    "robust_neumann": _robust("neumann"),
    "robust_hessian_free": _robust("hessian_free"),
    "robust_projected": _robust("cg", projected=True),
    "condensed": Row(condensed),
    "raer": Row(chosen(raer)),
    "easy_core": Row(chosen(easy_core)),
    "gdumb": Row(UNIFORM, from_scratch=True),
    "der": Row(RESERVOIR, distill=0.1),
    "uniform_4x": Row(UNIFORM, slots=4),
    "joint": Row(None, joint=True),
}
