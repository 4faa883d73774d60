"""Learn from an imbalanced stream that is seen once, with a small memory to rehearse from.

    python -m applications.coreset_stream --dataset fashion_mnist --output results/stream

Source: Borsos, Mutny and Krause, "Coresets via Bilevel Optimization for Continual Learning and
Streaming", NeurIPS 2020, section 5.3. docs/applications/coreset.md has results.
"""

import dataclasses
import functools
import pathlib
import time
from typing import Any, Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .components import frame, report
from .components.console import make_console, progress_bar
from .components.data import load
from .components.errors import InputError, NonFiniteError
from .components.output import Output, environment, to_json
from .components.points import Points
from .components.training import cross_entropy, predict
from .coresets.memory import NUM_SLOTS, POLICIES, Memory, imbalanced_stream
from .coresets.pool import make_pool


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare memories on a stream of class pairs, the last of which is far larger."""

    output: pathlib.Path = pathlib.Path("results/stream")
    """Folder for result.json and report.html; must not exist."""
    overwrite: bool = False
    """Replace the files of an earlier run in the output folder."""
    dataset: Literal["digits", "fashion_mnist"] = "digits"
    """Images to work on; digits needs no files, the others are read from --data-dir."""
    data_dir: pathlib.Path = pathlib.Path("data")
    """Folder that holds fashion_mnist/*.gz, as published."""
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
    """Of Adam."""
    betas: tuple[float, ...] = (1.0, 10.0, 100.0)
    """Weights of the memory's loss; each method takes its best, by validation points."""
    num_validation: int = 200
    """Training points held out for that choice."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One independent stream and network for each."""

    def __post_init__(self) -> None:
        if not self.policies or any(name not in POLICIES for name in self.policies):
            raise InputError(f"`policies` must be of {', '.join(POLICIES)}, got {self.policies}.")
        for name in ("usual", "last", "memory", "chunk", "epochs", "num_validation"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` must be an integer >= 1, got {getattr(self, name)}.")
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
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"`seeds` must be at least one, each once, got {self.seeds}.")


class Network(nn.Module):
    """Two hidden layers of 100 with dropout 0.2, as in the paper."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits of a batch of images."""
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.Dropout(0.2, deterministic=not train)(nn.relu(nn.Dense(100)(x)))
        return nn.Dense(self.num_classes)(x)


class Result(NamedTuple):
    """What a run found.

    Attributes:
        rows: one for each policy, seed and beta: validation and test accuracy, class counts of the
            last memory.
        chosen: for each policy its best beta.
        seconds: of all of it.
    """

    rows: list[dict[str, Any]]
    chosen: dict[str, float]
    seconds: float


@functools.partial(jax.jit, static_argnames=("model", "epochs", "rate"))
def rehearse(
    model: Network,
    epochs: int,
    rate: float,
    state: Any,
    new: Points,
    memory: Points,
    betas: jax.Array,
    key: jax.Array,
) -> Any:
    """Adam on `CE(new) + beta CE(memory)`, one network for each beta side by side."""

    def loss(params: Any, beta: jax.Array, key: jax.Array) -> jax.Array:
        def part(points: Points, key: jax.Array) -> jax.Array:
            scores = model.apply(params, points.x, True, rngs={"dropout": key})
            return jnp.mean(cross_entropy(cast(jax.Array, scores), points.y))

        new_key, memory_key = jax.random.split(key)
        return part(new, new_key) + beta * part(memory, memory_key)

    def step(state: Any, key: jax.Array) -> tuple[Any, None]:
        params, opt_state = state
        grads = jax.vmap(jax.grad(loss), in_axes=(0, 0, None))(params, betas, key)
        updates, opt_state = optax.adam(rate).update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(step, state, jax.random.split(key, epochs))[0]


def run(config: Config) -> Result:
    """Learn from each seed's stream with each memory; then print and write the results.

    Raises:
        InputError: a setting or a data file cannot be used.
        NonFiniteError: a network diverged.
    """
    output = Output(config.output, config.overwrite)
    console = make_console()
    begin = time.perf_counter()
    rows = []
    with progress_bar(console, len(config.seeds) * len(config.policies)) as tick:
        for seed in config.seeds:
            for policy in config.policies:
                tick(f"seed {seed}: {policy}")
                rows += learn(config, policy, seed)
    chosen = {policy: best_beta(rows, policy) for policy in config.policies}
    result = Result(rows, chosen, time.perf_counter() - begin)
    table = summary(result)
    table.print("Test accuracy after an imbalanced stream", console)
    facts = {"config": dataclasses.asdict(config), **environment(), "seconds": result.seconds}
    output.write_json("result.json", facts | {"rows": rows, "chosen": chosen})
    sections = [("Accuracy", table.html()), ("Settings", report.listing(to_json(facts)))]
    lead = "Test accuracy in percent, mean ± standard deviation over the seeds."
    output.write("report.html", report.page("Memories on an imbalanced stream", "", lead, sections))
    console.print(f"{result.seconds:.0f} s. Written to {output.folder}/.")
    return result


def learn(config: Config, policy: str, seed: int) -> list[dict[str, Any]]:
    """One stream, one memory, one network for each beta: a row for each."""
    dataset = load(config.dataset, config.data_dir, num_validation=config.num_validation, seed=seed)
    rng = np.random.default_rng(seed)
    pool = make_pool(dataset.train, dataset.num_classes)
    stream = imbalanced_stream(pool, config.usual, config.last, rng)
    model, betas = Network(stream.num_classes), jnp.asarray(config.betas)
    init_key, key = jax.random.split(jax.random.key(seed))
    params = model.init(init_key, stream.x[:1])
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(betas)), params)
    state = params, optax.adam(config.learning_rate).init(params)
    memory = Memory(np.zeros(0, int), config.memory)
    for first in range(0, len(stream.y) - config.chunk + 1, config.chunk):
        new = np.arange(first, first + config.chunk)
        # Nothing to rehearse yet: the first chunk stands in for the memory.
        old = memory.rows if len(memory.rows) else new
        step_key = jax.random.fold_in(key, first)
        points = (Points(jnp.asarray(stream.x[r]), jnp.asarray(stream.y[r])) for r in (new, old))
        rate = config.learning_rate
        state = rehearse(model, config.epochs, rate, state, *points, betas, step_key)
        memory = POLICIES[policy](stream, memory, first, first + config.chunk, rng)
    classes = np.bincount(stream.y[memory.rows], minlength=stream.num_classes).tolist()
    rows = []
    for number, beta in enumerate(config.betas):
        mine = jax.tree.map(lambda leaf, number=number: leaf[number], state[0])
        row = {"policy": policy, "seed": seed, "beta": beta, "classes": classes}
        for part in ("validation", "test"):
            split = getattr(dataset, part)
            scores = np.asarray(predict(model, mine, jnp.asarray(split.x)))
            if not np.isfinite(scores).all():
                raise NonFiniteError(
                    f"The network diverged at beta {beta}. Lower `learning_rate`, which is"
                    f" {config.learning_rate}, or `betas`."
                )
            row[part] = float(100 * np.mean(scores.argmax(1) == split.y))
        rows.append(row)
    return rows


def best_beta(rows: list[dict[str, Any]], policy: str) -> float:
    """The beta with the highest mean validation accuracy; the smaller one in a tie."""
    scores: dict[float, list[float]] = {}
    for row in rows:
        if row["policy"] == policy:
            scores.setdefault(row["beta"], []).append(row["validation"])
    return max(sorted(scores), key=lambda beta: float(np.mean(scores[beta])))


def summary(result: Result) -> report.Table:
    """Mean and deviation of each policy at its best beta."""
    cells = []
    for policy, beta in result.chosen.items():
        mine = [r for r in result.rows if r["policy"] == policy and r["beta"] == beta]
        test = [row["test"] for row in mine]
        deviation = np.std(test, ddof=1) if len(test) > 1 else 0.0
        counts = np.mean([row["classes"] for row in mine], axis=0)
        counts = " ".join(f"{count:.0f}" for count in counts)
        cells.append([policy, f"{np.mean(test):.1f} ± {deviation:.1f}", f"{beta:g}", counts])
    return report.Table(["memory", "test accuracy", "beta", "points of each class"], cells)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main("coreset_stream", Config, run, arguments)


if __name__ == "__main__":
    main()
