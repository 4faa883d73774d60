"""Learn from an imbalanced stream that is seen once, with a small memory to rehearse from.

    python -m applications.coreset_stream --data fashion_mnist --output results/stream

Source: Borsos, Mutny and Krause, "Coresets via Bilevel Optimization for Continual Learning and
Streaming", NeurIPS 2020, section 5.3. Differs from the paper in its network, which is that of their
even streams, and in the kernel and loss of the proxy. docs/applications/coreset.md has results.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .components import frame, report
from .components.errors import InputError, check_names, check_numbers
from .components.judging import finite_logits, spread
from .components.models import Model
from .components.points import Dataset, Points
from .components.publishing import Findings, Row, grouped, means, publish
from .components.work import Run
from .coresets.memory import NUM_SLOTS, POLICIES, imbalanced_stream
from .coresets.pool import Pool, make_pool
from .coresets.rehearsal import Network, learn

PAGE = "coreset_stream"
COLUMNS = {
    "memory": "what is kept of the stream; docs/applications/coreset.md explains each",
    "test accuracy": "percent, after the stream, mean ± standard deviation over the seeds",
    "beta": "weight of the memory's loss, the best on validation points, which are not the reported"
    " ones",
    "points of each class": "in the last memory, mean over the seeds",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """Compare memories on a stream of class pairs, the last of which is far larger."""

    policies: tuple[str, ...] = tuple(POLICIES)
    """Which memories to compare."""
    usual: int = 40
    """Points of each pair of classes but the last; the paper has 200."""
    last: int = 200
    """Points of the last pair; the paper has 2000."""
    memory: int = 25
    """Points that the memory holds; the paper has 100."""
    chunk: int = 25
    """Points that arrive together; the paper has 125."""
    epochs: int = 40
    """Full-batch steps on each chunk and the memory."""
    learning_rate: float = 5e-4
    """Step size of Adam, in the training of the network."""
    betas: tuple[float, ...] = (1.0, 10.0, 100.0)
    """Weights of the memory's loss; each method takes its best, by validation points."""
    num_validation: int = 200
    """Training points held out for that choice; the table has the test points."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One independent stream and network for each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("policies", self.policies or ("none",), POLICIES)
        check_numbers(self, "usual", "last", "memory", "chunk", "epochs", "num_validation")
        check_numbers(self, "learning_rate")
        if self.memory > self.chunk and self.memory % self.chunk:
            raise InputError(
                f"`memory` must be below `chunk` = {self.chunk} or a multiple of it, got"
                f" {self.memory}: it would be full in the middle of a chunk, and compile once more."
            )
        if "coreset_slots" in self.policies and self.memory < NUM_SLOTS:
            raise InputError(
                f"`memory` must hold a point for each of the {NUM_SLOTS} slots of coreset_slots,"
                f" got {self.memory}."
            )
        if not self.betas or not all(0 <= beta < float("inf") for beta in self.betas):
            raise InputError(f"`betas` must be numbers >= 0, got {self.betas}.")


class Result(NamedTuple):
    """What a run found.

    Attributes:
        rows: one for each policy, seed and beta: validation and test accuracy, class counts of the
            last memory.
        chosen: for each policy its best beta.
        memories: for each row's policy and seed the owner's rows of the last memory.
        seconds: of all of it.
    """

    rows: list[Row]
    chosen: dict[str, float]
    memories: dict[tuple[str, int], np.ndarray]
    seconds: float


def run(config: Config, dataset: Any = None, model: Any = None) -> Result:
    """Learn from each seed's stream with each memory; then print and write the results.

    `dataset` and `model` take the place of those of `config`: see `frame.Config.load`, `build`.

    Raises:
        InputError: a setting or a data file cannot be used.
        NonFiniteError: a network diverged.
    """
    dataset = config.load(dataset)
    if dataset.kind == "tokens" and model is None and config.model is None:
        model = "bag"
    network = config.build(dataset, Network if model is None and not config.model else model)
    draw_stream(config, dataset, config.seeds[0])  # or raises
    steps = len(config.seeds) * len(config.policies)
    rows, memories = list[Row](), dict[tuple[str, int], np.ndarray]()
    with Run(PAGE, config, dataset, {"model": network.name}, steps) as page:
        for seed in config.seeds:
            for policy in config.policies:
                page.tick(f"seed {seed}: {policy}")
                one = functools.partial(learned, config, dataset, network, policy, seed)
                kept = page.keep(f"seed{seed}/{policy}", one)
                memories[policy, seed] = kept["memory"]
                for number, beta in enumerate(config.betas):
                    row = {"policy": policy, "seed": seed, "beta": beta}
                    row |= {part: float(kept[part][number]) for part in ("validation", "test")}
                    rows.append(row | {"classes": kept["classes"].tolist()})
        result = Result(rows, best_betas(rows), memories, page.seconds)
    write(result, dataset, page)
    return result


def write(result: Result, dataset: Dataset, page: Run) -> None:
    """Print and write everything."""
    arrays = {
        f"{name}s": np.array([row[name] for row in result.rows])
        for name in ("seed", "beta", "validation", "test")
    }
    arrays |= {"policies": np.array([row["policy"] for row in result.rows])}
    names = {"memory_policies": 0, "memory_seeds": 1}
    arrays |= {name: np.array([key[at] for key in result.memories]) for name, at in names.items()}
    findings = Findings(
        "Memories on an imbalanced stream",
        finding(result),
        f"A stream of {dataset.name}, seen once.",
        COLUMNS,
        {"Test accuracy after the stream": summary(result)},
        {},
        result.rows,
        arrays | {"memories": np.stack(list(result.memories.values()))},
        result.seconds,
    )
    publish(findings, page)


def draw_stream(
    config: Config, dataset: Dataset, seed: int
) -> tuple[Pool, np.ndarray, np.random.Generator]:
    """The stream of a seed, its rows in the owner's order, and the generator of what follows."""
    rng = np.random.default_rng(seed)
    pool = make_pool(dataset.train, dataset.num_classes)
    stream, rows = imbalanced_stream(pool, config.usual, config.last, rng)
    return stream, dataset.train_rows[rows], rng


def learned(
    config: Config, dataset: Dataset, model: Model, policy: str, seed: int
) -> dict[str, Any]:
    """One stream and one memory: accuracies by beta, and what is in the memory at the end."""
    stream, owner_rows, rng = draw_stream(config, dataset, seed)
    key = jax.random.key(seed)
    variables, memory = learn(model, stream, POLICIES[policy], config, rng, key)
    remedy = f"Lower `learning_rate`, which is {config.learning_rate}, or `betas`."

    def accuracies(points: Points) -> list[float]:
        found = []
        for number, beta in enumerate(config.betas):
            mine = jax.tree.map(lambda leaf, number=number: leaf[number], variables)
            whose = f"The network at beta {beta}"
            scores = finite_logits(model, mine, jnp.asarray(points.x), whose, remedy)
            found.append(float(100 * np.mean(scores.argmax(1) == points.y)))
        return found

    return {
        "classes": np.bincount(stream.y[memory.rows], minlength=stream.num_classes),
        "memory": owner_rows[memory.rows],
        "validation": accuracies(dataset.validation),
        "test": accuracies(dataset.test),
    }


def best_betas(rows: list[Row]) -> dict[str, float]:
    """For each policy the beta of highest mean validation accuracy; the smaller one in a tie."""
    found = means(grouped(rows, "policy", "beta"), "validation")
    ascending = sorted(found, key=lambda place: place[1])
    return {
        policy: max((p for p in ascending if p[0] == policy), key=lambda place: found[place])[1]
        for policy in dict.fromkeys(policy for policy, _ in found)
    }


def finding(result: Result) -> str:
    """The result in one sentence."""
    found = means(grouped(result.rows, "policy", "beta"), "test")
    own = {policy: found[policy, beta] for policy, beta in result.chosen.items()}
    best = max(own, key=lambda policy: own[policy])
    others = ", ".join(f"{own[policy]:.1f} % by {policy}" for policy in own if policy != best)
    text = f"The memory kept by {best} leaves {own[best]:.1f} %"
    return f"{text}; {others}." if others else f"{text}."


def summary(result: Result) -> report.Table:
    """Mean and deviation of each policy at its best beta."""
    groups, cells = grouped(result.rows, "policy", "beta"), []
    for policy, beta in result.chosen.items():
        mine = groups[policy, beta]
        counts = np.mean([row["classes"] for row in mine], axis=0)
        test = spread([row["test"] for row in mine], 1)
        cells.append([policy, test, f"{beta:g}", " ".join(f"{count:.0f}" for count in counts)])
    return report.Table(["memory", "test accuracy", "beta", "points of each class"], cells)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
