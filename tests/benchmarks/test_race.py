"""The race keeps to its budget, is fair in its tuning, and its summary ranks what it wrote."""

import json

import numpy as np
import pytest

from benchmarks.standard import summary
from benchmarks.standard.methods import METHODS
from benchmarks.standard.problems import build, quadratic
from benchmarks.standard.race import race, table

BUDGET, SEEDS = 120, 2


@pytest.fixture(scope="module")
def standard():
    return quadratic(num_examples=128, num_inner=5, num_outer=4)


@pytest.fixture(scope="module")
def rows(standard):
    return {
        name: race(name, METHODS[name], standard, BUDGET, SEEDS)
        for name in ("SOBA", "fixed x", "AID, CG", "PZOBO")
    }


def test_no_row_passes_the_budget(rows):
    for row in rows.values():
        assert len(row["gradients"]) == len(row["seconds"]) == len(row["curves"][0])
        assert row["gradients"][-1] == row["steps"] * row["gradients_per_step"] <= BUDGET
        assert len(row["tuning_scores"]) == 10
    assert rows["AID, CG"]["steps"] == BUDGET // (2 * 33)  # two minibatches are all the data


def test_learning_x_pays(rows):
    end = {name: float(np.median(summary.ends(row))) for name, row in rows.items()}
    fixed = rows["fixed x"]["curves"]
    assert np.ptp(fixed) == 0.0
    assert 0 <= end["SOBA"] < 0.5 * end["fixed x"]
    assert "| SOBA | " in table(list(rows.values()))


def test_the_summary_orders_by_mean_rank(rows, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"rows": list(rows.values())}))
    other = [row | {"problem": "another"} for row in rows.values() if row["algorithm"] != "PZOBO"]
    (tmp_path / "b.json").write_text(json.dumps({"rows": other}))
    problems = summary.read(tmp_path)
    ranks = summary.ranks(problems)
    assert "PZOBO" not in ranks  # it did not run everywhere
    assert list(ranks) == sorted(ranks, key=ranks.get) and min(ranks.values()) == 1.0
    assert summary.table(problems).splitlines()[2].startswith(f"| {next(iter(ranks))} | 1.0 |")


def test_missing_data_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="a9a is missing. Pass `--data-dir`"):
        build("a9a", tmp_path)
