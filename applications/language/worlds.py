"""What a bench is made of: a model, texts to forget and to keep, and questions about them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .learning import Params, Recipe, Task, epoch_rows, fresh, train
from .texts import Questions, Texts, check


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """A bench of one seed.

    Attributes:
        name: of the bench.
        model: see `gpt.GPT`.
        recipe: of training.
        forget: texts to forget.
        retain: texts to keep.
        refusals: the questions of `forget` with answers that say nothing.
        asked_forget: questions about what to forget.
        asked_retain: about what to keep.
        held_out: texts like those to forget that no model is trained on; None leaves out the
            metrics that need them.
        groups: texts on which the divergence from Retrain is measured, by name; "retain" is one.
        authors: `[n]` int32, to whom each text to forget belongs.
        num_decoded: questions of a set that are answered word by word.
        spell: from tokens to words, for ROUGE; None compares tokens.
        notes: what a reader of the report must know.
        general: questions about the world by name, of which model utility has three parts each.
        start: parameters that every training begins with; None draws fresh ones.
        attackers: rates of those that relearn; None takes `relearning.RATES`.

    Raises:
        InputError: texts to forget and to keep coincide, a set is empty, or the vocabulary lacks
            a token.
    """

    name: str
    model: Any
    recipe: Recipe
    forget: Texts
    retain: Texts
    refusals: Texts
    asked_forget: Questions
    asked_retain: Questions
    held_out: Texts | None
    groups: Mapping[str, Texts]
    authors: jax.Array
    num_decoded: int = 100
    spell: Callable[[np.ndarray], Sequence[str]] | None = None
    notes: tuple[str, ...] = ()
    general: Mapping[str, Questions] = dataclasses.field(default_factory=dict)
    start: Params | None = None
    attackers: tuple[float, ...] | None = None

    def original(self, key: jax.Array) -> Params:
        """The model that is trained on all texts."""
        return self._trained(key, 0)

    def retrained(self, key: jax.Array) -> Params:
        """The model that never saw the texts to forget, trained for as many steps."""
        return self._trained(key, len(self.forget.ids))

    def _trained(self, key: jax.Array, first: int) -> Params:
        """On the texts from `first` on; all trainings are calls of one compiled program."""
        start_key, order_key = jax.random.split(key)
        every = Texts(*map(jnp.concatenate, zip(self.forget, self.retain, strict=True)))
        rows = first + epoch_rows(order_key, len(every.ids) - first, self.recipe)
        start = fresh(self.model, start_key) if self.start is None else self.start
        return train(self.model, self.recipe, start, every, rows)

    @property
    def attack(self) -> Texts:
        """A fifth of the texts to forget, every fifth one: what a relearning attacker has."""
        return self.forget.at(slice(None, None, 5))

    @property
    def benign(self) -> Texts:
        """As many texts to keep: an attacker who means no harm."""
        return self.retain.at(slice(None, len(self.attack.ids)))

    def half(self, which: int) -> "World":
        """The same with every second question and text to judge by: 0 to choose, 1 to report."""
        rows = slice(which, None, 2)
        return dataclasses.replace(
            self,
            asked_retain=self.asked_retain.at(rows),
            groups={name: texts.at(rows) for name, texts in self.groups.items()},
        )

    @property
    def watched(self) -> Texts:
        """Answers to forget that are watched under attack: none that the attacker has."""
        rows = np.arange(len(self.asked_forget.answer.ids))
        return self.asked_forget.answer.at(rows[rows % 5 != 0])

    def words(self, tokens: np.ndarray) -> Sequence[object]:
        """For ROUGE."""
        return tokens.tolist() if self.spell is None else self.spell(tokens)

    def task(self, original: Params) -> Task:
        """What a method is given."""
        return Task(self.model, original, self.forget, self.retain, self.refusals)


def checked(world: World) -> World:
    """The world itself, or an InputError: see `texts.check`."""
    check(world.forget, world.retain, getattr(world.model, "num_tokens", None))
    return world
