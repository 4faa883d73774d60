"""Check what robust lifelong learning rests on: gradients, frozen attacks, one-step training.

    python -m applications.lifelong_checks --output results/checks
    python -m applications.lifelong_checks --data fashion_mnist --data-dir data --num-train 2000

docs/applications/lifelong.md has results.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .components import frame, report
from .components.adversarial import PGD, attacked_margins
from .components.errors import check_numbers
from .components.judging import finite_logits, spread
from .components.models import Model
from .components.pixel_ball import Ball, make_ball
from .components.points import Points
from .components.publishing import Findings, publish
from .components.training import Recipe, initialise, predict
from .components.work import Run
from .rehearsal import gradient_checks, memory
from .rehearsal.look import Look
from .rehearsal.memory import Memory, mixing
from .rehearsal.recipes import recipe_for
from .rehearsal.robust import FastBAT, Madry, Training, check_model
from .rehearsal.stream import Stream, make_stream

PAGE = "lifelong_checks"
JUDGE = PGD(50, num_restarts=5)
FROZEN_STEPS = (1, 5, 20)  # of the attacks that are held fixed
ONE_STEP: dict[str, Training] = {
    "Fast-AT": Madry(PGD(1, step=1.25, last=True)),
    "PGD-2": Madry(PGD(2, step=0.5, last=True)),
    "Fast-BAT": FastBAT(),
    "Fast-BAT, no implicit term": FastBAT(implicit=False),
}
COLUMNS = {
    "cosine": "of a rule's hypergradient with the exact one, at equal weights",
    "shared": "of the points that a greedy search by the exact hypergradient selects",
    "frozen": "cosine of the hypergradient that holds the attack fixed with the one through its"
    " steps, and the ratio of their norms; steps along signs have no derivative, so that the two"
    " are one",
    "SA, RA": "right answers on test points, clean and under PGD with 50 steps and 5 restarts",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """Check gradient rules, frozen attacks and one-step training on one data set."""

    eps: float | None = None
    """Largest change of a pixel in the checks of gradients; that of the lifelong page if not
    given."""
    one_step_eps: float = 0.3
    """Of one-step training, which collapses where this is large."""
    steps: int | None = None
    """Training steps; five times those of a task if not given."""
    learning_rate: float | None = None
    """First step size."""
    num_test: int = 300
    """Judge on so many points."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "eps", "one_step_eps", "steps", "learning_rate", "num_test")


class Result(NamedTuple):
    """What a run found: in each table a list of one number a seed, by row and column."""

    rules: dict[str, dict[str, list[float]]]
    frozen: dict[str, dict[str, list[float]]]
    one_step: dict[str, dict[str, list[float]]]
    seconds: float


class Task(NamedTuple):
    """What all checks of a seed work on."""

    model: Model
    recipe: Recipe
    steps: int
    points: Points
    test: Points
    pairs: Stream
    key: jax.Array


def run(config: Config, dataset: Any = None, model: Any = None) -> Result:
    """Train and check for each seed; then print and write the results.

    `dataset` and `model` take the place of those of `config`: see `frame.Config.load`, `build`.

    Raises:
        InputError: a setting or a data file cannot be used; raised before any computing.
        NonFiniteError: a network diverged.
    """
    dataset = config.load(dataset)
    recipe = recipe_for(dataset)
    network = config.build(dataset, model, recipe.model)
    check_model(network)
    ball = make_ball(dataset, recipe.eps if config.eps is None else config.eps)
    wide = make_ball(dataset, config.one_step_eps)
    steps = config.steps or 5 * recipe.steps
    training = Recipe(1, recipe.batch_size, config.learning_rate or recipe.learning_rate)
    stream = make_stream(dataset, config.judged(dataset), dataset.num_classes, (), config.num_test,
                         None, seed=0)  # fmt: skip
    pairs = {s: make_stream(dataset, dataset.test, 2, (), None, None, s) for s in config.seeds}
    with Run(PAGE, config, dataset, {"model": network.name, "steps": steps}) as page:
        found = []
        for seed in config.seeds:
            key, place = jax.random.key(seed), f"seed{seed}"
            task = Task(network, training, steps, stream.points, stream.test, pairs[seed], key)
            page.tick(f"seed {seed}: gradients")
            gradients = functools.partial(gradients_of, task, ball, seed)
            one = dict(page.keep(f"{place}/gradients", gradients))
            for name, robust in ONE_STEP.items():
                page.tick(f"seed {seed}: {name}")
                judged = functools.partial(one_step, task, name, robust, wide)
                one |= page.keep(f"{place}/{name}", judged)
            found.append(one)
        rules, frozen, cheap = (_collected(found, k) for k in ("rules", "frozen", "one step"))
        result = Result(rules, frozen, cheap, page.seconds)
    _write(result, page)
    return result


def fit(task: Task, robust: Training, ball: Ball, name: str) -> Any:
    """A network that was trained robustly on all points."""
    key = frame.named_key(task.key, name)
    seed = np.asarray(jax.random.key_data(key)).tolist()
    batch_size, empty = task.recipe.batch_size, Memory.empty(1, task.points, task.model.num_classes)
    order = memory.order(
        np.arange(len(task.points.y)), task.steps, batch_size, np.random.default_rng(seed)
    )
    start = initialise(task.model, task.points.x, frame.named_key(task.key, "start"))
    mix = mixing(0, 1.0, 0.0, alone=False, filled=False)
    offset = jnp.zeros((1, task.model.num_classes))
    variables = memory.learn(task.model, robust, task.recipe, start, task.points, order, empty,
                             jnp.int32(0), mix, offset, ball, key, 1)  # fmt: skip
    remedy = f"Lower `learning_rate`, which is {task.recipe.learning_rate}."
    finite_logits(task.model, variables, task.test.x, f"The network of {name}", remedy)
    return variables


def gradients_of(task: Task, ball: Ball, seed: int) -> dict[str, float]:
    """Every rule, and frozen attacks, on the last two classes."""
    model, variables = task.model, fit(task, Madry(PGD(5)), ball, "robust")
    pairs = task.pairs
    nothing = Memory.empty(model.num_classes, pairs.points, model.num_classes)
    look = Look(pairs, len(pairs.rows) - 1, nothing, model, variables, ball, seed, task.key)
    size, found = model.num_classes, dict[str, float]()
    pool = look.pool(attacked=True)._replace(size=jnp.float32(size))
    for name, (cosine, shared) in gradient_checks.rules(pool, size).items():
        found |= {f"rules/{name}/cosine": cosine, f"rules/{name}/shared": shared}
    points = pairs.points.at(look.rows[:64])
    for signed in (False, True):
        for steps in FROZEN_STEPS:
            pair = gradient_checks.frozen_attacks(model, variables, ball, points, steps, signed)
            row = f"frozen/{steps} steps along {'signs' if signed else 'gradients'}"
            found |= {f"{row}/cosine": pair[0], f"{row}/norm ratio": pair[1]}
    return found


def one_step(task: Task, name: str, robust: Training, ball: Ball) -> dict[str, float]:
    """Clean and robust accuracy after one kind of cheap training."""
    variables = fit(task, robust, ball, name)
    offset = jnp.zeros((1, task.model.num_classes))
    found = attacked_margins(task.model, JUDGE, variables, offset, task.test, ball, task.key)
    robustly = float(100 * jnp.mean(found <= 0))
    scores = predict(task.model, variables, task.test.x)
    clean = float(100 * jnp.mean(scores.argmax(axis=1) == task.test.y))
    return {f"one step/{name}/SA": clean, f"one step/{name}/RA": robustly}


def _collected(found: list[dict[str, Any]], kind: str) -> dict[str, dict[str, list[float]]]:
    table: dict[str, dict[str, list[float]]] = {}
    for name in found[0]:
        own, row, column = name.split("/")
        if own == kind:
            table.setdefault(row, {})[column] = [float(one[name]) for one in found]
    return table


def _write(result: Result, page: Run) -> None:
    """Print and write everything."""
    titles = {"Gradient rules": (result.rules, 3), "Frozen attacks": (result.frozen, 3),
              "One-step training, percent": (result.one_step, 1)}  # fmt: skip
    tables = {}
    for title, (rows, digits) in titles.items():
        headers = list(next(iter(rows.values())))
        cells = [[n, *(spread(row[h], digits) for h in headers)] for n, row in rows.items()]
        tables[title] = report.Table(["", *headers], cells)
    free = result.rules["Hessian-free"]
    finding = (
        f"The Hessian-free rule has cosine {np.mean(free['cosine']):.2f} with the exact gradient"
        f" and shares {100 * np.mean(free['shared']):.0f} % of its selection."
    )
    arrays = {f"{name} {c}": np.array(v) for name, r in result.rules.items() for c, v in r.items()}
    named = {"rules": result.rules, "frozen": result.frozen, "one_step": result.one_step}
    title, seconds = "Checks of robust selection", result.seconds
    publish(Findings(title, finding, "", COLUMNS, tables, {}, [], arrays, seconds, named), page)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
