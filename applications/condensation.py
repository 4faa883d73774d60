"""Condense a data set to a few synthetic points, and judge them by training fresh networks.

    python -m applications.condensation --output results/condensation

Each method is a gradient of the synthetic points; `condensing/` has one file for each family, with
its source. docs/applications/condensation.md has results and what they mean.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from .components import frame
from .components.calibration import QUALITY, quality
from .components.errors import InputError, check_names, check_numbers
from .components.judging import Judge
from .components.models import make
from .components.points import Dataset, Points
from .components.work import Run
from .condensing import condensation_report
from .condensing.baselines import SELECTORS, k_means, real_rows
from .condensing.condensation_report import JUDGES, Result
from .condensing.condense import Budget, Course, condense
from .condensing.methods import METHODS, Recipe, recipes
from .condensing.synthetic import ConvNet, Real, centred, first_rows, labelled, make_real

PAGE = "condensation"
BASELINES = ("random", *SELECTORS, "k_means", "all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """Condense a data set by every method, and train fresh networks on each result."""

    methods: tuple[str, ...] = ()
    """Which to compare; none given takes all that suit the data. The first six are trivial."""
    ipc: int = 1
    """Synthetic points per class."""
    num_test: int | None = None
    """Judge on the first points only, this many."""
    half: bool = False
    """Average 2x2 pixels first: a quarter of the time, at some loss of accuracy."""
    num_steps: int = 300
    """Outer steps of each method, at most."""
    seconds: float | None = None
    """Seconds of learning of each method, at most; compilation is not counted."""
    checkpoints: int = 3
    """Sets to judge along the way: the last, that of half the way, of a quarter ...; the first
    network judges all of them, which shows accuracy against time, the others judge the last."""
    image_rate: float | None = None
    """Step size of the images of every method, to tune it; not given: each method's own."""
    label_rate: float | None = None
    """The same of learned label vectors."""
    width: int = 16
    """Channels of the networks, where --model is not given."""
    networks: int = 3
    """Fresh networks to train on each set."""
    judge_steps: int = 300
    """Training steps of each."""
    seeds: tuple[int, ...] = (0,)
    """One independent condensation for each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("methods", self.methods, (*BASELINES, *METHODS))
        check_numbers(self, "ipc", "num_steps", "checkpoints", "width", "networks", "judge_steps")
        check_numbers(self, "seconds", "image_rate", "label_rate", "num_test")
        if self.checkpoints > self.num_steps:
            raise InputError(
                f"`checkpoints` must not exceed `num_steps` = {self.num_steps}, got"
                f" {self.checkpoints}."
            )


class Setting(NamedTuple):
    """What all methods share.

    Attributes:
        dataset: to condense.
        real: its training points by class.
        recipes: the methods that suit it.
        judges: by title.
        test: points to judge on.
    """

    dataset: Dataset
    real: Real
    recipes: dict[str, Recipe]
    judges: dict[str, Judge]
    test: Points


def run(config: Config, dataset: Any = None, model: Any = None) -> Result:
    """Condense and judge for each seed; then print and write the results.

    `dataset` and `model` take the place of those of `config`: see `frame.Config.load`, `build`.

    Raises:
        InputError: a setting or a data file cannot be used, or a class has fewer than `ipc` points.
        NonFiniteError: a condensation or a network diverged.
    """
    setting = prepared(config, config.load(dataset), model)
    known = [*BASELINES, *setting.recipes]
    names = config.methods or tuple(known)
    check_names("methods", names, known)
    decided = {"model": setting.judges["network"].model.name, "methods": names}
    steps = len(config.seeds) * config.num_steps * len({*names} - {*BASELINES})
    rows, sets = list[dict[str, Any]](), dict[tuple[str, int], dict[str, np.ndarray]]()
    with Run(PAGE, config, setting.dataset, decided, steps) as page:
        for seed in config.seeds:
            for name in names:
                tick = functools.partial(page.tick, f"seed {seed}: {name}")
                make = functools.partial(condensed, config, setting, name, seed, tick)
                kept = page.keep(f"seed{seed}/{name}", make)
                rows += table_rows(kept, name, seed)
                if name != "all":
                    sets[name, seed] = {part: kept[part] for part in ("x", "y", "rows")}
        result = Result(rows, sets, setting.dataset, page.seconds)
    condensation_report.write(result, page)
    return result


def prepared(config: Config, dataset: Dataset, model: Any) -> Setting:
    """Check the data and build the networks."""
    if dataset.kind == "tokens":
        raise InputError("`data` must be images or vectors: tokens have no gradient.")
    if config.half:
        dataset = halved(dataset)
    real = make_real(dataset.train, dataset.num_classes, config.ipc)
    images = dataset.kind == "images"
    if model is None and config.model is None:
        net = functools.partial(ConvNet, dataset.num_classes, config.width, vectors=not images)
        plain, smooth = make(net(), dataset), make(net(smooth=True), dataset)
    else:
        plain = smooth = config.build(dataset, model)
    if set(jax.eval_shape(plain.init, jax.random.key(0), real.x[:1])) != {"params"}:
        raise InputError("`model` must have no statistics such as BatchNorm's: use another norm.")
    judges = {
        name: Judge(network, config.judge_steps, 3e-3, config.networks, adam=True)
        for name, network in zip(JUDGES, (plain, plain, make("mlp", dataset)), strict=True)
    }
    test = Points(*(array[: config.num_test] for array in config.judged(dataset))).on_device()
    return Setting(dataset, real, recipes(plain, smooth, config.ipc, images), judges, test)


def condensed(
    config: Config, setting: Setting, name: str, seed: int, tick: Callable[[], None]
) -> dict[str, Any]:
    """One method with one seed: its sets, and their accuracies on the way."""
    key, train = jax.random.key(seed), setting.dataset.train
    if name == "all":
        vectors = np.asarray(centred(setting.dataset.num_classes))[train.y]
        found = judged(setting, [Points(train.x, vectors)], train.y, key)
        return found | {"step": [0], "seconds": [0.0], "compile_seconds": [0.0]}
    course, rows = course_of(config, setting, name, key, tick)
    found = {part: [getattr(point, part) for point in course] for part in Course._fields[:3]}
    sets = [Points(point.outer.x, point.outer.y) for point in course]
    found |= judged(setting, sets, course[-1].outer.labels, key)
    return found | {"x": sets[-1].x, "y": sets[-1].y, "rows": rows}


def course_of(
    config: Config, setting: Setting, name: str, key: jax.Array, tick: Callable[[], None]
) -> tuple[list[Course], np.ndarray]:
    """The sets of one method on its way, and the owner's rows of the last, -1 if it is not real."""
    begin, train, num_classes = time.perf_counter(), setting.dataset.train, len(setting.real.table)
    first = np.asarray(first_rows(setting.real, config.ipc, frame.named_key(key, "start")))
    own = frame.named_key(key, "methods", name)
    if name in setting.recipes:
        recipe, outer = setting.recipes[name], labelled(setting.real.x[first], num_classes)
        budget = Budget(config.num_steps, config.checkpoints, config.seconds or math.inf)
        course = condense(with_rates(recipe, config), setting.real, outer, budget, own, tick)
        return course, np.full(len(first), -1)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(own)))
    if name == "k_means":
        outer, owners = k_means(train, num_classes, config.ipc, rng), np.full(len(first), -1)
    else:
        random = name == "random"
        rows = first if random else real_rows(name, train, num_classes, config.ipc, rng)
        outer, owners = (
            labelled(setting.real.x[rows], num_classes),
            setting.dataset.train_rows[rows],
        )
    return [Course(0, time.perf_counter() - begin, 0.0, outer)], owners


def judged(setting: Setting, sets: list[Points], labels: Any, key: jax.Array) -> dict[str, Any]:
    """Accuracies: of the first judge for every set on the way, of the others for the last.

    Beside them `quality`, `[networks, 3]`, of the judge by cross-entropy, whose outputs are logits.
    """
    network, classes, mlp = (
        functools.partial(judge.logits, test=setting.test, key=frame.named_key(key, title))
        for title, judge in setting.judges.items()
    )
    last = sets[-1]
    said = [network(points) for points in sets], [classes(Points(last.x, labels))], [mlp(last)]
    truth = np.asarray(setting.test.y)
    right = lambda logits: 100 * np.mean(logits.argmax(axis=2) == truth, axis=1)
    found: dict[str, Any] = {
        title: [right(logits) for logits in own] for title, own in zip(JUDGES, said, strict=True)
    }
    worth = [quality(logits, truth) for logits in said[1][0]]
    return found | {"quality": [[*own.values()] for own in worth]}


def with_rates(recipe: Recipe, config: Config) -> Recipe:
    """A recipe with the step sizes that the settings give."""
    if config.image_rate is not None:
        recipe = dataclasses.replace(recipe, image_rate=config.image_rate)
    if config.label_rate is not None and recipe.label_rate:
        recipe = dataclasses.replace(recipe, label_rate=config.label_rate)
    return recipe


def table_rows(kept: dict[str, np.ndarray], name: str, seed: int) -> list[dict[str, Any]]:
    """A row for each checkpoint of a piece."""
    rows: list[dict[str, Any]] = [
        {"method": name, "seed": seed, "checkpoint": number + 1, "step": int(step)}
        | {part: float(kept[part][number]) for part in ("seconds", "compile_seconds")}
        | {JUDGES[0]: kept[JUDGES[0]][number].tolist()}
        for number, step in enumerate(kept["step"])
    ]
    rows[-1] |= {judge: kept[judge][0].tolist() for judge in JUDGES[1:]}
    rows[-1] |= dict(zip(QUALITY, kept["quality"].T.tolist(), strict=True))
    return rows


def halved(dataset: Dataset) -> Dataset:
    """Images of means of 2x2 pixels; an odd last row or column is dropped."""
    if dataset.kind != "images":
        raise InputError("`half` is for images, and the data are vectors.")

    def half(points: Points) -> Points:
        n, height, width, channels = points.x.shape
        x = points.x[:, : height // 2 * 2, : width // 2 * 2]
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
        return Points(x, points.y)

    train, validation, test = map(half, (dataset.train, dataset.validation, dataset.test))
    return dataclasses.replace(dataset, train=train, validation=validation, test=test)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
