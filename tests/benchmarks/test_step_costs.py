"""No step of an algorithm comes to cost more without a record of it."""

import json
import os
import subprocess
import sys

import jax
import pytest

from benchmarks import step_costs

RECORDED = json.loads(step_costs.RECORD.read_text())


def test_every_algorithm_is_recorded():
    solvers = {type(solver).__name__ for solver in step_costs.SOLVERS}
    assert set(RECORDED["costs"]) == set(step_costs.algorithms()) | solvers
    assert all(count > 0 for costs in RECORDED["costs"].values() for count in costs.values())


def test_what_costs_more_is_named():
    before = {"SOBA": {"flops": 100.0, "bytes": 100.0}}
    now = {"SOBA": {"flops": 114.0, "bytes": 116.0}, "new": {"flops": 1.0, "bytes": 1.0}}
    assert step_costs.worse(now, before) == ["SOBA: bytes 100 -> 116"]
    assert step_costs.worse(before, before) == []


@pytest.mark.slow
@pytest.mark.skipif(
    jax.__version__ != RECORDED["jax"] or jax.default_backend() != "cpu",
    reason="another XLA counts otherwise",
)
def test_no_step_costs_more_than_its_record():
    """In a process of its own: the flags of the tests change what XLA fuses."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.step_costs", "--against", step_costs.RECORD],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
