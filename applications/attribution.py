"""Which training points help or hurt these test predictions? Attribution, judged by retraining.

    python -m applications.attribution                              # digits, one or two minutes
    python -m applications.attribution --data fashion_mnist --num-train 1000 --model smooth_cnn

Sources: Engstrom, Ilyas, Chen and others, "Optimizing ML training with metagradient descent", 2025;
Park et al., "TRAK", ICML 2023. docs/applications/attribution.md has results and what they mean.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import Batch, diagnostics

from .attributing import attribution_report
from .attributing.attribution_report import Result, Row
from .attributing.banks import DESIGNS, Bank, mean_weight, subsets
from .attributing.methods import Method, Study, standard
from .attributing.networks import SMOOTH
from .attributing.training import Recipe, Start, Training
from .components import frame
from .components.data import Dataset
from .components.errors import InputError, NonFiniteError, check_names, check_numbers
from .components.models import Model
from .components.points import Points
from .components.training import initialise
from .components.work import Run

PAGE = "attribution"
LABEL_PARTS = 3  # times as many test points as queries judge wrong labels
TUNING_SHARE = 0.4  # retrainings of the bank that settings are chosen on, to those of the other


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """Attribute test losses to training points by many methods, and judge them by retraining.

    Each method predicts how every test loss moves with the weight of each training point. A bank of
    models retrained on subsets says how far that is true. Wrong labels are sought by the same
    scores.
    """

    num_train: int | None = 500
    """Keep so many training points, with the class shares of all; fewer is faster."""
    model: str | None = None
    """Architecture: smooth_mlp or smooth_cnn, which suit gradients through training; mlp,
    small_cnn, bag, or yours as module.path:Name. Not given: smooth_mlp."""
    num_steps: int = 256
    """Optimizer steps of a training."""
    batch_size: int = 64
    """Points in each step."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd has momentum 0.9; adam has the eps_root that gradients through it need."""
    learning_rate: float | None = None
    """Its step size; 0.005 for sgd and 0.0003 for adam if not given, through which gradients
    predict moves of a half too."""
    designs: tuple[str, ...] = ("half", "drop")
    """Banks to judge on: half leaves out one half of the points, double gives the other half a
    weight of 2, drop leaves out a tenth."""
    bank_size: int = 40
    """Retrained models in each bank; 0.4 as many others choose the settings."""
    num_queries: int = 20
    """Test points whose losses are explained."""
    wrong_labels: float = 0.1
    """Share of labels to make wrong, for the search for them; 0 leaves it out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "num_steps", "batch_size", "learning_rate", "num_queries")
        check_names("designs", self.designs, list(DESIGNS))
        if self.bank_size < 5:
            raise InputError(f"`bank_size` must be an integer >= 5, got {self.bank_size}.")
        if not 0 <= self.wrong_labels < 1:
            raise InputError(f"`wrong_labels` must be in [0, 1), got {self.wrong_labels}.")

    @property
    def recipe(self) -> Recipe:
        """How every model is trained."""
        adam = self.optimizer == "adam"
        rate = self.learning_rate or (3e-4 if adam else 5e-3)
        return Recipe(self.num_steps, self.batch_size, rate, adam)


def run(config: Config, dataset: Any = None, model: Any = None) -> Result:
    """Attribute and judge; then print and write the results.

    Args:
        config: see there.
        dataset: in place of `config.data`: a `components.data.Dataset`, or a mapping of the
            arguments of `components.data.from_arrays`.
        model: in place of `config.model`: what `components.models.make` takes.

    Raises:
        InputError: a setting or a data file cannot be used; raised before any computing.
        NonFiniteError: a training diverged.
    """
    dataset = config.load(dataset)
    named = SMOOTH.get(config.model or "smooth_mlp", config.model)
    network = config.build(dataset, model if model is not None else named)
    _check(config, dataset, network)
    training = Training(network, config.recipe)
    result = Result([], {}, {})
    steps = len(config.seeds) * (len(config.designs) + 1 + bool(config.wrong_labels))
    with Run(PAGE, config, dataset, config.recipe, steps) as page:
        for seed in config.seeds:
            repeat(config, training, dataset, seed, page, result)
    attribution_report.publish_result(result, page)
    return result


def repeat(
    config: Config, training: Training, dataset: Dataset, seed: int, page: Run, result: Result
) -> None:
    """One seed: its training, its banks, every method on each, and the search for wrong labels."""
    key, rng = jax.random.key(seed), np.random.default_rng(seed)
    points, judged = dataset.train.on_device(), config.judged(dataset)
    variables = initialise(training.model, points.x, frame.named_key(key, "init"))
    start = Start(points, variables, frame.named_key(key, "order"))
    chosen = rng.choice(len(judged.y), config.num_queries, replace=False)
    queries = judged.at(chosen).on_device()
    page.tick(f"seed {seed}: how smooth the training is")
    result.smoothness[seed] = page.keep(
        f"seed{seed}/smoothness", lambda: {"s": smoothness(training, start, queries, key)}
    )["s"]
    for design in config.designs:
        page.tick(f"seed {seed}: {design}, retraining and attributing")
        place = f"seed{seed}/{design}"
        tuning, bank = (
            kept_bank(page, f"{place}/{part}", training, start, queries, design, count)
            for part, count in (
                ("tuning", max(5, round(TUNING_SHARE * config.bank_size))),
                ("bank", config.bank_size),
            )
        )
        study = Study(training, start, queries, mean_weight(design))
        for method in standard(config.num_steps):
            find = functools.partial(judge, method, study, tuning, bank)
            found = page.keep(f"{place}/{method.title}", find)
            result.rows.append(Row(seed, design, method.title, found["lds"], found["ridge"]))
            result.scores[f"{design}, {method.title}, seed {seed}"] = found["scores"]
    if config.wrong_labels:
        page.tick(f"seed {seed}: wrong labels")
        others = judged.at(np.setdiff1d(np.arange(len(judged.y)), chosen)).on_device()
        arguments = config, training, start, others, dataset.num_classes, seed
        seek = functools.partial(found_labels, *arguments)
        for name, share in page.keep(f"seed{seed}/labels", seek).items():
            result.labels.setdefault(name, []).append(float(share))


def kept_bank(
    page: Run, name: str, training: Training, start: Start, queries: Points, design: str, count: int
) -> Bank:
    """A bank, read back where it is there; equal names draw equal subsets."""

    def make() -> dict[str, Any]:
        seed = int(jax.random.bits(frame.named_key(start.order, name)))
        weights = subsets(design, count, len(start.points.y), np.random.default_rng(seed))
        losses = np.asarray(training.retrained(start, jnp.asarray(weights), queries))
        if not np.isfinite(losses).all():
            raise NonFiniteError("A retraining diverged. Lower `learning_rate`.")
        return {"weights": weights, "losses": losses}

    found = page.keep(name, make)
    return Bank(found["weights"], found["losses"])


def judge(method: Method, study: Study, tuning: Bank, bank: Bank) -> dict[str, Any]:
    """Choose the method's settings on one bank, and report on the other."""
    tried = [(np.asarray(one.scores(study)), one) for one in method.tuned()]
    scores, best = max(tried, key=lambda pair: tuning.lds(pair[0]).mean())
    return {"scores": scores, "lds": bank.lds(scores), "ridge": getattr(best, "ridge", np.nan)}


def smoothness(training: Training, start: Start, queries: Points, key: jax.Array) -> np.ndarray:
    """Metasmoothness for small moves and for those of a bank, which move weights by a half."""
    problem, solver = training.problem(start), training.solver(start.order)
    weights = jnp.ones(len(start.points.y))
    args = problem, solver, weights, start.variables["params"], Batch(start.points, queries)
    judged = (diagnostics.metasmoothness(*args, size=h, key=key) for h in (0.03, 0.5))
    return np.array([one.smoothness for one in judged])


def found_labels(
    config: Config, training: Training, start: Start, clean: Points, num_classes: int, seed: int
) -> dict[str, Any]:
    """Of labels made wrong, the share that each method puts among as many worst points."""
    rng, y = np.random.default_rng([seed, 1]), np.asarray(start.points.y)
    wrong = rng.choice(len(y), round(config.wrong_labels * len(y)), replace=False)
    noisy = y.copy()
    noisy[wrong] = (y[wrong] + rng.integers(1, num_classes, len(wrong))) % num_classes
    start = start._replace(points=start.points._replace(y=jnp.asarray(noisy)))
    # As many at a time as elsewhere, so that nothing is compiled again.
    size = config.num_queries
    count = max(1, min(LABEL_PARTS, len(clean.y) // size))
    studies = [
        Study(training, start, clean.at(slice(i * size, (i + 1) * size)), 1.0) for i in range(count)
    ]
    found = {}
    for method in standard(config.num_steps):
        scores = np.concatenate([np.asarray(method.scores(study)) for study in studies]).mean(0)
        worst = np.argsort(-scores, kind="stable")[: len(wrong)]
        found[method.title] = np.isin(worst, wrong).mean()
    return found


def _check(config: Config, dataset: Dataset, network: Model) -> None:
    if network.step is not None:
        raise InputError(
            f"`model` {network.name} has statistics or dropout; attribution needs a training that"
            " is a function of its weights alone. Take GroupNorm or LayerNorm, and no dropout."
        )
    if len(dataset.train.y) < config.batch_size:
        raise InputError(
            f"`batch_size` must not exceed the number of training points, got {config.batch_size}"
            f" for {len(dataset.train.y)}. Lower it or keep more points."
        )

    count = len(config.judged(dataset).y)
    if config.num_queries >= count:
        raise InputError(
            f"`num_queries` must be less than the number of points to judge on, got"
            f" {config.num_queries} for {count}."
        )


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
