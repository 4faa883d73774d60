"""Gradients through whole trainings: what they cost, and where they predict retrainings.

    python -m benchmarks.metagradients settings --data-dir data   # metasmoothness on 12 settings
    python -m benchmarks.metagradients exact --data-dir data      # 1,024 steps of an MLP and a CNN
    python -m benchmarks.metagradients long --data-dir data       # 16,384 steps
    python -m benchmarks.metagradients costs --data-dir data      # memory and CPU seconds

Fashion-MNIST, 2,000 training and 1,000 test images; the outer variable is one weight for each
training image, all 1; minibatches by key. A cosine is that of the changes of the test loss which
the hypergradient predicts for random directions +-h in all weights, and of central differences of
deterministic retrainings along them.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from applications.attributing.networks import SmoothCNN
from applications.components.data import load
from bilevel import Batch, BilevelProblem, Minimize, hypergradient, sampling, value_and_hypergrad
from bilevel.diagnostics import metasmoothness

NUM_TRAIN, NUM_TEST = 2000, 1000
PREDICTS = 0.9  # the least cosine that counts
PyTree = Any


class Setting(NamedTuple):
    """A training, and the size of the moves of its weights."""

    name: str
    optimizer: optax.GradientTransformation
    activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu
    batch_size: int = 64
    num_steps: int = 512
    size: float = 0.03
    network: str = "mlp"


def momentum(rate: float) -> optax.GradientTransformation:
    """SGD with momentum 0.9."""
    return optax.sgd(rate, momentum=0.9)


# None of these was looked at when the threshold of `metasmoothness` was fixed.
NEW = [
    Setting("sgdm .01, gelu", momentum(0.01)),
    Setting("sgdm .01, gelu", momentum(0.01), size=0.3),
    Setting("sgdm .01, tanh", momentum(0.01), jnp.tanh),
    Setting("sgdm .01, leaky relu", momentum(0.01), jax.nn.leaky_relu),
    Setting("sgdm .03, silu, batch 128", momentum(0.03), jax.nn.silu, 128),
    Setting("sgdm .03, gelu, batch 32", momentum(0.03), batch_size=32),
    Setting("sgd .05, gelu", optax.sgd(0.05)),
    Setting("sgd .05, relu", optax.sgd(0.05), jax.nn.relu),
    Setting("adam 3e-4, gelu, eps_root 1e-5", optax.adam(3e-4, eps_root=1e-5), size=0.3),
    Setting("adam 3e-3, gelu, eps_root 1e-5", optax.adam(3e-3, eps_root=1e-5)),
    Setting("adam 1e-3, silu, eps_root 1e-6", optax.adam(1e-3, eps_root=1e-6), jax.nn.silu),
    Setting("adam 1e-3, gelu, eps_root 1e-9", optax.adam(1e-3, eps_root=1e-9)),
]
EXACT = [
    Setting("MLP, sgdm .005", momentum(0.005), num_steps=1024),
    Setting("MLP, adam 3e-4", optax.adam(3e-4, eps_root=1e-5), num_steps=1024),
    Setting("CNN, sgdm .005", momentum(0.005), batch_size=32, num_steps=1024, network="cnn"),
]
LONG = [Setting("MLP, sgdm .005", momentum(0.005), num_steps=16_384)]


class Task(NamedTuple):
    """A problem and where to differentiate it."""

    problem: BilevelProblem
    outer: jax.Array
    init: PyTree
    batch: Batch


def make_task(setting: Setting, images: Any) -> Task:
    """The weights of the images, for one setting.

    Args:
        setting: its network and activation.
        images: a `components.data.Dataset`.
    """
    part = lambda points, count: (jnp.asarray(points.x[:count]), jnp.asarray(points.y[:count]))
    train, test = part(images.train, NUM_TRAIN), part(images.test, NUM_TEST)
    if setting.network == "cnn":
        model = SmoothCNN(10)
        init, logits = model.init(jax.random.key(1), train[0][:1]), model.apply
    else:
        keys = jax.random.split(jax.random.key(1))
        init = {
            "in": jax.random.normal(keys[0], (784, 128)) / 28,
            "bias": jnp.zeros(128),
            "out": jax.random.normal(keys[1], (128, 10)) / 128**0.5,
        }

        def logits(params: PyTree, x: jax.Array) -> jax.Array:
            hidden = x.reshape(x.shape[0], -1) @ params["in"] + params["bias"].reshape(1, -1)
            return setting.activation(hidden) @ params["out"]

    def losses(params: PyTree, data: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, data[0]), data[1])

    def inner_loss(weights: jax.Array, params: PyTree, seen: sampling.Numbered) -> jax.Array:
        return jnp.mean(weights[seen.rows] * losses(params, seen.data))

    problem = BilevelProblem(lambda weights, params, data: losses(params, data).mean(), inner_loss)
    return Task(problem, jnp.ones(len(train[1])), init, Batch(train, test))


def solver_of(setting: Setting, **options: Any) -> Minimize:
    """The training of a setting."""
    draw = sampling.Draw(setting.batch_size, jax.random.key(2), with_rows=True)
    return Minimize(setting.optimizer, setting.num_steps, draw, **options)


def judge(setting: Setting, images: Any, num_directions: int) -> dict[str, Any]:
    """Metasmoothness, and the cosine of predicted and measured changes."""
    task, solver = make_task(setting, images), solver_of(setting, remat="binomial")
    smooth = metasmoothness(
        task.problem, solver, *task[1:], size=setting.size, key=jax.random.key(3)
    )
    start = time.perf_counter()
    compute = jax.jit(lambda *args: hypergradient(task.problem, solver, *args))
    found = jax.block_until_ready(compute(*task[1:]))
    seconds = time.perf_counter() - start
    signs = jax.random.rademacher(
        jax.random.key(4), (num_directions, len(task.outer)), task.outer.dtype
    )

    @jax.jit
    def measured(signs: jax.Array, init: PyTree, batch: Batch) -> jax.Array:
        def value(weights: jax.Array) -> jax.Array:
            inner = solver(task.problem.inner_loss, weights, init, batch.inner)
            return task.problem.outer_loss(weights, inner, batch.outer)

        ends = jnp.concatenate([1 + setting.size * signs, 1 - setting.size * signs])
        up, down = jnp.split(jax.lax.map(value, ends, batch_size=2), 2)
        return (up - down) / 2

    actual = np.asarray(measured(signs, task.init, task.batch), np.float64)
    predicted = setting.size * np.asarray(signs @ found.hypergrad, np.float64)
    norms = np.linalg.norm(actual) * np.linalg.norm(predicted)
    return {
        "setting": setting.name,
        "steps": setting.num_steps,
        "h": setting.size,
        "loss": float(found.value),
        "norm": float(jnp.linalg.norm(found.hypergrad)),
        "growth": float(found.info.growth),
        "S": smooth.smoothness,
        "passes": smooth.predicts,
        "cosine": float(actual @ predicted / norms),
        "seconds, compiling included": round(seconds, 1),
    }


def table(settings: list[Setting], config: argparse.Namespace) -> None:
    """One line of JSON for each setting, then precision and recall of passing."""
    images = load("fashion_mnist", config.data_dir, NUM_TRAIN)
    rows = []
    for setting in settings:
        rows.append(judge(setting, images, config.directions))
        print(json.dumps(rows[-1]), flush=True)
    passed = [row["cosine"] >= PREDICTS for row in rows if row["passes"]]
    true = [row["passes"] for row in rows if row["cosine"] >= PREDICTS]
    print(f"of {len(passed)} that pass {sum(passed)} predict; of {len(true)} that predict "
          f"{sum(true)} pass")  # fmt: skip


REMATS: dict[str, dict[str, Any]] = {
    "binomial": {"remat": "binomial"},
    "nested": {"remat": (256, 16)},
    "segments of 32": {"remat": 32},
    "every step": {},
    "plain": {"remat": "none", "mode": "reverse"},
}


def costs(config: argparse.Namespace) -> None:
    """Scratch memory as XLA plans it; at 1,024 and 4,096 steps also CPU seconds, where it fits."""
    images = load("fashion_mnist", config.data_dir, NUM_TRAIN)
    optimizers = {"sgdm": momentum(0.005), "adam": optax.adam(3e-4, eps_root=1e-5)}
    for name, optimizer in optimizers.items():
        for num_steps in (64, 256, 1024, 4096, 16_384):
            setting = Setting(name, optimizer, num_steps=num_steps)
            task = make_task(setting, images)
            row: dict[str, Any] = {"optimizer": name, "steps": num_steps}
            timed = num_steps in (1024, 4096)
            for remat, options in REMATS.items() if timed else [("binomial", REMATS["binomial"])]:
                compute = jax.jit(value_and_hypergrad(task.problem, solver_of(setting, **options)))
                program = compute.lower(*task[1:]).compile()
                mib = program.memory_analysis().temp_size_in_bytes / 2**20
                row[f"{remat}, MiB"] = round(mib, 1)
                if timed and mib < config.most_mib:
                    row[f"{remat}, s"] = _seconds(program, task)
            if timed:
                solver, loss = solver_of(setting), task.problem.inner_loss
                train = jax.jit(lambda w, init, data: solver(loss, w, init, data.inner))  # noqa: B023
                row["forward, s"] = _seconds(train.lower(*task[1:]).compile(), task)
            print(json.dumps(row), flush=True)


def _seconds(program: Any, task: Task) -> float:
    """CPU seconds of the second call: other work on the machine does not count."""
    jax.block_until_ready(program(*task[1:]))
    start = time.process_time()
    jax.block_until_ready(program(*task[1:]))
    return round(time.process_time() - start, 3)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["settings", "exact", "long", "costs"])
    parser.add_argument("--data-dir", type=pathlib.Path, default=pathlib.Path("data"))
    parser.add_argument("--directions", type=int, default=8)
    parser.add_argument("--most-mib", type=float, default=1500, help="of a program to be timed")
    config = parser.parse_args()
    settings = {"settings": NEW, "exact": EXACT, "long": LONG}
    if config.what in settings:
        table(settings[config.what], config)
    else:
        costs(config)


if __name__ == "__main__":
    main()
