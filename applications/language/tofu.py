"""TOFU, invented authors: a small network from scratch or a pretrained one, and a true Retrain.

From scratch, `full[0:440]` is kept and `full[3800:4000]`, ten authors, are forgotten: the ones that
have paraphrased and perturbed answers on both sides. The authors before them, `full[3600:3800]`,
are never trained on. A pretrained model is finetuned on all 4,000 pairs, and Retrain on all but
those to forget.
"""

import dataclasses
import functools
import pathlib

import jax

from ..components.errors import InputError, check_numbers
from . import pretrained, tofu_files
from .gpt import GPT
from .learning import Recipe
from .spelling import Chat, Learned
from .tofu_files import PER_AUTHOR, Pairs
from .tofu_world import DO_NOT_KNOW, world_of
from .worlds import World

FRESH = slice(3600, 3800)
MOST_RETAIN, MOST_FORGET = 440, 200
SMOLLM2, GGUF = "smollm2", "gguf:"
ATTACKERS = 1e-5, 3e-5, 1e-4  # rates that a pretrained model is relearned by


@dataclasses.dataclass(frozen=True)
class Tofu:
    """A small network from scratch.

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
        pairs = tofu_files.few(self.folder, self.num_retain, self.num_forget, FRESH)
        pairs = pairs._replace(asked_retain=pairs.asked_retain[: self.num_forget])
        trained = [*pairs.retain, *pairs.forget]
        texts = [pair[part] for pair in trained for part in ("question", "answer")]
        spelling = Learned(self.num_tokens, texts)
        model = GPT(spelling.size, self.context, self.width, self.num_layers)
        recipe = _recipe(pairs, self.epochs, self.batch_size, self.rate)
        return world_of(pairs, spelling, self.context, model, recipe, num_decoded=40)


@dataclasses.dataclass(frozen=True)
class PretrainedTofu:
    """A pretrained model, finetuned; forget05 is 200 pairs to forget and forget10 is 400.

    Original and Retrain start from the same weights and take as many steps. The embedding has the
    rows of the tokens that occur, so every softmax is the whole one, renormalised over these: exact
    for the probabilities of these texts among texts of these tokens.

    Attributes:
        folder: as of `Tofu`; questions about real authors and the world are asked where their two
            files, `real_authors_perturbed.jsonl` and `world_facts_perturbed.jsonl`, are there.
        source: smollm2, or gguf: and the path of a file.
        num_forget: pairs to forget, 400 at most.
        num_held_out: pairs before those that no model is trained on; 0 trains on all, and leaves
            out the metrics that need texts never seen.
        context: tokens in a row; a question that leaves no room loses its beginning.
        epochs: of the original model; Retrain takes as many steps.
        batch_size: of training.
        rate: of training.
        bfloat16: products of dense layers in bfloat16.

    Raises:
        InputError: a number is out of its range.
    """

    folder: pathlib.Path
    source: str = SMOLLM2
    num_forget: int = 200
    num_held_out: int = 0
    context: int = 144
    epochs: int = 5
    batch_size: int = 32
    rate: float = 3e-4
    bfloat16: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "context", "epochs", "batch_size", "rate")
        check_numbers(self, "num_forget", least=2 * PER_AUTHOR, strict=False)  # two groups
        check_numbers(self, "num_held_out", strict=False)
        if self.source != SMOLLM2 and not self.source.startswith(GGUF):
            raise InputError(
                f"`model` must be {SMOLLM2} or {GGUF}FILE for tofu, got {self.source!r}."
            )

    def world(self, key: jax.Array) -> World:
        """The bench; all seeds have the same texts and begin with the same weights."""
        del key
        return self._world

    @functools.cached_property
    def _world(self) -> World:
        pairs = tofu_files.whole(self.folder, self.num_forget, self.num_held_out)
        own = self.source != SMOLLM2
        found = pretrained.read(
            pathlib.Path(self.source.removeprefix(GGUF)) if own else pretrained.smollm2()
        )
        if self.context > found.context:
            raise InputError(
                f"`context` must be at most {found.context}, for which the model was trained, got"
                f" {self.context}."
            )
        silent = ((pair["question"], DO_NOT_KNOW) for pair in pairs.forget)
        spelling = Chat(found, [*pairs.each(), *silent])
        model = dataclasses.replace(found.model, num_tokens=spelling.size, bfloat16=self.bfloat16)
        recipe = _recipe(pairs, self.epochs, self.batch_size, self.rate)
        world = world_of(pairs, spelling, self.context, model, recipe, num_decoded=100)
        return dataclasses.replace(
            world,
            start=pretrained.sliced(found, spelling.rows),
            attackers=ATTACKERS,
            notes=(*world.notes, *_about(found, spelling, pairs)),
        )


def _recipe(pairs: Pairs, epochs: int, batch_size: int, rate: float) -> Recipe:
    steps = -(-(len(pairs.retain) + len(pairs.forget)) * epochs // batch_size)
    return Recipe(steps, batch_size, rate)


def _about(found: pretrained.Pretrained, spelling: Chat, pairs: Pairs) -> list[str]:
    """What a reader must know of a pretrained model."""
    notes = [
        f"All models start from {found.file.name}, whose weights are {', '.join(found.bits)}; they"
        f" are float32 from there on. Its softmax is over the {spelling.size} of"
        f" {len(found.tokens)} tokens that occur, renormalised."
    ]
    if pairs.missing:
        notes.append(
            f"MU, the utility of nine parts, is left out: {' and '.join(pairs.missing)} are not in"
            " the folder. `utility` has three, of the questions to keep."
        )
    if not pairs.fresh:
        notes.append(
            "No text was held out (`--num-held-out`), so Min-k AUC and ECE, which need texts that"
            " no model has seen, are left out."
        )
    return notes
