"""The files of TOFU, and which of their pairs are forgotten, kept and asked.

(Maini et al., "TOFU", 2024; the data are MIT licensed.)
"""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..components.errors import InputError

PER_AUTHOR = 20
WRONG = 5
ASKED_RETAIN, ASKED_FORGET = "retain_perturbed", "forget10_perturbed"
GENERAL = {"real authors": "real_authors_perturbed", "world facts": "world_facts_perturbed"}

Pair = Mapping[str, Any]


class Pairs(NamedTuple):
    """What a bench is made of.

    Attributes:
        retain: to keep.
        forget: to forget.
        fresh: that no model is trained on.
        asked_retain: of `retain` those with the same in other words and wrong answers.
        asked_forget: the same of `forget`.
        general: questions about the world by name, which have wrong answers only.
        missing: files that `general` would need and that are not there.
    """

    retain: list[Pair]
    forget: list[Pair]
    fresh: list[Pair]
    asked_retain: list[Pair]
    asked_forget: list[Pair]
    general: dict[str, list[Pair]]
    missing: tuple[str, ...] = ()

    def each(self) -> Iterator[tuple[str, str]]:
        """Every question with every answer that a bench spells, its refusals excepted."""
        for pair in [*self.retain, *self.forget, *self.fresh]:
            yield pair["question"], pair["answer"]
        for pairs in (self.asked_retain, self.asked_forget, *self.general.values()):
            for pair in pairs:
                for answer in answers_of(pair):
                    yield pair["question"], answer


def few(folder: pathlib.Path, num_retain: int, num_forget: int, fresh: slice) -> Pairs:
    """Of the first and the last authors some, all of them with questions that can be asked.

    Args:
        folder: of the files.
        num_retain: pairs to keep, from the first one.
        num_forget: pairs to forget, up to the last one.
        fresh: where the pairs lie that nobody is trained on.

    Raises:
        InputError: a file is missing or damaged, or has too few pairs.
    """
    full = _full(folder, num_retain + num_forget)
    kept, gone = (read(folder / f"{name}.jsonl", True) for name in (ASKED_RETAIN, ASKED_FORGET))
    retain, forget = full[:num_retain], full[-num_forget:]
    unseen = full[fresh][:num_forget]
    return Pairs(retain, forget, unseen, *_asked(folder, retain, forget, kept, gone), {})


def whole(folder: pathlib.Path, num_forget: int, num_held_out: int) -> Pairs:
    """All pairs: the last ones are forgotten, those before are held out, the others are kept.

    Questions about real authors and the world are there where both files are.

    Args:
        folder: of the files.
        num_forget: pairs to forget.
        num_held_out: pairs that nobody is trained on.

    Raises:
        InputError: a file is missing or damaged, or has too few pairs.
    """
    full = _full(folder, num_forget + num_held_out + 1)
    kept, gone = (read(folder / f"{name}.jsonl", True) for name in (ASKED_RETAIN, ASKED_FORGET))
    last, before = len(full) - num_forget, len(full) - num_forget - num_held_out
    retain, fresh, forget = full[:before], full[before:last], full[last:]
    paths = {name: folder / f"{file}.jsonl" for name, file in GENERAL.items()}
    missing = tuple(path.name for path in paths.values() if not path.exists())
    general = {} if missing else {name: read(path, True) for name, path in paths.items()}
    asked = _asked(folder, retain, forget, kept, gone)
    return Pairs(retain, forget, fresh, *asked, general, missing)


def answers_of(pair: Pair) -> list[str]:
    """The answer, the same in other words, and the wrong ones.

    Where there are no other words, as about real authors, the answer stands for them.
    """
    other = pair.get("paraphrased_answer", pair["answer"])
    return [pair["answer"], other, *pair["perturbed_answer"][:WRONG]]


def read(path: pathlib.Path, asked: bool = False) -> list[Pair]:
    """Pairs from a file of JSON lines.

    Args:
        path: of the file.
        asked: whether its pairs must have wrong answers, all of them as many.

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
        if asked:
            wrong = pair.get("perturbed_answer", [])
            count = len(wrong[:WRONG]) if isinstance(wrong, list) else 0
            needed = len(pairs[0]["perturbed_answer"][:WRONG]) if pairs else max(count, 1)
            if count != needed:
                raise InputError(f"{path} line {number} must have {needed} perturbed answers.")
        pairs.append(pair)
    return pairs


def _full(folder: pathlib.Path, least: int) -> list[Pair]:
    full = read(folder / "full.jsonl")
    if len(full) < least:
        raise InputError(f"{folder / 'full.jsonl'} must have {least} pairs, got {len(full)}.")
    return full


def _asked(
    folder: pathlib.Path,
    retain: Sequence[Pair],
    forget: Sequence[Pair],
    kept: Sequence[Pair],
    gone: Sequence[Pair],
) -> tuple[list[Pair], list[Pair]]:
    """What is asked of the pairs to keep, some of them, and of each to forget, in their order."""
    of = lambda pair: (pair["question"], pair["answer"])
    retained, known = {of(pair) for pair in retain}, {of(pair): pair for pair in gone}
    asked = [pair for pair in kept if of(pair) in retained]
    if not asked:
        raise InputError(f"{folder / ASKED_RETAIN}.jsonl asks about none of the pairs to keep.")
    for pair in forget:
        if of(pair) not in known:
            raise InputError(
                f"{folder / ASKED_FORGET}.jsonl lacks {pair['question']!r}, which is to be"
                f" forgotten. It has {len(gone)} pairs: forget so many at most."
            )
    return asked, [known[of(pair)] for pair in forget]
