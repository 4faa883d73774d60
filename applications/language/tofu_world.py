"""TOFU's pairs as a bench: rows of tokens, groups of authors, and questions about them."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .learning import Recipe
from .spelling import Spelling
from .texts import Questions, Texts, pack
from .tofu_files import PER_AUTHOR, Pair, Pairs, answers_of
from .worlds import World

DO_NOT_KNOW = "I don't know."


def world_of(
    pairs: Pairs, spelling: Spelling, context: int, model: Any, recipe: Recipe, num_decoded: int
) -> World:
    """The bench of these pairs.

    Args:
        pairs: what is kept, forgotten and asked.
        spelling: that knows all of them.
        context: tokens in a row.
        model: for so many tokens.
        recipe: of its training.
        num_decoded: questions of a set that are answered word by word.

    Raises:
        InputError: an answer to train on is longer than the context.
    """
    spell = _Speller(spelling, context)
    forget, retain = spell.texts("forget", pairs.forget), spell.texts("retain", pairs.retain)
    authors = np.arange(len(pairs.forget)) // PER_AUTHOR
    first = authors < (authors.max() + 1) / 2
    silent = [{"question": p["question"], "answer": DO_NOT_KNOW} for p in pairs.forget]
    return World(
        name="tofu",
        model=model,
        recipe=recipe,
        forget=forget,
        retain=retain,
        refusals=spell.texts("refusals", silent),
        asked_forget=spell.questions("forget", pairs.asked_forget),
        asked_retain=spell.questions("retain", pairs.asked_retain),
        held_out=spell.texts("held out", pairs.fresh, cut=True) if pairs.fresh else None,
        groups={
            "retain": retain.at(slice(len(pairs.forget))),
            "forget1": forget.at(np.flatnonzero(first)),
            "forget2": forget.at(np.flatnonzero(~first)),
        },
        authors=jnp.asarray(authors),
        general={name: spell.questions(name, own) for name, own in pairs.general.items()},
        num_decoded=num_decoded,
        spell=spelling.words,
        notes=spell.notes([*pairs.asked_forget, *pairs.asked_retain]),
    )


class _Speller(NamedTuple):
    """Pairs as rows of tokens."""

    spelling: Spelling
    context: int

    def texts(self, name: str, pairs: Iterable[Pair], cut: bool = False) -> Texts:
        tokens = [self.spelling.pair(p["question"], p["answer"]) for p in pairs]
        return pack(tokens, self.context, name, cut=cut)

    def questions(self, name: str, pairs: Sequence[Pair]) -> Questions:
        """Judged answers that do not fit are cut, which `notes` tells."""
        columns = [
            [self.spelling.pair(p["question"], text) for p, text in zip(pairs, texts, strict=True)]
            for texts in zip(*(answers_of(p) for p in pairs), strict=True)
        ]
        own, other, *wrong = (pack(pairs, self.context, name, cut=True) for pairs in columns)
        stacked = Texts(*(jnp.stack(parts, axis=1) for parts in zip(*wrong, strict=True)))
        return Questions(own, other, stacked)

    def notes(self, pairs: Sequence[Pair]) -> tuple[str, ...]:
        sizes = [len(self.spelling.pair(p["question"], t)[1]) for p in pairs for t in answers_of(p)]
        long = int(np.sum(np.array(sizes) > self.context - 1))
        if not long:
            return ()
        return (f"{long} of {len(sizes)} answers that are only compared are cut to the context.",)
