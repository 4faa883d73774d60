"""Condense a data set to a few synthetic points, and judge them by training fresh networks.

    python -m applications.condensation --output results/condensation

Each method is a gradient of the synthetic points; `condensing/` has one file for each family, with
its source. docs/applications/condensation.md has results and what they mean.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.cluster

from .components import frame
from .components.errors import InputError, check_names, check_numbers
from .components.judging import Judge
from .components.models import Model, make
from .components.points import Dataset, Points
from .components.work import Run
from .condensing import condensation_report
from .condensing.condensation_report import JUDGES, Result
from .condensing.condense import Budget, Course, condense
from .condensing.methods import METHODS, ON_IMAGES, recipes
from .condensing.synthetic import ConvNet, Real, Synthetic, centred, first_rows, labelled, make_real
from .coresets import geometry

PAGE = "condensation"
REAL = ("random", "herding", "k_center", "k_means_real")
"""Baselines that take real points of each class."""
BASELINES = (*REAL, "k_means", "all")


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
        model: to condense for; `smooth` is the same with second derivatives.
        smooth: see there.
        judges: by title.
        test: points to judge on.
    """

    dataset: Dataset
    real: Real
    model: Model
    smooth: Model
    judges: dict[str, Judge]
    test: Points


def run(config: Config, dataset: Any = None, model: Any = None) -> Result:
    """Condense and judge for each seed; then print and write the results.

    Args:
        config: see there.
        dataset: in place of `config.data`: a `components.data.Dataset`, or a mapping of the
            arguments of `components.data.from_arrays`.
        model: in place of `config.model`: what `components.models.make` takes.

    Raises:
        InputError: a setting or a data file cannot be used, or a class has fewer than `ipc` points.
        NonFiniteError: a condensation or a network diverged.
    """
    setting = prepared(config, config.load(dataset), model)
    known = [*BASELINES, *method_names(setting)]
    names = config.methods or tuple(known)
    check_names("methods", names, known)
    learned = sum(name not in BASELINES for name in names)
    rows, sets = list[dict[str, Any]](), dict[tuple[str, int], dict[str, np.ndarray]]()
    decided = {"model": setting.model.name}
    steps = len(config.seeds) * learned * config.num_steps
    with Run(PAGE, config, setting.dataset, decided, steps) as page:
        for seed in config.seeds:
            for name in names:
                kept = page.keep(
                    f"seed{seed}/{name}", lambda n=name, s=seed: piece(config, setting, n, s, page)
                )
                rows += table_rows(kept, name, seed)
                if name != "all":
                    sets[name, seed] = {part: kept[part] for part in ("x", "y", "rows")}
        result = Result(rows, sets, setting.dataset, page.seconds)
    condensation_report.show(result, page)
    condensation_report.write(result, page)
    return result


def prepared(config: Config, dataset: Dataset, model: Any) -> Setting:
    """Check the data and build the networks."""
    if dataset.kind == "tokens":
        raise InputError("`data` must be images or vectors: tokens have no gradient.")
    if config.half:
        if dataset.kind != "images":
            raise InputError("`half` is for images.")
        parts = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
        halves = {name: Points(halved(points.x), points.y) for name, points in parts.items()}
        dataset = dataclasses.replace(dataset, **halves)
    real = make_real(dataset.train, dataset.num_classes, config.ipc)
    if model is None and config.model is None:
        vectors = dataset.kind == "vectors"
        plain, smooth = (
            make(ConvNet(dataset.num_classes, config.width, kind, vectors=vectors), dataset)
            for kind in (False, True)
        )
    else:
        plain = smooth = config.build(dataset, model)
    made = jax.eval_shape(plain.init, jax.random.key(0), real.x[:1])
    if set(made) != {"params"}:
        raise InputError("`model` must have no statistics such as BatchNorm's: use another norm.")
    how = {"num_steps": config.judge_steps, "networks": config.networks, "adam": True}
    mlp = make("mlp", dataset)
    judges = {name: Judge(mlp if name == "mlp" else plain, learning_rate=3e-3, **how)
              for name in JUDGES}  # fmt: skip
    test = Points(*(array[: config.num_test] for array in config.judged(dataset)))
    return Setting(dataset, real, plain, smooth, judges, test.on_device())


def method_names(setting: Setting) -> list[str]:
    """The learning methods that suit the data."""
    images = setting.dataset.kind == "images"
    return [name for name in METHODS if images or name not in ON_IMAGES]


def piece(config: Config, setting: Setting, name: str, seed: int, page: Run) -> dict[str, Any]:
    """Condense by one method with one seed, and judge the sets along its way."""
    key, num_classes = jax.random.key(seed), setting.dataset.num_classes
    judge_key = frame.named_key(key, "judge")
    rows = np.full(num_classes * config.ipc, -1)
    if name == "all":
        x, labels = setting.dataset.train
        found = {"step": [0], "seconds": [0.0], "compile_seconds": [0.0]}
        y = np.asarray(centred(num_classes))[labels]
        return found | judged(setting, [(x, y, labels)], judge_key)
    if name in REAL:
        course, rows = chosen(config, setting, name, key)
    else:
        course = learned_course(config, setting, name, key, page)
    outers = [point.outer for point in course]
    found = {part: [getattr(point, part) for point in course]
             for part in ("step", "seconds", "compile_seconds")}  # fmt: skip
    found |= judged(setting, [(o.x, o.y, o.labels) for o in outers], judge_key)
    owner_rows = np.where(rows < 0, -1, setting.dataset.train_rows[rows])
    return found | {"x": outers[-1].x, "y": outers[-1].y, "rows": owner_rows}


def judged(setting: Setting, sets: list[tuple[Any, Any, Any]], key: jax.Array) -> dict[str, Any]:
    """Accuracies: of the first judge for every set on the way, of the others for the last."""
    found: dict[str, Any] = {}
    for title, judge in setting.judges.items():
        seen = sets if title == JUDGES[0] else sets[-1:]
        own = frame.named_key(key, title)
        found[title] = [
            judge.accuracies(Points(x, labels if title == "classes" else y), setting.test, own)
            for x, y, labels in seen
        ]
    return found


def table_rows(kept: dict[str, np.ndarray], name: str, seed: int) -> list[dict[str, Any]]:
    """A row for each checkpoint of a piece."""
    rows, count = [], len(kept["step"])
    for number in range(count):
        row: dict[str, Any] = {"method": name, "seed": seed, "checkpoint": number + 1}
        row["step"] = int(kept["step"][number])
        row |= {part: float(kept[part][number]) for part in ("seconds", "compile_seconds")}
        row[JUDGES[0]] = kept[JUDGES[0]][number].tolist()
        if number == count - 1:
            row |= {judge: kept[judge][0].tolist() for judge in JUDGES[1:]}
        rows.append(row)
    return rows


def chosen(
    config: Config, setting: Setting, name: str, key: jax.Array
) -> tuple[list[Course], np.ndarray]:
    """Real points of each class as a set, and their rows among the training points."""
    begin = time.perf_counter()
    if name == "random":
        rows = np.asarray(first_rows(setting.real, config.ipc, frame.named_key(key, "start")))
    else:
        selectors: dict[str, Callable[[np.ndarray, np.random.Generator], Any]] = {
            "herding": lambda flat, rng: geometry.herd(flat, config.ipc),
            "k_center": lambda flat, rng: geometry.farthest(
                jnp.asarray(flat), rng.integers(len(flat)), config.ipc
            ),
            "k_means_real": lambda flat, rng: geometry.nearest_to_means(flat, config.ipc, rng),
        }
        rng, train = generator(key, name), setting.dataset.train
        members = [np.flatnonzero(train.y == label) for label in range(len(setting.real.table))]
        flat = train.x.reshape(len(train.x), -1)
        rows = np.concatenate([own[np.asarray(selectors[name](flat[own], rng))] for own in members])
    outer = labelled(setting.real.x[rows], len(setting.real.table))
    return [Course(0, time.perf_counter() - begin, 0.0, outer)], rows


def learned_course(
    config: Config, setting: Setting, name: str, key: jax.Array, page: Run
) -> list[Course]:
    """The synthetic sets of one method along its way."""
    if name == "k_means":
        begin = time.perf_counter()
        outer = k_means(setting.dataset.train, len(setting.real.table), config.ipc,
                        generator(key, name))  # fmt: skip
        return [Course(0, time.perf_counter() - begin, 0.0, outer)]
    images = setting.dataset.kind == "images"
    recipe = recipes(setting.model, setting.smooth, config.ipc, images)[name]
    if config.image_rate is not None:
        recipe = dataclasses.replace(recipe, image_rate=config.image_rate)
    if config.label_rate is not None and recipe.label_rate:
        recipe = dataclasses.replace(recipe, label_rate=config.label_rate)
    rows = first_rows(setting.real, config.ipc, frame.named_key(key, "start"))
    outer = labelled(setting.real.x[rows], len(setting.real.table))
    seconds = math.inf if config.seconds is None else config.seconds
    budget = Budget(config.num_steps, config.checkpoints, seconds)
    doing = lambda: page.tick(name)
    own = frame.named_key(key, "methods", name)
    return condense(recipe, setting.real, outer, budget, own, doing)


def k_means(train: Points, num_classes: int, ipc: int, rng: np.random.Generator) -> Synthetic:
    """The centres of each class by k-means: a baseline that asks no network."""
    flat, seed = train.x.reshape(len(train.x), -1), int(rng.integers(2**31))
    centres = [
        sklearn.cluster.KMeans(ipc, n_init=1, random_state=seed).fit(flat[train.y == label])
        for label in range(num_classes)
    ]
    x = np.concatenate([means.cluster_centers_ for means in centres]).astype(np.float32)
    return labelled(jnp.asarray(x.reshape(-1, *train.x.shape[1:])), num_classes)


def generator(key: jax.Array, name: str) -> np.random.Generator:
    """NumPy's generator of a name."""
    return np.random.default_rng(np.asarray(jax.random.key_data(frame.named_key(key, name))))


def halved(x: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels; an odd last row or column is dropped."""
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
