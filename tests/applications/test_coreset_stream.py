"""Memories of a stream: what each keeps, and a run as a person would do it."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from applications.components.errors import InputError, NonFiniteError
from applications.coreset_stream import Config, best_betas, run
from applications.coresets.memory import (
    POLICIES,
    Memory,
    class_balancing,
    imbalanced_stream,
    merge_reduce,
    reservoir,
)
from applications.coresets.pool import Pool


def toy(labels):
    """Points in the plane around one centre for each class."""
    labels = np.asarray(labels, np.int32)
    noise = np.random.default_rng(0).normal(size=(len(labels), 1, 2, 1))
    centres = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0], [6.0, 6.0]])[labels]
    return Pool((centres[:, None, :, None] + noise).astype(np.float32), labels, 4)


RNG = np.random.default_rng(0)
IMBALANCED = toy([0] * 10 + [1] * 10 + [2] * 10 + [3] * 90)


def after(policy, stream=IMBALANCED, size=12, seed=0):
    """The class counts of the memory when the stream has ended."""
    memory, rng = Memory(np.zeros(0, int), size), np.random.default_rng(seed)
    for first in range(0, len(stream.y), 10):
        memory = policy(stream, memory, np.arange(first, first + 10), rng)
        assert len(np.unique(memory.rows)) == len(memory.rows) <= size
        assert memory.rows.max() < first + 10, "nothing from the future"
    assert len(memory.rows) == size
    return np.bincount(stream.y[memory.rows], minlength=4)


def test_the_reservoir_is_a_uniform_sample():
    counts = np.mean([after(reservoir, seed=seed) for seed in range(60)], axis=0)
    np.testing.assert_allclose(counts, [1, 1, 1, 9], atol=0.5)


def test_class_balancing_balances():
    np.testing.assert_array_equal(after(class_balancing), [3, 3, 3, 3])


def test_the_coreset_keeps_what_its_masses_ask_for():
    for name in ("coreset_seen", "coreset_balanced"):
        assert after(POLICIES[name]).min() >= 1, name
    assert after(POLICIES["coreset_balanced"])[3] < after(reservoir)[3]


def test_slots_merge_the_earliest_neighbours_of_equal_weight():
    """Three slots: as a binary counter that runs over, and never chooses from the future."""
    seen, memory, rng = [], Memory(np.zeros(0, int), 12), np.random.default_rng(0)
    for first in range(0, 60, 10):
        before = memory
        memory = merge_reduce(3, IMBALANCED, memory, np.arange(first, first + 10), rng)
        seen.append(memory.slots)
        assert set(memory.rows) <= set(before.rows) | set(range(first, first + 10))
    assert seen == [(1,), (1, 1), (1, 1, 1), (2, 1, 1), (2, 2, 1), (4, 1, 1)]
    assert after(functools.partial(merge_reduce, 3)).sum() == 12


def test_slots_of_different_weight_merge_last():
    memory = Memory(np.array([1, 11, 21]), 3, slots=(4, 2, 1))
    memory = merge_reduce(3, IMBALANCED, memory, np.arange(30, 40), RNG)
    assert memory.slots == (4, 2, 2) and list(memory.rows[:2]) == [1, 11]
    memory = Memory(np.array([1, 11]), 2, slots=(4, 2))
    memory = merge_reduce(2, IMBALANCED, memory, np.arange(30, 40), RNG)
    assert memory.slots == (4, 3) and memory.rows[0] == 1


def test_the_stream_comes_in_pairs():
    stream, rows = imbalanced_stream(IMBALANCED, 8, 60, np.random.default_rng(0))
    np.testing.assert_array_equal(stream.y, IMBALANCED.y[rows])
    assert len(stream.y) == 68 and stream.y[:8].max() <= 1 and stream.y[8:].min() >= 2


def test_a_run_and_its_files(tmp_path):
    config = Config(
        output=tmp_path / "out",
        policies=("reservoir", "coreset_seen"),
        usual=20,
        last=50,
        memory=10,
        chunk=10,
        epochs=10,
        betas=(0.0, 10.0),
        seeds=(0,),
    )
    result = run(config)
    content = json.loads((tmp_path / "out" / "result.json").read_text())
    assert content["rows"] == result.rows and len(result.rows) == 4
    for policy in config.policies:  # without rehearsal, the last pair is all that is left
        scores = {row["beta"]: row["test"] for row in result.rows if row["policy"] == policy}
        assert scores[10.0] > scores[0.0] and best_betas(result.rows)[policy] == 10.0
    assert "<table>" in (tmp_path / "out" / "report.html").read_text()
    again = run(dataclasses.replace(config, resume=True, seeds=(0, 1)))
    assert again.rows[:4] == result.rows
    with np.load(tmp_path / "out" / "result.npz") as arrays:
        assert arrays["memories"].shape == (4, 10) and arrays["tests"].shape == (8,)
    with pytest.raises(NonFiniteError, match="diverged.*Lower `learning_rate`"):
        run(dataclasses.replace(config, output=tmp_path / "b", learning_rate=1e30))
    assert not (tmp_path / "b" / "result.npz").exists()


BAD = {
    "policy": (dict(policies=("magic",)), "`policies` must be of reservoir"),
    "memory": (dict(memory=0), "`memory` must be a number > 0"),
    "memory and chunk": (dict(memory=30), "`memory` must be below `chunk` = 25 or a multiple"),
    "slots": (dict(memory=5), "a point for each of the 10 slots of coreset_slots, got 5"),
    "betas": (dict(betas=(-1.0,)), "`betas` must be numbers >= 0"),
    "seeds": (dict(seeds=()), "`seeds` must be at least one"),
    "validation": (dict(num_validation=0), "`num_validation` must be a number > 0, got 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings(name):
    settings, message = BAD[name]
    with pytest.raises(InputError, match=message):
        Config(**settings)


def test_fewer_points_than_slots():
    with pytest.raises(InputError, match="a point for each of 13 slots, got 12"):
        after(functools.partial(merge_reduce, 13))


def test_too_short_a_pool():
    with pytest.raises(InputError, match="needs 21 points of classes 0 and 1.*the pool has 20"):
        imbalanced_stream(IMBALANCED, 21, 60, np.random.default_rng(0))
