"""Several devices: eight virtual ones in one process, and two processes, each a program of its own.

They run apart, with a time limit: virtual devices must be asked for before JAX starts, and a
program of several devices that waits for another would wait for ever.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import Batch, sharding, training
from tests import sharded_run

ROOT = pathlib.Path(__file__).parent.parent
SECONDS = 240


def start(num_devices, *arguments):
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.sharded_run", *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    try:
        output, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


def test_eight_devices_equal_one_and_talk_no_more_for_more_inner_steps():
    found = finish(start(8, "eight_devices"))
    names = {"replicated, implicit", "sharded, implicit", "replicated, unrolled"}
    assert set(found["errors"]) == names
    assert max(found["errors"].values()) < 1e-5
    few, many = found["collectives"]["5"], found["collectives"]["50"]
    assert few == many > 0 and found["collectives of one device"] == 0


def test_a_language_model_whose_parameters_and_batches_are_split():
    found = finish(start(8, "language"))
    assert found["error"] < 1e-5
    alone, spread = found["memory"]
    assert spread < alone / 2


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [start(1, "two_processes", address, rank, str(tmp_path / "run")) for rank in "01"]
    try:
        first, second = (finish(process) for process in both)
    finally:
        for process in both:
            process.kill()
    assert first == second and (first["devices"], first["processes"]) == (2, 2)
    assert first["resumed equal"]
    problem, data = sharded_run.problem_and_data()
    algorithm, state = sharded_run.make(problem)
    alone = training.fit(algorithm, state, data, 12)
    np.testing.assert_allclose(first["outer"], alone.state.outer, atol=1e-5)
    np.testing.assert_allclose(first["value"], alone.metrics["value"], atol=1e-5)
    lines = training.read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 13))


MESH = sharding.data_mesh(jax.devices()[:1])


def test_a_batch_keeps_its_numbers():
    batch = Batch(inner=(jnp.arange(6.0).reshape(3, 2), 2.0), outer=jnp.arange(3))
    placed = sharding.shard_batch(batch, MESH)
    pairs = zip(jax.tree.leaves(placed), jax.tree.leaves(batch), strict=True)
    assert all(jnp.array_equal(a, b) for a, b in pairs)


def three_devices():
    """A mesh to check shapes against; nothing is placed on it."""
    return jax.sharding.AbstractMesh((3,), ("data",))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sharding.shard_batch(Batch(inner=jnp.zeros((10, 2))), three_devices()),
            r"`batch.inner` must have a multiple of 3 examples.*got 10 .*Drop 1 of them, or add 2",
        ),
        (
            lambda: sharding.shard_batch(Batch(inner=jnp.zeros(3)), MESH, dim=1),
            r"`batch.inner` has shape \(3,\) and no dimension 1 to split",
        ),
        (
            lambda: sharding.shard_batch(Batch(), MESH, axis="model"),
            "`axis` must be an axis of the mesh, one of 'data', got 'model'",
        ),
        (
            lambda: sharding.shard_fully(Batch(), MESH, axis="model"),
            "`axis` must be an axis of the mesh, one of 'data', got 'model'",
        ),
    ],
)
def test_wrong_placement(call, message):
    with pytest.raises(ValueError, match=message):
        call()
