"""The contestants of `benchmarks.peers` compute the same hypergradient."""

import pytest

from benchmarks.peers.__main__ import compare
from benchmarks.peers.problems import all_problems

PROBLEMS = all_problems(small=True)


@pytest.mark.parametrize("problem", PROBLEMS, ids=[problem.name for problem in PROBLEMS])
def test_contestants_agree_with_float64(problem):
    rows = compare(problem, turns=1)
    assert {row["name"] for row in rows} >= {"by hand", next(iter(problem.contestants))}
    assert len(rows) >= 3 and max(row["error"] for row in rows) < 1e-5
