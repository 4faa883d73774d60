"""Texts as arrays of tokens, questions with right and wrong answers, and what can be wrong."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..components.errors import InputError


class Texts(NamedTuple):
    """Token sequences that begin with a question and go on with an answer.

    Attributes:
        ids: `[n, length]` int32, filled up on the right with any token.
        weights: `[n, length]` float32, 1 where a token of the answer stands and 0 elsewhere.
    """

    ids: jax.Array
    weights: jax.Array

    def at(self, rows: jax.Array | np.ndarray | slice) -> "Texts":
        """Some of them, or with an index of more axes, an array of them."""
        return Texts(self.ids[rows], self.weights[rows])

    @property
    def lengths(self) -> jax.Array:
        """`[n]`, tokens of each answer."""
        return jnp.sum(self.weights, axis=-1)

    @property
    def starts(self) -> jax.Array:
        """`[n]` int32, where each answer begins."""
        return jnp.argmax(self.weights > 0, axis=-1)


class Questions(NamedTuple):
    """What truth ratios need: for each question its answer in other words, and wrong answers.

    Attributes:
        answer: `[n, length]` as trained on.
        paraphrase: `[n, length]`.
        perturbed: `[n, wrong, length]`.
    """

    answer: Texts
    paraphrase: Texts
    perturbed: Texts

    def at(self, rows: jax.Array | np.ndarray | slice) -> "Questions":
        """Some of them."""
        return Questions(*(texts.at(rows) for texts in self))


def pack(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    context: int,
    name: str,
    cut: bool = False,
) -> Texts:
    """Pairs of a question and an answer, in tokens, as rows of `context` tokens.

    A question that leaves no room loses its beginning, but for its first token.

    Args:
        pairs: in tokens, the marks that part them included.
        context: tokens in a row.
        name: of the set, for the error.
        cut: cut an answer that is too long, which is right for answers that are only compared.

    Raises:
        InputError: there is none, or an answer does not fit.
    """
    if not pairs:
        raise InputError(f"`{name}` is empty: it needs at least one question with an answer.")
    ids = np.zeros((len(pairs), context), np.int32)
    weights = np.zeros((len(pairs), context), np.float32)
    for row, (question, answer) in enumerate(pairs):
        if len(answer) > context - 1 and not cut:
            raise InputError(
                f"`context` is {context}, and the answer of {name} {row} has {len(answer)} tokens"
                f" and needs one more for its question. Pass a larger `--context`, or shorten it."
            )
        own = list(answer)[: context - 1]
        room = context - len(own)
        asked = [question[0], *question[len(question) - room + 1 :]] if room > 1 else question[:1]
        asked = list(question) if len(question) <= room else asked
        line = [*asked, *own]
        ids[row, : len(line)] = line
        weights[row, len(asked) : len(line)] = 1
    return Texts(jnp.asarray(ids), jnp.asarray(weights))


def check(forget: Texts, retain: Texts, num_tokens: int | None) -> None:
    """Raise an InputError unless the two sets can be told apart and the model knows the tokens.

    Args:
        forget: what to forget.
        retain: what to keep.
        num_tokens: of the vocabulary; None where the model does not say.
    """
    for name, texts in (("forget", forget), ("retain", retain)):
        if not len(texts.ids):
            raise InputError(f"`{name}` is empty: it needs at least one question with an answer.")
        largest = int(texts.ids.max())
        if num_tokens is not None and largest >= num_tokens:
            raise InputError(
                f"`{name}` has the token {largest}, and the vocabulary of the model ends at"
                f" {num_tokens - 1}. Use the tokens that the model was made for."
            )
    lines = {row.tobytes(): place for place, row in enumerate(np.asarray(retain.ids))}
    for place, row in enumerate(np.asarray(forget.ids)):
        if row.tobytes() in lines:
            raise InputError(
                f"`forget` {place} is `retain` {lines[row.tobytes()]} too: no model can forget and"
                " keep the same text. Take it out of one of them."
            )
