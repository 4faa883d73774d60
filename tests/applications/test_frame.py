"""What every page is built on: folders and their owners, pieces, keys, command lines, the audit."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from applications import PAGES, __main__, audit
from applications.components import frame
from applications.components.data import from_arrays
from applications.components.errors import InputError
from applications.components.work import Run

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """A page."""

    num_steps: int = 3
    """Steps; more cost more."""


def points(seed=0):
    return from_arrays(np.random.default_rng(seed).normal(size=(20, 3)), np.arange(20) % 2)


def failing():
    raise AssertionError("computed again")


def test_a_piece_is_made_once(tmp_path):
    config = Config(output=tmp_path / "out")
    with Run("page", config, points()) as run:
        made = run.keep("a/b c", lambda: {"x": np.arange(3), "y": np.float64(0.1)})
        tree = run.tree("t", lambda: {"w": jnp.ones((2, 2)), "b": (jnp.int32(3), None)})
        run.write_arrays({"rows": np.arange(4)})
    again = dataclasses.replace(config, resume=True, seeds=(0, 1, 2, 3))
    with Run("page", again, points()) as run:
        there = run.keep("a/b c", failing)
        # The function is traced for the structure, and not run.
        same = run.tree("t", lambda: {"w": jnp.ones((2, 2)), "b": (jnp.int32(3), None)})
    assert there["x"].tolist() == [0, 1, 2] and there["y"] == made["y"] == 0.1
    assert jax.tree.structure(same) == jax.tree.structure(tree)
    assert same["b"][0].dtype == jnp.int32 and same["w"].tolist() == tree["w"].tolist()
    with np.load(tmp_path / "out" / "result.npz") as arrays:
        assert arrays["rows"].tolist() == [0, 1, 2, 3]
        assert json.loads(str(arrays["config"]))["num_steps"] == 3


def test_settings_as_people_write_them_in_python():
    config = Config(output="out", data_dir="d", seeds=[3, 4])
    assert config == Config(output=pathlib.Path("out"), data_dir=pathlib.Path("d"), seeds=(3, 4))
    for single in (0, "FT"):
        with pytest.raises(
            InputError, match=f"`seeds` must be a tuple, got {single!r}. Write seeds="
        ):
            Config(seeds=single)


def test_it_ends_in_what_it_found_and_where(tmp_path, capsys):
    with Run("page", Config(output=tmp_path / "out"), points()) as run:
        pass
    run.finding = "Half of [bold] is 3."
    run.write_arrays({"rows": np.arange(4)})
    *_, found, where = capsys.readouterr().out.rstrip().splitlines()
    assert found == "Half of [bold] is 3."
    assert where == f"The whole report: {tmp_path}/out/report.html"


def test_names_that_differ_after_a_point_are_two_pieces(tmp_path):
    with Run("page", Config(output=tmp_path / "out"), points()) as run:
        for value in (0.1, 0.3):
            run.keep(f"rate {value}", lambda value=value: {"x": np.array(value)})
        assert run.keep("rate 0.1", failing)["x"] == 0.1
        with pytest.raises(AssertionError, match="computed again"):
            run.keep("new", failing)
        assert not run.path("new.npz").exists()


def refused(folder, match, page="page", dataset=None, **changes):
    with pytest.raises(InputError, match=match):
        Run(page, Config(output=folder, **changes), points() if dataset is None else dataset)


def test_only_its_owner_touches_a_folder(tmp_path):
    folder = tmp_path / "out"
    with Run("page", Config(output=folder), points()) as run:
        run.write("report.html", "mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for how in ("resume", "overwrite"):
        refused(folder, "holds files of the page page and is left as it is", "other", **{how: True})
    refused(folder, "exists and is left as it is.*--overwrite.*--resume")
    refused(folder, "`num_steps` was 3 and is now 4", resume=True, num_steps=4)
    refused(folder, "needs the data that", resume=True, dataset=points(1))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with Run("page", Config(output=folder, overwrite=True, num_steps=4), points()) as run:
        run.keep("piece", lambda: {"a": np.ones(1)})
    with Run("page", Config(output=folder, overwrite=True, num_steps=4), points()):
        assert not (folder / "pieces").exists()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").write_text("kept")
    refused(tmp_path / "theirs", "holds files of no page", overwrite=True)
    refused(tmp_path / "theirs" / "notes.txt", "must be a folder, got the file")


def test_damaged_files_are_named(tmp_path):
    config = Config(output=tmp_path / "out", resume=True)
    with Run("page", config, points()) as run:
        run.keep("piece", lambda: {"a": np.ones(1)})
        run.path("piece.npz").write_bytes(b"PK")
        with pytest.raises(InputError, match="piece.npz is damaged .* Delete it"):
            run.keep("piece", failing)
    (tmp_path / "out" / "run.json").write_text("{")
    refused(tmp_path / "out", "run.json is damaged")


def test_keys_come_from_names():
    key = jax.random.key(0)
    names = ("search", "sets", "a", "b")
    keys = [frame.named_key(key, name) for name in names]
    assert len({tuple(jax.random.key_data(k).tolist()) for k in keys}) == len(names)
    nested = frame.named_key(frame.named_key(key, "a"), "b")
    assert bool(jnp.all(jax.random.key_data(nested) == jax.random.key_data(
        frame.named_key(key, "a", "b"))))  # fmt: skip
    assert jax.random.key_data(keys[0]).tolist() == [3972534855, 3565834584]  # on every machine


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(seeds=()), "`seeds` must be at least one, each once"),
        (dict(seeds=(1, 1)), "each once, got"),
        (dict(seeds=(0, 2**32)), "must lie between 0 and 4294967295"),
        (dict(seeds=(-1,)), "must lie between 0 and"),
        (dict(overwrite=True, resume=True), "exclude each other"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        Config(**settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mine"], "`data` must be one of digits, .*npz:FILE.*got 'mine'"),
        (["--data", "npz:missing.npz"], "`data` npz:missing.npz does not exist"),
        (["--output", "/proc/here"], "/proc/here.*: No such file"),
        (["--model", "nothing"], "`model` must be one of auto"),
        (["--seeds", "1", "1"], "`seeds` must be at least one, each once"),
    ],
)
def test_every_mistake_is_one_line_and_status_2(arguments, message, capsys):
    def run(config):
        dataset = config.load()
        config.build(dataset)
        with Run("page", config, dataset):
            pass

    with pytest.raises(SystemExit) as stopped:
        frame.main("page", Config, run, [*arguments, "--no-cache"])
    text = capsys.readouterr().err
    assert stopped.value.code == 2 and len(text.strip().splitlines()) == 1
    assert re.search(message, text), text


def test_compiled_programs_are_kept_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.values["jax_compilation_cache_dir"]
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        frame.main("page", Config, lambda config: None, ["--no-cache"])
        assert jax.config.values["jax_compilation_cache_dir"] is None
        frame.main("page", Config, lambda config: None, [])
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "bilevel")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_one_command_lists_and_reaches_every_page(capsys):
    __main__.main(["list"])
    text = capsys.readouterr().out
    assert all(f"  {name.replace('_', '-')} " in text for name in PAGES)
    assert "from applications.forget_set import Config, run" in text
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["forget-sett"])
    assert stopped.value.code == 2 and "Did you mean forget-set?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["audit"])
    assert stopped.value.code == 2 and "got 0 files" in capsys.readouterr().err


def logits(rng, **labels):
    return {name: rng.normal(size=(len(y), 3)) + 3 * np.eye(3)[y] for name, y in labels.items()}


def test_an_audit_needs_logits_alone(tmp_path):
    rng = np.random.default_rng(0)
    labels = {name: rng.integers(0, 3, n) for name, n in
              (("forget", 10), ("retain", 60), ("test", 30))}  # fmt: skip
    paths = [tmp_path / f"{name}.npz" for name in ("original", "retrain", "mine")]
    models = [logits(rng, **labels) for _ in paths]
    models[2] = models[1]  # which cannot be told from the retrained one
    for path, model in zip(paths, models, strict=True):
        np.savez(path, **model, **{f"y_{k}": v for k, v in labels.items()})
    rows = audit.run(audit.Config(files=tuple(paths), report=tmp_path / "a.html"))
    assert [row["model"] for row in rows] == ["original", "retrain", "mine"]
    assert rows[2]["gap"] == rows[2]["divergence"] == 0.0 < rows[0]["divergence"]
    page = (tmp_path / "a.html").read_text()
    assert "mine comes closest to the retrained model" in page
    np.savez(paths[1], **{k: v[:, :2] for k, v in models[1].items()})
    with pytest.raises(InputError, match="`labels of retrain: forget` must lie between 0 and 1"):
        audit.run(audit.Config(files=tuple(paths)))
    np.savez(paths[1], **{k: v[1:] for k, v in models[1].items()})
    with pytest.raises(InputError, match="must be logits .n, num_classes. for n labels"):
        audit.run(audit.Config(files=tuple(paths)))


@pytest.mark.slow
def test_the_wheel_has_one_package_with_its_types(tmp_path):
    build = f"import hatchling.build; print(hatchling.build.build_wheel({str(tmp_path)!r}))"
    name = subprocess.run([sys.executable, "-c", build], cwd=ROOT, capture_output=True, text=True,
                          check=True).stdout.strip()  # fmt: skip
    site = tmp_path / "site"
    zipfile.ZipFile(tmp_path / name).extractall(site)
    assert {path.name for path in site.iterdir()} == {"bilevel", "bilevel-0.1.0.dist-info"}
    environment = {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu", "PATH": ""}
    command = [sys.executable, "-c", "from bilevel._command import main; main()", "list"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "forget-set" in run.stdout, run.stderr
    (tmp_path / "user.py").write_text(
        "import bilevel\nfrom bilevel.applications.forget_set import Config\n"
        "reveal_type(Config().seeds)\nbilevel.Minimize(3, 'a')\n"
    )
    command = [sys.executable, "-m", "mypy", "--no-incremental", "user.py"]
    run = subprocess.run(command, cwd=tmp_path, env=environment | {"MYPYPATH": str(site)},
                         capture_output=True, text=True)  # fmt: skip
    assert 'Revealed type is "tuple[int, ...]"' in run.stdout.replace("builtins.", "")
    assert 'Argument 2 to "Minimize" has incompatible type "str"' in run.stdout, run.stdout
