"""Corrupt, learn the weights, throw the inner variable away, train from scratch, count."""

import sys
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from applications.components.data import Dataset
from benchmarks.hyper_cleaning.report import ALL, CLEAN, HELD_OUT
from benchmarks.hyper_cleaning.settings import Learner, Setting
from bilevel import Batch, run, sampling


def corrupted(
    labels: np.ndarray, share: float, num_classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which exactly `share` are wrong, and the mask of these."""
    rng = np.random.default_rng(seed)
    wrong = np.zeros(len(labels), bool)
    wrong[rng.choice(len(labels), round(share * len(labels)), replace=False)] = True
    shift = rng.integers(1, num_classes, len(labels))
    return np.where(wrong, (labels + shift) % num_classes, labels).astype(np.int32), wrong


def race(setting: Setting, images: Dataset, share: float, seeds: range) -> list[dict[str, Any]]:
    """One row for each seed and each way to weigh the training examples."""
    init = jax.jit(lambda key: setting.model.init(key, images.train.x[:1]))
    fit = _timed(lambda *args: setting.fit(setting, *args))
    learn = {name: _timed(_learning(setting, way)) for name, way in setting.learners.items()}
    score = jax.jit(lambda *args: accuracy(setting.model, *args))
    held_out, test = examples(*images.validation), examples(*images.test)
    alike, rows = np.ones(len(images.train.y)), []
    for seed in seeds:
        labels, wrong = corrupted(images.train.y, share, images.num_classes, seed)
        train = examples(images.train.x, labels)
        init_key, learn_key, final_key, fit_key = jax.random.split(jax.random.key(seed), 4)
        ways = {ALL: (train, alike, {}), CLEAN: (train, 1.0 - wrong, {})}
        ways[HELD_OUT] = held_out, np.ones(len(images.validation.y)), {}
        for name, call in learn.items():
            (outer, finite), seconds = call(Batch(train, held_out), init(init_key), learn_key)
            weight = np.asarray(jax.nn.sigmoid(outer))
            facts = {"seconds_to_learn": seconds, "finite": bool(finite)} | found(weight, wrong)
            ways[name] = train, weight, facts
        for name, (data, weight, facts) in ways.items():
            weight = jnp.asarray(weight, jnp.float32)
            params, seconds = fit(data, weight, init(final_key), fit_key)
            row = {"row": name, "seed": seed, "seconds_to_train": seconds} | facts
            row["test"] = float(score(params, test, jnp.ones(len(images.test.y))))
            row["train"] = float(score(params, data, weight))
            rows.append(row)
            print(f"seed {seed}: {name} {row['test']:.2f} %", file=sys.stderr, flush=True)
    return rows


def examples(x: np.ndarray, y: np.ndarray) -> dict[str, jax.Array]:
    """Labelled images on the device, each with its place among the weights."""
    return {"x": jnp.asarray(x), "y": jnp.asarray(y), "row": jnp.arange(len(y))}


def accuracy(model: nn.Module, params: Any, data: Any, weight: jax.Array) -> jax.Array:
    """Percentage of the weight on examples that the model gets right."""
    one = lambda x: model.apply(params, x[None])[0].argmax()
    right = jax.lax.map(one, data["x"], batch_size=500) == data["y"]
    return 100 * jnp.sum(weight * right) / jnp.sum(weight)


def found(weight: np.ndarray, wrong: np.ndarray) -> dict[str, Any]:
    """How well the weights tell wrong labels from right ones, in percent, and the weights."""
    low, high = 100 * np.mean(weight[wrong] < 0.5), 100 * np.mean(weight[~wrong] > 0.5)
    split = {"right": weight[~wrong].round(4).tolist(), "wrong": weight[wrong].round(4).tolist()}
    return {"wrong_below_half": float(low), "right_above_half": float(high), "weights": split}


def _learning(setting: Setting, way: Learner) -> Callable[..., Any]:
    """The whole run of an algorithm as one function: the weights' logits, and whether finite."""

    def learning(data: Batch, inner: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        algorithm = way.make(setting.problem())
        size = way.batch_size
        seen = data if size is None else sampling.minibatches(data, size, key)
        start = algorithm.init(jnp.zeros(data.inner["y"].shape), inner)
        state, infos = run(algorithm, start, seen, way.num_steps)
        return state.outer, jnp.all(infos.finite)

    return learning


def _timed(function: Callable[..., Any]) -> Callable[..., tuple[Any, float]]:
    """`function`, compiled once for each shape of its arguments, and the seconds that it ran."""
    programs: dict[str, Any] = {}

    def call(*args: Any) -> tuple[Any, float]:
        shapes = str(jax.tree.map(jnp.shape, args))
        if shapes not in programs:
            programs[shapes] = jax.jit(function).lower(*args).compile()
        begin = time.perf_counter()
        result = jax.block_until_ready(programs[shapes](*args))
        return result, time.perf_counter() - begin

    return call
