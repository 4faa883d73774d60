"""The command line: see the package.

This process counts operations on the CPU alone: it must not take the device's memory, which belongs
to the pieces.
"""

import dataclasses
import pathlib
import subprocess
import sys
from typing import Literal

import jax
import rich.console
import rich.table
import tyro

from . import __doc__ as about
from . import toy
from .pieces import PIECES, Piece
from .runner import ARCHIVE, Plan, run_all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Which pieces to run, and for how long."""

    output: pathlib.Path = pathlib.Path("results/accelerator")
    """Folder of the results; a second call goes on with what an earlier one left there."""
    data_dir: pathlib.Path = pathlib.Path("data")
    """Folder with cifar-10-batches-bin, cifar-100-binary, fashion_mnist and tofu, as published."""
    budget: float = 480.0
    """Seconds for all pieces together; one that does not fit into what is left is skipped."""
    only: tuple[str, ...] = ()
    """Names of the pieces to run; none named means all."""
    plan: bool = False
    """Print what would run, and run nothing."""
    platform: Literal["gpu", "tpu", "cpu"] | None = None
    """Estimate for this kind of device; for the one that is there if not given."""
    rehearse: bool = False
    """Run every piece at toy size, without data, on whatever device there is."""


def main(arguments: list[str] | None = None) -> int:
    """Run the pieces; the status is 1 if one of them failed."""
    config = tyro.cli(Config, args=arguments, prog="python -m benchmarks.accelerator",
                      description=about)  # fmt: skip
    console = rich.console.Console()
    names = [piece.name for piece in PIECES]
    if unknown := sorted({*config.only} - {*names}):
        console.print(f"error: `only` must name some of {', '.join(names)}, got {unknown[0]!r}.")
        return 2
    chosen = [piece for piece in PIECES if piece.name in (config.only or names)]
    platform = config.platform or _platform()
    jax.config.update("jax_platforms", "cpu")
    plan = Plan(config.output, config.data_dir, config.budget, platform, config.rehearse)
    if config.plan:
        console.print(_table(plan, chosen))
        return 0
    config.output.mkdir(parents=True, exist_ok=True)
    toy.write(config.output / "toy.npz")
    failed = False
    for record in run_all(plan, chosen):
        spent = f", {record['seconds']:.0f} s" if "seconds" in record else ""
        console.print(f"{record['piece']}: {record['status']}{spent}", highlight=False)
        failed |= record["status"].startswith(("failed", "ended"))
    console.print(f"Everything small is in {config.output / ARCHIVE}.", highlight=False)
    return int(failed)


def _platform() -> str:
    """What the pieces will see, asked in a process of its own, which gives the device back."""
    command = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]


def _table(plan: Plan, pieces: list[Piece]) -> rich.table.Table:
    table = rich.table.Table(title=f"On {plan.platform}, {plan.budget:.0f} s")
    for header in ("piece", "TFLOP", "seconds", "limit", "fits"):
        table.add_column(header, justify="left" if header == "piece" else "right")
    left = plan.budget
    for piece in pieces:
        flops = piece.flops()
        seconds = plan.estimate(piece)
        missing = plan.missing(piece)
        fits = not missing and seconds <= min(left, piece.limit)
        left -= seconds if fits else 0
        said = "yes" if fits else f"no {missing[0]}" if missing else "no"
        numbers = f"{flops / 1e12:.0f}", f"{seconds:.0f}", f"{piece.limit:.0f}"
        table.add_row(piece.name, *numbers, said)
    return table


if __name__ == "__main__":
    sys.exit(main())
