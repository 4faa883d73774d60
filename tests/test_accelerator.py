"""The accelerator command: planning, limits, resuming, and every piece at toy size."""

import dataclasses
import json
import sys
import zipfile

import pytest

from benchmarks.accelerator import __main__ as command
from benchmarks.accelerator import estimates, toy
from benchmarks.accelerator.pieces import PIECES, Piece
from benchmarks.accelerator.runner import ARCHIVE, Plan, run_all


def piece(name, code, **changes):
    line = (sys.executable, "-c", code)
    return dataclasses.replace(Piece(name, "?", line, line, lambda: 0.0), **changes)


def plan(folder, **changes):
    return dataclasses.replace(Plan(folder, folder / "data", 1e3, "cpu"), **changes)


def statuses(*args):
    return {record["piece"]: record["status"] for record in run_all(*args)}


def test_a_failing_or_endless_piece_does_not_stop_the_next_and_leaves_its_log(tmp_path):
    write = (
        "import pathlib as p; o = p.Path(r'{out}'); o.mkdir(); (o / 'result.json').write_text('1')"
    )
    pieces = [
        piece("broken", "raise SystemExit('no memory')"),
        piece("endless", "while True: pass", limit=1.0),
        piece("good", write),
    ]
    found = statuses(plan(tmp_path), pieces)
    assert found == {
        "broken": "failed with status 1: see log.txt",
        "endless": "ended at its limit of 1 s",
        "good": "done",
    }
    assert "no memory" in (tmp_path / "broken" / "log.txt").read_text()
    with zipfile.ZipFile(tmp_path / ARCHIVE) as archive:
        assert "good/result/result.json" in archive.namelist()
    # What is done stays done; what is not is tried again.
    again = statuses(plan(tmp_path), pieces)
    assert (again["good"], again["broken"]) == ("done before", found["broken"])


def test_what_does_not_fit_or_lacks_its_data_is_skipped_with_the_reason(tmp_path):
    pieces = [
        piece("large", "1", flops=lambda: 1e15),
        piece("no_data", "1", needs=("cifar-10-batches-bin",)),
        piece("small", "1"),
    ]
    found = statuses(plan(tmp_path, budget=60.0), pieces)
    assert found["large"] == "skipped: takes about 480 s, 60 s are left"
    assert found["no_data"] == f"skipped: no cifar-10-batches-bin in {tmp_path / 'data'}"
    assert found["small"] == "done"
    rehearsed = statuses(plan(tmp_path, budget=0.0, rehearse=True), pieces)
    assert rehearsed["large"] == "done"


def test_operations_of_a_training_step_are_those_of_a_closed_form():
    # Three products of a dense layer of 192 inputs, 128 and 10 outputs; none for the input's own.
    layers = 192 * 128, 128 * 10
    expected = 2 * (2 * layers[0] + 3 * layers[1])
    assert estimates.of_training("mlp", side=8) == pytest.approx(expected, rel=0.05)
    assert estimates.of_training("resnet18") > estimates.of_training("resnet9") > 1e9


def test_the_plan_names_every_piece_and_a_wrong_name_is_told(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_platform", lambda: "cpu")
    assert command.main(["--plan", "--only", "seeds", "--output", str(tmp_path / "a")]) == 0
    assert "seeds" in capsys.readouterr().out
    assert not (tmp_path / "a").exists()
    assert command.main(["--only", "sedes"]) == 2
    assert "'sedes'" in capsys.readouterr().out
    assert len({piece.name for piece in PIECES}) == len(PIECES)


@pytest.mark.slow
@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece.name)
def test_every_piece_runs_at_toy_size(tmp_path, piece):
    toy.write(tmp_path / "toy.npz")
    patient = dataclasses.replace(piece, limit=1200.0)
    (record,) = run_all(plan(tmp_path, rehearse=True), [patient])
    assert record["status"] == "done", (tmp_path / piece.name / "log.txt").read_text()[-3000:]
    result = tmp_path / piece.name / "result" / "result.json"
    if "{out}" in piece.toy:
        assert json.loads(result.read_text())
