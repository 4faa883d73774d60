"""A run's folder: resumed to the last bit, and whatever is wrong with it ends in a clear error."""

import dataclasses
import errno
import fcntl
import gc
import io
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel import BilevelProblem, DoubleLoop, Implicit, Minimize, linear, training
from bilevel.training import FolderError, Interrupted, RunFolder, fit, read_metrics
from bilevel.training._checkpoint import Checkpoints
from tests.small_algorithm import CASE, Small

ROOT = pathlib.Path(__file__).parent.parent
ALGORITHM = Small()
START = ALGORITHM.init(CASE.outer, CASE.init)
NUM_STEPS = 24
EVERY = 5


def drifting(step, arrays):
    """Data that differs from step to step, so that a step taken twice or left out would show."""
    return arrays._replace(outer=arrays.outer + 0.01 * step)


def run(
    path,
    num_steps=NUM_STEPS,
    *,
    start=START,
    algorithm=ALGORITHM,
    data=drifting,
    arrays=CASE.batch,
    options=(),
    **settings,
):
    folder = RunFolder(path, **{"checkpoint_every": EVERY} | settings)
    return fit(algorithm, start, data, num_steps, arrays=arrays, folder=folder, **dict(options))


def equal(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "run"
    return run(path), (path / "metrics.jsonl").read_text()


@pytest.fixture
def stopped(tmp_path):
    """A folder with a run that took 12 of its steps."""
    run(tmp_path / "run", 12)
    return tmp_path / "run"


@pytest.fixture
def orbax_fails():
    """Orbax leaves futures behind when it fails; they complain once they are collected: here."""
    yield
    gc.collect()


UNRAISABLE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def saved(path):
    return sorted(p.name for p in (path / "checkpoints").iterdir())


def assert_completes(path, reference, **options):
    result, metrics = reference
    resumed = run(path, resume=True, **options)
    assert equal(resumed.state, result.state) and resumed.num_steps == NUM_STEPS
    assert (path / "metrics.jsonl").read_text() == metrics


def test_resume_continues_to_the_last_bit(stopped, reference):
    assert saved(stopped) == ["000000010", "000000012"]  # the newest two
    assert_completes(stopped, reference)
    # Resumed once more there is nothing to do.
    again = run(stopped, resume=True)
    assert equal(again.state, reference[0].state) and again.metrics == {}


def test_resume_of_nothing_begins(tmp_path, reference):
    assert_completes(tmp_path / "a" / "new", reference)


def test_an_iterator_is_drawn_through(tmp_path):
    batches = [drifting(i, CASE.batch) for i in range(8)]
    whole = fit(ALGORITHM, START, iter(batches), 8)
    first = fit(ALGORITHM, START, iter(batches), 5, folder=tmp_path)
    assert first.message == "All 5 steps were taken."
    resumed = fit(ALGORITHM, START, iter(batches), 8, folder=RunFolder(tmp_path, resume=True))
    assert equal(resumed.state, whole.state) and len(resumed.metrics["value"]) == 3
    with pytest.raises(ValueError, match="yields 3 batches, but the run to resume has seen 8"):
        fit(ALGORITHM, START, iter(batches[:3]), 9, folder=RunFolder(tmp_path, resume=True))


def test_a_run_that_stopped_by_its_rule_stays_stopped(tmp_path):
    options = {"stop_when": lambda info: info.value < 1e9}
    assert run(tmp_path, options=options).num_steps == 1
    again = run(tmp_path, options=options, resume=True)
    assert (again.num_steps, again.reason) == (1, "stop_when")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_resume(tmp_path, reference, number, capsys):
    path, before = tmp_path / "run", signal.getsignal(number)

    def send(report):
        if report.step == 10:
            os.kill(os.getpid(), number)  # Python's handler runs before this callback returns

    with pytest.raises(Interrupted) as caught:
        run(path, options={"callbacks": [send], "chunk": 2}, resume_command="python me.py --resume")
    assert caught.value.code == 128 + number and caught.value.step == 10
    assert "Interrupted after step 10, which is saved in" in capsys.readouterr().err
    assert str(caught.value).endswith("To resume: python me.py --resume")
    assert signal.getsignal(number) == before
    assert_completes(path, reference)


def test_without_a_command_the_arguments_are_named(tmp_path):
    interrupt = lambda report: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"call `fit` with `folder=RunFolder\(.*resume=True\)`"):
        run(tmp_path, options={"callbacks": [interrupt], "chunk": 2})


def test_this_command_adds_what_is_missing(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "a b.py", "--resume"])
    assert training.this_command("--resume", "--x") == "python 'a b.py' --resume --x"


SCRIPT = """
import sys
from tests import test_training_folder as module
print("ready", flush=True)
module.run(sys.argv[1], num_steps=int(sys.argv[2]), resume=True, checkpoint_every=3)
print("done", flush=True)
"""


def last_saved(path):
    folder = path / "checkpoints"
    return (
        max((int(n) for n in os.listdir(folder) if n.isdigit()), default=0)
        if folder.exists()
        else 0
    )


def test_killed_at_random_moments(tmp_path):
    """SIGKILL: nothing is lost, and the last run ends with the numbers of an unbroken one."""
    num_kills = int(os.environ.get("BILEVEL_KILLS", 3))
    num_steps, path = 30 * num_kills, tmp_path / "killed"
    draw = random.Random(0)
    reached = [0]
    for life in range(num_kills + 1):
        command = [sys.executable, "-c", SCRIPT, str(path), str(num_steps)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        if life < num_kills:
            # A moment between starting and a few saves on; saving is most of what this run does.
            target = reached[-1] + draw.randrange(0, 20)
            while last_saved(path) < target and process.poll() is None:
                time.sleep(0.002)
            time.sleep(draw.uniform(0.0, 0.1))
            process.kill()
        last_words, _ = process.communicate(timeout=300)
        reached.append(last_saved(path))
    assert last_words == "done\n" and reached == sorted(reached) and reached[-1] == num_steps
    print(f"steps saved at the end of each life: {reached}")
    whole = run(tmp_path / "whole", num_steps, checkpoint_every=num_steps)
    final = run(path, num_steps, resume=True, checkpoint_every=3)
    assert equal(final.state, whole.state)
    metrics = [(folder / "metrics.jsonl").read_text() for folder in (path, tmp_path / "whole")]
    assert metrics[0] == metrics[1]


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    def second(report):
        run(tmp_path, resume=True)

    with pytest.raises(FolderError, match=rf"is in use by process {os.getpid()}.*would mix"):
        run(tmp_path, options={"callbacks": [second]})


def test_a_folder_with_a_run_is_refused(stopped, reference):
    before = saved(stopped)
    with pytest.raises(FolderError, match="holds a run already. Pass `RunFolder"):
        run(stopped)
    assert saved(stopped) == before
    assert_completes(stopped, reference)


def rule(threshold):
    return lambda info: info.value < threshold


def regularised(strength, rate=0.1, reg_of=lambda strength: lambda x: strength * jnp.sum(x**2)):
    """Algorithms that only a closure tells apart."""
    reg = reg_of(strength)
    inner_loss = lambda outer, inner, data: CASE.problem.inner_loss(outer, inner, data) + reg(0.0)
    return Small(BilevelProblem(CASE.problem.outer_loss, inner_loss), rate)


def nested(inner_rate=0.1, outer_rate=0.05):
    solver = Implicit(Minimize(optax.sgd(inner_rate), 2), linear.CG(2))
    return DoubleLoop(CASE.problem, solver, optax.adam(outer_rate))


ANOTHER = {
    "algorithm": ({}, {"algorithm": Small(rate=0.2)}, "`algorithm.rate` was 0.1 there and is 0.2"),
    "another algorithm": ({}, {"algorithm": nested()}, r"`algorithm` was Small#.* is DoubleLoop\("),
    "closure in a loss": (
        {"algorithm": regularised(1.0)},
        {"algorithm": regularised(3.0)},
        "`algorithm.problem.inner_loss.reg.strength` was 1.0 there and is 3.0 now",
    ),
    "config": ({}, {"config": {"width": 3}}, r"`config` was None there and is dict\(width=3\)"),
    "stop rule": (
        {"options": {"stop_when": rule(1e-9)}},
        {"options": {"stop_when": rule(1e-8)}},
        "`stop_when.condition.threshold` was 1e-09 there and is 1e-08",
    ),
    "policy": ({}, {"options": {"nan_policy": "stop"}}, "`nan_policy` was raise there and is stop"),
    "callbacks": ({}, {"options": {"every": 3}}, "`every` was None there and is 3 now"),
    "data": (
        {},
        {"data": lambda step, arrays: arrays},
        "`data` was drifting#.* there and is <lambda>#",
    ),
    "replace": (
        {"data": training.Minibatches()},
        {"data": training.Minibatches(replace=True)},
        "`data.replace` was False there and is True now",
    ),
    "seed": (
        {"data": training.Minibatches(seed=2)},
        {"data": training.Minibatches(seed=3)},
        "`data.seed` was 2 there and is 3 now",
    ),
    "numbers": (
        {},
        {"arrays": CASE.batch._replace(outer=CASE.batch.outer + 1)},
        "`numbers of the data.outer` was .* there and is",
    ),
}


@pytest.mark.parametrize("name", ANOTHER)
def test_another_run_is_refused_and_may_be_meant(tmp_path, name):
    before, after, message = ANOTHER[name]
    kept = run(tmp_path, 5, **before)
    files = (tmp_path / "run.json").read_bytes()
    with pytest.raises(FolderError, match=f"of another run: {message}.*If the change is meant"):
        run(tmp_path, 6, resume=True, **before | after)
    assert (tmp_path / "run.json").read_bytes() == files
    again = run(tmp_path, 5, resume=True, **before)
    assert equal(again.state, kept.state)


def test_a_change_that_is_meant_is_taken(tmp_path):
    """It must be named, is written down, and is the run's own from then on."""
    run(tmp_path, 5, algorithm=nested(), start=nested().init(CASE.outer, CASE.init))
    other = nested(outer_rate=0.5)
    start = other.init(CASE.outer, CASE.init)
    with pytest.raises(FolderError) as refused:
        run(tmp_path, 10, algorithm=other, start=start, resume=True)
    name = re.search(r"changed=\('(.*)',\)", str(refused.value)).group(1)
    assert name.startswith("algorithm.") and name.endswith(".step_size")
    for changed in ((name,), ("algorithm",), ()):
        steps = run(
            tmp_path, 10, algorithm=other, start=start, resume=True, changed=changed
        ).num_steps
        assert steps == 10


JAX_CONFIG = """
import sys, jax
jax.config.update(*eval(sys.argv[3]))
from tests import test_training_folder as module
module.run(sys.argv[1], num_steps=int(sys.argv[2]), resume=True)
"""


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (("jax_default_matmul_precision", None), None),
        (
            ("jax_default_matmul_precision", "float32"),
            "`jax.jax_default_matmul_precision` was None",
        ),
        (("jax_threefry_partitionable", False), "`jax.jax_threefry_partitionable` was True"),
    ],
)
def test_another_process_resumes_under_the_same_configuration_of_jax(tmp_path, setting, message):
    run(tmp_path, 5)
    command = [sys.executable, "-c", JAX_CONFIG, str(tmp_path), "6", repr(setting)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (process.returncode == 0) == (message is None), process.stderr
    assert message is None or message in process.stderr


def test_the_settings_that_may_change(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Config:
        output: pathlib.Path
        num_steps: int
        widths: tuple[int, ...] = (1, 2)
        resume: bool = False

    run(tmp_path / "run", 5, config=Config(tmp_path, 5))
    longer = Config(tmp_path, 10, resume=True)
    assert run(tmp_path / "run", 10, config=longer, resume=True).num_steps == 10
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["identity"]["config"]
    assert kept == {"": "dict", "output": repr(str(tmp_path)), "widths": ["1", "2"]}
    wider = dataclasses.replace(longer, widths=(1, 3))
    with pytest.raises(FolderError, match=r"`config.widths.1` was 2 there and is 3 now"):
        run(tmp_path / "run", 10, config=wider, resume=True)


def test_another_problem_is_refused(stopped):
    start = START._replace(inner=START.inner | {"extra": jnp.zeros(3)})
    with pytest.raises(FolderError, match=r"another problem.*nothing at.*'extra'.*float32\[3\]"):
        run(stopped, resume=True, start=start)


def test_another_version_is_refused(stopped, monkeypatch):
    about = stopped / "checkpoints" / "000000012" / "about" / "metadata"
    content = json.loads(about.read_text())
    about.write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(FolderError, match="has checkpoint format 99.*reads format 2. Resume with"):
        run(stopped, resume=True)
    monkeypatch.setattr(training._identity, "__version__", "9.9")
    with pytest.raises(FolderError, match="`bilevel` was 0.1.0 there and is 9.9 now"):
        run(stopped, resume=True)


def test_other_devices_are_warned_of(stopped, reference):
    file = stopped / "run.json"
    about = json.loads(file.read_text())
    about["devices"]["count"] = 8
    file.write_text(json.dumps(about))
    with pytest.warns(UserWarning, match="begun with devices.*8.*may differ in their last digits"):
        assert_completes(stopped, reference)


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@UNRAISABLE
@pytest.mark.usefixtures("orbax_fails")
@pytest.mark.parametrize("damage", [truncate, flip, pathlib.Path.unlink])
@pytest.mark.parametrize("item", ["carry", "about"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(stopped, reference, damage, item):
    newest = stopped / "checkpoints" / "000000012"
    damage(largest_file(newest / item / "d" if item == "carry" else newest / item))
    with pytest.raises(FolderError, match="000000012 is damaged.*Delete.*to resume from step 10"):
        run(stopped, resume=True)
    shutil.rmtree(newest)
    assert_completes(stopped, reference)


def test_changed_numbers_are_noticed(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2, {})
    checkpoints.save(1, {"w": jnp.arange(3.0)})
    about = tmp_path / "000000001" / "about" / "metadata"
    content = json.loads(about.read_text())
    about.write_text(json.dumps(content | {"checksums": [content["checksums"][0] ^ 1]}))
    with pytest.raises(FolderError, match="numbers are not those that were saved. .* begin again"):
        checkpoints.restore({"w": jnp.zeros(3)})


def test_every_kind_of_leaf_comes_back(tmp_path):
    tree = {
        "key": jax.random.split(jax.random.key(3)),
        "empty": jnp.zeros((0, 2)),
        "half": jnp.bfloat16(1.5),
        "flag": jnp.array([True, False]),
        "none": None,
    }
    checkpoints = Checkpoints(tmp_path, 1, {})
    checkpoints.save(1, tree)
    like = {**tree, "key": jax.random.split(jax.random.key(0)), "half": jnp.bfloat16(0)}
    back = checkpoints.restore(like)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert a.dtype == b.dtype and jnp.array_equal(a, b)


@UNRAISABLE
@pytest.mark.usefixtures("orbax_fails")
def test_a_full_disk_ends_in_an_error_that_says_what_is_safe(tmp_path, reference):
    """The system refuses files above a limit, as a full disk refuses all."""
    noise = jax.random.normal(jax.random.key(0), (50_000,))  # does not compress
    start = START._replace(inner=START.inner | {"noise": noise})
    whole = run(tmp_path / "whole", start=start)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(report):
        if report.step == 11:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, former[1]))

    path = tmp_path / "run"
    try:
        with pytest.raises(FolderError, match="step 15 cannot be written.*Step 10 is safe.*Free"):
            run(path, start=start, options={"callbacks": [fill], "chunk": 5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert equal(run(path, start=start, resume=True).state, whole.state)
    metrics = [(p / "metrics.jsonl").read_text() for p in (path, tmp_path / "whole")]
    assert metrics[0] == metrics[1]


def test_metrics_that_cannot_be_written(tmp_path, reference):
    def fill(report):
        if report.step == 11:
            (tmp_path / "metrics.jsonl").unlink()
            (tmp_path / "metrics.jsonl").symlink_to("/dev/full")

    with pytest.raises(FolderError, match="metrics.jsonl .*No space left.* Step 10 is safe"):
        run(tmp_path, options={"callbacks": [fill]})
    assert saved(tmp_path)[-1] == "000000010"


def test_folders_that_cannot_be_written(tmp_path):
    with pytest.raises(FolderError, match="/proc/run cannot be used: .*name a folder that can"):
        run("/proc/run")
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="file cannot be used: .*name a folder"):
        run(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FolderError, match="cannot be used: Permission denied"):
        run(tmp_path)


def test_what_a_step_wrote_twice_appears_once(stopped, reference):
    """A crash after metrics were written, and while their checkpoint was."""
    newest = stopped / "checkpoints" / "000000012"
    newest.rename(newest.with_suffix(".orbax-checkpoint-tmp"))
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "va')
    assert len(read_metrics(stopped)) == 12
    assert_completes(stopped, reference)
    assert saved(stopped) == ["000000020", "000000024"]


# Name: the file, its content from what it was, and the message; None where the run goes on.
DAMAGES = {
    "run.json empty": ("run.json", lambda content: b"", "damaged: Expecting value"),
    "run.json cut": ("run.json", lambda content: content[:50], "damaged: "),
    "run.json NULs": ("run.json", lambda content: bytes(len(content)), "damaged: "),
    "run.json {}": ("run.json", lambda content: b"{}", "damaged: it lacks identity, devices"),
    "run.json []": ("run.json", lambda content: b"[]", "damaged: it lacks identity, devices"),
    "run.json binary": ("run.json", lambda content: b"\xff\xfe", "damaged: "),
    "metrics and NULs": ("metrics.jsonl", lambda content: content + bytes(99) + b"\n", None),
    "metrics, garbage": ("metrics.jsonl", lambda content: b'{"st\n' + content, None),
    "metrics no text": ("metrics.jsonl", lambda content: content + b"\xff\n", None),
    "metrics, blank": ("metrics.jsonl", lambda content: content + b"\n", None),
    "metrics, no step": ("metrics.jsonl", lambda content: content + b'{"a": 1}\n', None),
    "metrics, a list": ("metrics.jsonl", lambda content: content + b"[1]\n", None),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_text_file(stopped, reference, name):
    file, damage, message = DAMAGES[name]
    path = stopped / file
    path.write_bytes(damage(path.read_bytes()))
    if message is not None:
        remedy = r"Step 12 is safe.*Delete run\.json"
        with pytest.raises(FolderError, match=f"{message}.*{remedy}"):
            run(stopped, resume=True)
        path.unlink()
    assert_completes(stopped, reference)


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (lambda content: content[:-30], 1),
        (lambda content: b"", 12),
        (lambda content: content.replace(b'"step": 3', b'"stop": 3'), 1),
        (lambda content: bytes(60) + content[60:], 1),
    ],
    ids=["cut", "empty", "name", "NULs"],
)
def test_lost_lines_of_metrics_are_told(stopped, reference, damage, lost):
    file = stopped / "metrics.jsonl"
    content = file.read_bytes()
    file.write_bytes(damage(content))
    with pytest.warns(UserWarning, match=f"{lost} of its 12 lines up to step 12 are lost"):
        result = run(stopped, resume=True)
    assert equal(result.state, reference[0].state)
    assert len(read_metrics(stopped)) == NUM_STEPS - lost


def test_reading_damaged_metrics_leaves_lines_out_and_says_so(stopped):
    with (stopped / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\n[]\n")
    with pytest.warns(UserWarning, match="has 2 damaged lines, which are left out"):
        assert len(read_metrics(stopped)) == 12
    with pytest.raises(FolderError, match=r"metrics\.jsonl cannot be used: No such file.*Name the"):
        read_metrics(stopped / "checkpoints" / "metrics.jsonl")


@UNRAISABLE
@pytest.mark.usefixtures("orbax_fails")
def test_a_folder_that_vanishes(tmp_path):
    path = tmp_path / "run"

    def remove(report):
        if report.step == 7:
            shutil.rmtree(path)

    with pytest.raises(FolderError, match="No such file.*No step is saved in it"):
        run(path, options={"callbacks": [remove]})
    assert not path.exists()
    checkpoints = Checkpoints(path / "checkpoints", 1, {})
    with pytest.raises(FolderError, match="run is gone, and the run that was in it. Put it back"):
        checkpoints.save(1, {"w": jnp.zeros(2)})


def test_checkpoints_without_run_json_are_a_run(stopped, reference):
    (stopped / "run.json").unlink()
    with pytest.raises(FolderError, match="holds a run already"):
        run(stopped)
    assert_completes(stopped, reference)


FULL = ("flock", "write", "fsync", "replace")


@pytest.mark.parametrize("call", FULL)
def test_a_disk_that_is_full_at_the_start(tmp_path, monkeypatch, call):
    """Each call of the system that may refuse, refuses."""

    def refuse(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    class FullFile(io.FileIO):
        write = refuse

    if call == "write":
        opened = pathlib.Path.open
        monkeypatch.setattr(
            pathlib.Path,
            "open",
            lambda path, mode="r", **options: (
                FullFile(path, "a+") if path.name == ".lock" else opened(path, mode, **options)
            ),
        )
    else:
        monkeypatch.setattr(fcntl if call == "flock" else os, call, refuse)
    with pytest.raises(FolderError, match="No space left on device.*(Free space|name a folder)"):
        run(tmp_path)


@pytest.mark.parametrize("key", ["identity", "leaves", "checksums", "num_lines"])
def test_a_checkpoint_that_lacks_something(stopped, key):
    about = stopped / "checkpoints" / "000000012" / "about" / "metadata"
    content = json.loads(about.read_text())
    del content[key]
    about.write_text(json.dumps(content))
    with pytest.raises(FolderError, match=f"damaged: it lacks {key}.*to resume from step 10"):
        run(stopped, resume=True)


def test_a_checkpoint_that_says_nothing(stopped):
    about = stopped / "checkpoints" / "000000012" / "about" / "metadata"
    about.write_text("[]")
    with pytest.raises(FolderError, match="000000012 is damaged: .*to resume from step 10"):
        run(stopped, resume=True)


def score(report):
    """Best at step 8; no function of the run's length."""
    return {"distance": abs(report.step - 8) + 0.5}


@pytest.mark.parametrize("first", [6, 7, 8, 12, 20])
def test_the_best_state_and_own_numbers_survive_an_interruption(tmp_path, first):
    options = {"callbacks": [score], "every": 4, "watch": training.Watch("distance")}
    whole = run(tmp_path / "whole", options=options)
    run(tmp_path / "cut", first, options=options)
    resumed = run(tmp_path / "cut", resume=True, options=options)
    assert (resumed.best.step, resumed.best.value) == (8, 0.5)
    assert equal(resumed.best.state, whole.best.state) and equal(resumed.state, whole.state)
    metrics = [(tmp_path / n / "metrics.jsonl").read_text() for n in ("whole", "cut")]
    assert metrics[0] == metrics[1] and metrics[0].count("distance") == 6


def test_a_callback_that_fails_loses_no_metrics(tmp_path):
    def fail(report):
        if report.step == 7:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(tmp_path, options={"callbacks": [fail]})
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 8))


@pytest.mark.parametrize("suffix", [".png", ".svg", ".html"])
def test_a_run_is_drawn(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    algorithm = nested()
    start = algorithm.init(CASE.outer, CASE.init)
    options = {"callbacks": [score], "every": 4}
    run(tmp_path / "a <run>", 8, algorithm=algorithm, start=start, options=options)
    file = training.plot(tmp_path / "a <run>", tmp_path / f"drawn{suffix}")
    content = file.read_bytes()
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".html": b"<!doctype html>"}
    assert content.startswith(starts[suffix]) and len(content) > 5000
    if suffix == ".html":
        assert b"a &lt;run&gt;" in content and b"step_size=-0.05" in content and b"<svg" in content
    assert training.plot(tmp_path / "a <run>") == tmp_path / "a <run>" / "metrics.png"


def test_panels_of_a_plot():
    lines = [
        {"step": 1, "value": 1.0, "hypergrad_norm": 2.0, "linear.status": 0, "linear.damping": 0.0},
        {"step": 2, "value": np.nan, "hypergrad_norm": 1.0, "linear.status": 1, "accuracy": 0.5},
    ]
    panels = training._plot._panels(lines)
    assert list(panels) == ["outer loss", "norms", "status of linear solves", "accuracy"]
    steps, values = panels["accuracy"]["accuracy"]
    assert (steps.tolist(), values.tolist()) == ([2], [0.5])
    seeds = training._plot._panels([{"step": 1, "value": [1.0, 2.0]}])["outer loss"]["value"]
    assert seeds[1].shape == (1, 2)


def test_plots_that_cannot_be_drawn(stopped, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`file` must end in one of .png.*got 'a.doc'"):
        training.plot(stopped, "a.doc")
    with pytest.raises(FolderError, match=r"metrics\.jsonl cannot be used|cannot be used: No such"):
        training.plot(tmp_path / "nothing")
    (stopped / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="has logged no step yet"):
        training.plot(stopped)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        training.plot(stopped)


CACHED = """
import sys, jax, jax.numpy as jnp
from bilevel import training
jax.jit(lambda x: x + 1)(1.0)  # a program before the folder is named
training.compilation_cache(sys.argv[1])
jax.jit(lambda x: jnp.sin(x) + 2)(1.0)
"""


def test_the_compilation_cache_keeps_small_programs_too(tmp_path):
    environment = {n: v for n, v in os.environ.items() if not n.startswith("JAX_")}
    environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, "-c", CACHED, str(tmp_path / "a" / "cache")]
    counts = []
    for _ in range(2):
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        kept = (tmp_path / "a" / "cache").iterdir()
        counts.append(len([file for file in kept if file.name.endswith("-cache")]))
    assert counts[0] == counts[1] > 0
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="cannot be used: .*Name a folder"):
        training.compilation_cache(tmp_path / "file")
