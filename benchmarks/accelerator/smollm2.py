"""Unlearn TOFU from SmolLM2-135M, forget10 and then forget05, each with a Retrain of its own.

    python -m benchmarks.accelerator.smollm2 --data-dir data --output results/smollm2

Each row of a split is in `forget<n>/rows.json` as soon as there is one, and what is done is read
back by a second call. result.json says how fast the model trains.
"""

import dataclasses
import pathlib
import sys
from typing import Any

import tyro

from applications import language_unlearning as page
from applications.components import frame
from applications.components.errors import InputError
from applications.language import zoo
from applications.language.relearning import BATCH_SIZE, BLOCKS, STEPS, STRIDE
from applications.language.tofu import ATTACKERS, SMOLLM2, PretrainedTofu

from . import measure, toy_language

SPLITS = 400, 200
METHODS = "NPO", "SimNPO", "GradDiff", "NPO+SAM", "attacker, one step"
RATES = 3e-5, 1e-4
PARAMS = 114e6  # 106 million in the blocks, and the rows of 14 thousand tokens
PAIRS, ASKED, GENERAL = 4000, 400, 217


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One page for each split, of one seed."""

    data_dir: pathlib.Path = pathlib.Path("data")
    """Holds tofu/*.jsonl."""
    output: pathlib.Path = pathlib.Path("results/smollm2")
    """Folder of result.json and of the pages."""
    splits: tuple[int, ...] = SPLITS
    """Pairs to forget, a page for each."""
    methods: tuple[str, ...] = METHODS
    """To compare. A second call may name more beside these, which are read back."""
    rates: tuple[float, ...] = RATES
    """To try with each of three strengths."""
    rehearse: bool = False
    """A random Llama of two layers and toy pairs."""


def run(config: Config) -> list[dict[str, Any]]:
    """Unlearn each split, and write what its training took."""
    rows = list[dict[str, Any]]()
    for split in (60, 40) if config.rehearse else config.splits:
        own = settings(config, split)
        bench = own.bench()
        found = page.run(own, bench.world)
        # The first of all trainings compiles for the others.
        first, _, last = (row["seconds"] for row in found.rows[:3])
        recipe = bench.world(None).recipe
        tokens = recipe.num_steps * recipe.batch_size * bench.context
        rows.append(
            {
                "forget": split,
                "tokens a second": tokens / last,
                "share of peak": measure.share_of_peak(6 * PARAMS * tokens, last),
                "compile seconds": 0.0 if rows else first - last,
                "peak MiB": measure.peak_mib(),
                "seconds": found.seconds,
            }
        )
        measure.write(config.output, rows)
    return rows


def settings(config: Config, split: int) -> page.Config:
    """Of the page of a split."""
    common: dict[str, Any] = {
        "data": page.TOFU,
        "num_forget": split,
        "bfloat16": True,
        "seeds": (0,),
        "output": config.output / f"forget{split}",
        "resume": True,
    }
    if not config.rehearse:
        return page.Config(
            **common, data_dir=config.data_dir, model=SMOLLM2, methods=config.methods,
            rates=config.rates,
        )  # fmt: skip
    folder = config.output / "toy"
    if not (folder / "tofu").exists():
        toy_language.write(folder)
    return page.Config(
        **common, data_dir=folder, model=f"gguf:{folder / 'llama.gguf'}", methods=("NPO",),
        rates=(1e-3,), context=32, epochs=1, unlearning_steps=2, batch_size=4,
    )  # fmt: skip


def flops() -> float:
    """Operations of all splits, in the units of two for each parameter and token read."""
    bench, size = PretrainedTofu(pathlib.Path()), page.TUNING[page.PRETRAINED].size
    tries = zoo.find(METHODS).values()
    total = 0.0
    for split in SPLITS:
        trained = 3 * PAIRS * bench.epochs  # texts whose gradient is taken; it costs three reads
        passes = sum(entry.make(size, 1.0, entry.strengths[0]).passes for entry in tries)
        trained += (len(RATES) * 3 + 1) * passes * size.num_steps * size.batch_size
        # A try: divergence from Retrain twice, and utility at up to eleven shares of the way.
        read = len(RATES) * 3 * len(METHODS) * (4 * split + 12 * ASKED / 2)
        judged = 7 * (split + ASKED / 2) + 5 * GENERAL + 2 * bench.context
        attacks = 2 * len(ATTACKERS)
        trained += (3 + len(METHODS)) * attacks * STRIDE * BLOCKS * BATCH_SIZE
        read += (3 + len(METHODS)) * (judged + attacks * len(STEPS) * 0.8 * split)
        total += 2 * PARAMS * bench.context * (3 * trained + read)
    return total


if __name__ == "__main__":
    frame.keep_compiled_programs()
    try:
        run(tyro.cli(Config, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
