"""The command line: `python -m benchmarks.hyper_cleaning --data-dir data`."""

import argparse
import dataclasses
import json
import pathlib

import jax

from applications.components.data import load
from benchmarks.hyper_cleaning.race import race
from benchmarks.hyper_cleaning.report import picture, summary, table
from benchmarks.hyper_cleaning.settings import settings


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=pathlib.Path, default=pathlib.Path("data"))
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("results/cleaning"))
    parser.add_argument("--models", nargs="+", default=["softmax", "cnn"], choices=settings())
    parser.add_argument("--algorithms", nargs="+", help="default: all that are tuned for the model")
    parser.add_argument("--share", type=float, default=0.5, help="of wrong labels")
    parser.add_argument("--decay", type=float, help="weight decay; default: the model's own")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    if not 0 < options.share < 1:
        parser.error(f"`--share` must lie between 0 and 1, got {options.share}.")
    if options.decay is not None and not options.decay >= 0:
        parser.error(f"`--decay` must be at least 0, got {options.decay}.")
    if options.seeds < 2:
        parser.error(f"`--seeds` must be at least 2, for a deviation, got {options.seeds}.")
    known = {name for model in options.models for name in settings()[model].learners}
    if unknown := set(options.algorithms or ()) - known:
        parser.error(f"`--algorithms` must be among {sorted(known)}, got {sorted(unknown)}.")
    images = load("fashion_mnist", options.data_dir, num_train=10_000, num_validation=5_000)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.models:
        setting = settings()[name]
        chosen = options.algorithms or setting.learners
        learners = {k: v for k, v in setting.learners.items() if k in chosen}
        decay = setting.decay if options.decay is None else options.decay
        setting = dataclasses.replace(setting, learners=learners, decay=decay)
        rows = race(setting, images, options.share, range(options.seeds))
        means = summary(rows)
        device = jax.devices()[0].device_kind
        content = {
            "device": device, "share": options.share, "decay": decay, "summary": means, "rows": rows
        }  # fmt: skip
        (options.output / f"{name}.json").write_text(json.dumps(content))
        picture(rows, options.output / f"{name}.png")
        print(
            f"\n### {name}, decay {decay:g}, {options.seeds} seeds, {device}\n\n{table(means)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
