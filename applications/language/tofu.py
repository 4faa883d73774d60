"""TOFU from scratch: invented authors, a small network, and a Retrain that is one.

Questions and answers `full[0:440]` are kept and `full[3800:4000]`, ten authors, are forgotten: the
ones that have paraphrased and perturbed answers on both sides. The authors before them,
`full[3600:3800]`, are never trained on. (Maini et al., "TOFU", 2024; the data are MIT licensed.)
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..components.errors import InputError, check_numbers
from .gpt import GPT
from .learning import Recipe
from .texts import Questions, Texts, pack
from .worlds import World

FILES = "full", "retain_perturbed", "forget10_perturbed"
PER_AUTHOR = 20
FRESH = slice(3600, 3800)
MOST_RETAIN, MOST_FORGET = 440, 200
MARKS = "<question>", "<answer>", "<end>"
DO_NOT_KNOW = "I don't know."
WRONG = 5

Pair = Mapping[str, Any]
Tokens = list[int]


@dataclasses.dataclass(frozen=True)
class Tofu:
    """How much of it, and by which network.

    Attributes:
        folder: that holds `full.jsonl`, `retain_perturbed.jsonl`, `forget10_perturbed.jsonl`.
        num_retain: pairs to keep, 440 at most.
        num_forget: pairs to forget, 200 at most.
        num_tokens: of the byte-pair vocabulary, which is learned on these pairs.
        context: tokens in a row; a question that leaves no room loses its beginning.
        epochs: of the original model; Retrain takes as many steps.
        batch_size: of training.
        rate: of training.
        width: of the network.
        num_layers: of the network.

    Raises:
        InputError: a number is out of its range.
    """

    folder: pathlib.Path
    num_retain: int = MOST_RETAIN
    num_forget: int = MOST_FORGET
    num_tokens: int = 2000
    context: int = 104
    epochs: int = 30
    batch_size: int = 32
    rate: float = 2e-3
    width: int = 128
    num_layers: int = 3

    def __post_init__(self) -> None:
        numbers = [field.name for field in dataclasses.fields(self) if field.name != "folder"]
        check_numbers(self, *numbers)
        check_numbers(self, "num_forget", least=2 * PER_AUTHOR, strict=False)  # two groups
        for name, most in (("num_retain", MOST_RETAIN), ("num_forget", MOST_FORGET)):
            if getattr(self, name) > most:
                raise InputError(f"`{name}` must be at most {most}, got {getattr(self, name)}.")

    def world(self, key: jax.Array) -> World:
        """The bench; all seeds have the same texts."""
        del key
        return self._world

    @functools.cached_property
    def _world(self) -> World:
        full, kept, gone = (read(self.folder / f"{name}.jsonl") for name in FILES)
        retain = full[: self.num_retain]
        forget = full[4000 - self.num_forget : 4000]
        asked = [*(p for p in kept if p["question"] in {r["question"] for r in retain})]
        spelling = Spelling(self.num_tokens, [*retain, *forget])
        packed = functools.partial(self._texts, spelling)
        gone = gone[len(gone) - self.num_forget :]
        forget_texts, authors = packed("forget", forget), np.arange(self.num_forget) // PER_AUTHOR
        first = authors < (authors.max() + 1) / 2
        silent = [{"question": p["question"], "answer": DO_NOT_KNOW} for p in forget]
        steps = -(-(len(retain) + len(forget)) * self.epochs // self.batch_size)
        unseen = [spelling.pair(p["question"], p["answer"]) for p in full[FRESH]]
        fresh = pack(unseen[: self.num_forget], self.context, "held out", cut=True)
        retain_texts = packed("retain", retain)
        return World(
            name="tofu",
            model=GPT(spelling.size, self.context, self.width, self.num_layers),
            recipe=Recipe(steps, self.batch_size, self.rate),
            forget=forget_texts,
            retain=retain_texts,
            refusals=packed("refusals", silent),
            asked_forget=self._questions(spelling, "forget", gone),
            asked_retain=self._questions(spelling, "retain", asked[: self.num_forget]),
            held_out=fresh,
            groups={
                "retain": retain_texts.at(slice(self.num_forget)),
                "forget1": forget_texts.at(np.flatnonzero(first)),
                "forget2": forget_texts.at(np.flatnonzero(~first)),
            },
            authors=jnp.asarray(authors),
            num_decoded=40,
            spell=spelling.words,
            notes=self._notes(spelling, [*gone, *asked]),
        )

    def _texts(self, spelling: "Spelling", name: str, pairs: Iterable[Pair]) -> Texts:
        return pack([spelling.pair(p["question"], p["answer"]) for p in pairs], self.context, name)

    def _questions(self, spelling: "Spelling", name: str, pairs: Sequence[Pair]) -> Questions:
        """Judged answers that do not fit are cut, which `_notes` tells."""
        columns = [
            [spelling.pair(p["question"], text) for p, text in zip(pairs, texts, strict=True)]
            for texts in zip(*(answers_of(p) for p in pairs), strict=True)
        ]
        own, other, *wrong = (pack(pairs, self.context, name, cut=True) for pairs in columns)
        stacked = Texts(*(jnp.stack(parts, axis=1) for parts in zip(*wrong, strict=True)))
        return Questions(own, other, stacked)

    def _notes(self, spelling: "Spelling", pairs: Sequence[Pair]) -> tuple[str, ...]:
        sizes = [len(spelling.pair(p["question"], t)[1]) for p in pairs for t in answers_of(p)]
        long = int(np.sum(np.array(sizes) > self.context - 1))
        if not long:
            return ()
        return (f"{long} of {len(sizes)} answers that are only compared are cut to the context.",)


class Spelling:
    """A byte-pair vocabulary, learned on pairs of question and answer.

    Args:
        num_tokens: at most; 256 bytes and three marks are in it in any case.
        pairs: to learn it on.

    Raises:
        InputError: the package `tokenizers` is not installed.
    """

    def __init__(self, num_tokens: int, pairs: Sequence[Pair]) -> None:
        try:
            import tokenizers
            from tokenizers import decoders, models, pre_tokenizers, trainers
        except ImportError as error:
            raise InputError(
                "`data` tofu needs the package tokenizers: `pip install 'bilevel[language]'`."
            ) from error
        self._coder = tokenizers.Tokenizer(models.BPE())
        self._coder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._coder.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=num_tokens,
            special_tokens=list(MARKS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        self._coder.train_from_iterator(
            (p[k] for p in pairs for k in ("question", "answer")), trainer
        )
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
        """Lower-case words of letters and digits up to the first end mark, as ROUGE takes them."""
        end = np.flatnonzero(tokens == self._marks[-1])
        text = self._coder.decode([int(t) for t in (tokens[: end[0]] if end.size else tokens)])
        return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def answers_of(pair: Pair) -> list[str]:
    """The answer, the same in other words, and the wrong ones."""
    return [pair["answer"], pair["paraphrased_answer"], *pair["perturbed_answer"][:WRONG]]


def read(path: pathlib.Path) -> list[Pair]:
    """Pairs from a file of JSON lines.

    Raises:
        InputError: it is missing, a line is no JSON object, or a field is missing.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise InputError(
            f"`data-dir` must hold tofu/, but {path} cannot be read: {error.strerror}."
        ) from error
    pairs: list[Pair] = []
    for number, line in enumerate(lines, start=1):
        try:
            pair = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path} line {number} is damaged: {error}.") from error
        if not isinstance(pair, dict) or not {"question", "answer"} <= set(pair):
            raise InputError(f"{path} line {number} must have a question and an answer.")
        pairs.append(pair)
    return pairs
