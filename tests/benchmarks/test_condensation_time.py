"""The table of a condensation: times to an accuracy, over seeds, from the rows of several runs."""

import json
import sys

import pytest

from benchmarks import condensation_time


def row(method, seed, checkpoint, seconds, network, **last):
    step = 0 if method == "random" else 10 * checkpoint
    common = {"step": step, "seconds": seconds, "compile_seconds": 1.0 + seed}
    common |= {"method": method, "seed": seed, "checkpoint": checkpoint}
    return common | {"network": network} | last


def rows(seed):
    last = {"classes": [40.0 + seed], "mlp": [30.0, 50.0]}
    return [
        row("random", seed, 1, 0.0, [20.0], **last),
        row("dc", seed, 1, 1.0, [30.0, 40.0]),
        row("dc", seed, 2, 2.0, [50.0, 60.0], **last),
        row("rcig", seed, 1, 3.0, [56.0, 54.0]),
        row("rcig", seed, 2, 6.0, [60.0 + 2 * seed], **last),
    ]


def test_seeds_of_several_runs_make_one_table(tmp_path, capsys, monkeypatch):
    for seed in (0, 1):
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps({"rows": rows(seed)}))
    folders, figure = [str(tmp_path / f"seed{seed}") for seed in (0, 1)], tmp_path / "time.png"
    monkeypatch.setattr(sys, "argv", ["prog", *folders, "--figure", str(figure)])
    condensation_time.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("| seconds | compile | seconds to 55.0 |")
    assert lines[2] == "| random | 0 | 20.0 ± 0.0 | 40.5 ± 0.7 | 40.0 ± 0.0 | 0.0 |  |  |"
    assert lines[3].endswith("| 2.0 | 2.0 | 2.0 |")
    assert lines[4] == "| rcig | 20 | 61.0 ± 1.4 | 40.5 ± 0.7 | 40.0 ± 0.0 | 6.0 | 2.0 | 3.0 |"
    assert figure.read_bytes().startswith(b"\x89PNG")
    groups = condensation_time.grouped(rows(0))
    assert condensation_time.seconds_to(groups["rcig"], 70.0) is None
    assert "never" in condensation_time.table(groups, "rcig").splitlines()[3]


def test_an_unknown_target_is_refused(tmp_path, capsys, monkeypatch):
    (tmp_path / "result.json").write_text(json.dumps({"rows": rows(0)}))
    monkeypatch.setattr(sys, "argv", ["prog", str(tmp_path), "--target", "mtt"])
    with pytest.raises(SystemExit):
        condensation_time.main()
    assert "--target must be of random, dc, rcig, got mtt." in capsys.readouterr().err
