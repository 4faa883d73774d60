"""Texts as tokens and back, by byte pairs learned on the texts or by a pretrained model's."""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from ..components.errors import InputError
from .pretrained import CHAT, Pretrained

MARKS = "<question>", "<answer>", "<end>"
START, END = CHAT

Tokens = list[int]


class Spelling(Protocol):
    """See the module."""

    @property
    def size(self) -> int:
        """Tokens in the vocabulary."""
        ...

    def pair(self, question: str, answer: str) -> tuple[Tokens, Tokens]:
        """A question and an answer with their marks."""
        ...

    def words(self, tokens: np.ndarray) -> list[str]:
        """Lower-case words of letters and digits up to the first end mark, as ROUGE takes them."""
        ...


class Learned:
    """A byte-pair vocabulary, learned on texts.

    Args:
        num_tokens: at most; 256 bytes and three marks are in it in any case.
        texts: to learn it on.

    Raises:
        InputError: the package `tokenizers` is not installed.
    """

    def __init__(self, num_tokens: int, texts: Iterable[str]) -> None:
        library = _library()
        self._coder = library.Tokenizer(library.models.BPE())
        self._coder.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._coder.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=num_tokens,
            special_tokens=list(MARKS),
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        self._coder.train_from_iterator(texts, trainer)
        vocabulary = self._coder.get_vocab()
        self._marks = [vocabulary[mark] for mark in MARKS]

    @property
    def size(self) -> int:
        """Tokens in it."""
        return int(self._coder.get_vocab_size())

    def pair(self, question: str, answer: str) -> tuple[Tokens, Tokens]:
        """A question and an answer with their marks."""
        asks, answers, end = self._marks
        encode = lambda text: self._coder.encode(text).ids
        return [asks, *encode(question), answers], [*encode(answer), end]

    def words(self, tokens: np.ndarray) -> list[str]:
        """See `Spelling`."""
        return _words(self._coder, tokens, self._marks[-1])


class Chat:
    """A pretrained model's own tokens; a question and its answer are the two turns of a chat.

        <|im_start|>user
        QUESTION<|im_end|>
        <|im_start|>assistant
        ANSWER<|im_end|>

    The system's turn, which the model's template begins with where none is given, is left out. Only
    tokens that occur in the given texts are there, with numbers of their own.

    Args:
        pretrained: the model.
        pairs: every question and answer that will be spelled.

    Attributes:
        rows: `[size]`, the number of each token in the whole vocabulary.

    Raises:
        InputError: the package `tokenizers` is not installed, or a text cannot be spelled.
    """

    def __init__(self, pretrained: Pretrained, pairs: Iterable[tuple[str, str]]) -> None:
        library = _library()
        number = {token: place for place, token in enumerate(pretrained.tokens)}
        self._coder = library.Tokenizer(library.models.BPE(number, pretrained.merges))
        split = library.pre_tokenizers
        self._coder.pre_tokenizer = split.Sequence(
            [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
        )
        self._coder.decoder = library.decoders.ByteLevel()
        self._start, self._end = number[START], number[END]
        used = {self._start, self._end}
        for pair in pairs:
            used.update(*self._whole(*pair))
        self.rows = np.array(sorted(used))
        self._place = {int(row): place for place, row in enumerate(self.rows)}

    @property
    def size(self) -> int:
        """Tokens that occur."""
        return len(self.rows)

    def pair(self, question: str, answer: str) -> tuple[Tokens, Tokens]:
        """A question and an answer with their marks.

        Raises:
            InputError: one of them was not among the texts, and has a token that none of them has.
        """
        try:
            asked, said = ([self._place[n] for n in part] for part in self._whole(question, answer))
        except KeyError as error:
            token = self._coder.id_to_token(error.args[0])
            raise InputError(
                f"The vocabulary lacks {token!r}, of {question!r} or {answer!r}: it has the tokens"
                " of the texts that it was made for. Name this one among them."
            ) from error
        return asked, said

    def words(self, tokens: np.ndarray) -> list[str]:
        """See `Spelling`."""
        return _words(self._coder, self.rows[tokens], self._end)

    def _whole(self, question: str, answer: str) -> tuple[Tokens, Tokens]:
        """The two turns, in the numbers of the whole vocabulary."""
        turn = lambda text: [self._start, *self._encode(text)]
        asked = [*turn(f"user\n{question}"), self._end, *self._encode("\n"), *turn("assistant\n")]
        return asked, [*self._encode(answer), self._end]

    def _encode(self, text: str) -> Tokens:
        ids: Tokens = self._coder.encode(text).ids
        if self._coder.decode(ids) != text:  # bytes without a token would be left out silently
            raise InputError(f"The vocabulary of the model cannot spell {text!r}. Change the text.")
        return ids


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise InputError(
            "`data` tofu needs the package tokenizers: `pip install 'bilevel[language]'`."
        ) from error
    return tokenizers


def _words(coder: Any, tokens: np.ndarray, end: int) -> list[str]:
    ends = np.flatnonzero(tokens == end)
    said = tokens[: ends[0]] if ends.size else tokens
    text = coder.decode([int(token) for token in said])
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()
