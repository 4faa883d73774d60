"""`training.fit`: the numbers of a bare scan, watched; what goes wrong ends in a clear error."""

import io
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel import (
    SOBA,
    Batch,
    BilevelProblem,
    DoubleLoop,
    Implicit,
    Minimize,
    linear,
    run,
    training,
)
from bilevel.testing import TraceCounter
from bilevel.training import Minibatches, Patience, RunFolder, Seeds, fit
from bilevel.training._loop import Loop
from bilevel.training._progress import ProgressLine, clock
from tests.small_algorithm import CASE, Small

NUM_STEPS = 30


ALGORITHM = Small()
START = ALGORITHM.init(CASE.outer, CASE.init)
DOUBLE_LOOP = DoubleLoop(
    CASE.problem, Implicit(Minimize(optax.sgd(1.0), 5), linear.CG(5)), optax.sgd(0.1)
)


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.fixture(scope="module")
def reference():
    return fit(ALGORITHM, START, CASE.batch, NUM_STEPS)


def test_takes_the_steps_of_a_scan():
    start = DOUBLE_LOOP.init(CASE.outer, CASE.init)
    result = fit(DOUBLE_LOOP, start, CASE.batch, NUM_STEPS)
    state, info = jax.jit(lambda s, b: run(DOUBLE_LOOP, s, b, NUM_STEPS))(start, CASE.batch)
    for ours, scanned in zip(leaves(result.state), leaves(state), strict=True):
        np.testing.assert_allclose(ours, scanned, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.metrics["value"], info.value, rtol=1e-5)
    np.testing.assert_array_equal(result.metrics["linear.status"], info.linear.status)
    assert result.metrics["finite"].all()
    assert (result.num_steps, result.num_skipped, result.reason) == (30, 0, "finished")


@pytest.mark.parametrize("chunk", [1, 7, 30, 1000])
def test_chunks_change_no_bit(reference, chunk):
    result = fit(ALGORITHM, START, CASE.batch, NUM_STEPS, chunk=chunk)
    assert equal(result.state, reference.state)
    assert equal(result.metrics, reference.metrics)


def test_an_iterator_and_a_function_give_the_same(reference):
    batches = iter([CASE.batch] * NUM_STEPS)
    assert equal(fit(ALGORITHM, START, batches, NUM_STEPS).state, reference.state)
    by_step = lambda step, arrays: arrays
    result = fit(ALGORITHM, START, by_step, NUM_STEPS, arrays=CASE.batch)
    assert equal(result.state, reference.state)


def test_a_short_iterator_ends_the_run_and_says_so():
    seen = []
    look = lambda report: seen.append((report.step, "value" in report.metrics))
    batches = iter([CASE.batch] * 3)
    with pytest.warns(UserWarning, match="`data` came to its end after 3 of 30 steps"):
        result = fit(ALGORITHM, START, batches, NUM_STEPS, callbacks=[look], every=3)
    assert seen == [(3, True)]
    assert (result.num_steps, result.reason, len(result.metrics["value"])) == (3, "data", 3)
    assert result.message == "The iterator `data` came to its end after 3 of 30 steps."


def test_compiles_once_for_ragged_chunks_and_equal_runs():
    counter = TraceCounter(CASE.problem.outer_loss)
    problem = BilevelProblem(counter, CASE.problem.inner_loss)
    fit(Small(problem), START, CASE.batch, NUM_STEPS, chunk=7)
    assert counter.count == 1
    fit(Small(problem), START, CASE.batch, 28)  # an equal algorithm, not the same object
    assert counter.count == 1


def test_the_start_is_not_given_up():
    before = leaves(START)
    fit(ALGORITHM, START, CASE.batch, 2)
    assert equal(before, leaves(START))


def noisy(step, arrays):
    """Step 3 sees NaN, and so does every step after it that is a multiple of 3."""
    poison = jnp.where((step > 0) & (step % 3 == 0), jnp.nan, 0.0)
    return arrays._replace(outer=arrays.outer + poison)


@pytest.mark.parametrize("as_iterator", [False, True])
@pytest.mark.parametrize(
    ("rate", "data", "message"),
    [
        (
            0.1,
            noisy,
            r"Step 4 left the finite numbers, and so did its data: (\d+) of \1 numbers of"
            r" `batch\.outer` are not, the first nan\. Mend the data",
        ),
        (
            1e20,
            lambda step, arrays: arrays,
            "while its data are finite: its info has .*value inf.* Lower the step",
        ),
    ],
    ids=["data", "steps"],
)
def test_a_step_that_is_not_finite_raises_with_its_cause(rate, data, message, as_iterator):
    arrays, source = CASE.batch, data
    if as_iterator:
        arrays, source = None, iter([data(jnp.int32(i), CASE.batch) for i in range(9)])
    with pytest.raises(training.NonFiniteError, match=message):
        fit(Small(rate=rate), START, source, 9, arrays=arrays)


@pytest.mark.parametrize("chunk", [2, 30])
def test_stop_keeps_the_last_good_state(chunk):
    result = fit(
        ALGORITHM, START, noisy, NUM_STEPS, arrays=CASE.batch, nan_policy="stop", chunk=chunk
    )
    good = fit(ALGORITHM, START, CASE.batch, 3)
    assert (result.reason, result.num_steps) == ("non_finite", 3)
    assert equal(result.state, good.state)
    assert np.isnan(result.metrics["value"][3]) and len(result.metrics["value"]) == 4
    assert result.message.startswith("Step 4 left the finite numbers, and so did its data")


def test_skip_drops_the_steps_and_goes_on():
    result = fit(ALGORITHM, START, noisy, 8, arrays=CASE.batch, nan_policy="skip")
    assert (result.reason, result.num_steps, result.num_skipped) == ("finished", 8, 2)
    good = fit(ALGORITHM, START, CASE.batch, 6)
    assert equal(result.state, good.state)
    np.testing.assert_array_equal(np.flatnonzero(~result.metrics["finite"]), [3, 6])


def test_an_infinity_that_was_there_from_the_start_is_no_failure():
    start = START._replace(inner=START.inner | {"best": jnp.array([jnp.inf, 1.0])})
    assert fit(ALGORITHM, start, CASE.batch, 3).reason == "finished"


@pytest.mark.parametrize("chunk", [3, 30])
def test_stops_at_the_step_where_the_condition_holds(reference, chunk):
    norms = reference.metrics["hypergrad_norm"]
    threshold = float(np.sort(norms)[NUM_STEPS // 2])
    first = int(np.argmax(norms <= threshold)) + 1
    condition = lambda info: info.hypergrad_norm <= threshold
    result = fit(ALGORITHM, START, CASE.batch, NUM_STEPS, stop_when=condition, chunk=chunk)
    assert (result.reason, result.num_steps) == ("stop_when", first)


def test_patience_waits_for_a_new_minimum():
    values = [5.0, 4.0, 4.5, 3.95, np.nan, 3.9, 3.9]
    rule, waited = Patience(3, lambda info: info, min_decrease=0.2), []
    memory = rule.init(jax.ShapeDtypeStruct((), jnp.float32))
    for value in values:
        memory, stop = rule.update(memory, jnp.float32(value))
        waited.append((int(memory[1]), bool(stop)))
    assert waited == [
        (0, False),
        (0, False),
        (1, False),
        (2, False),
        (3, True),
        (4, True),
        (5, True),
    ]


def test_patience_ends_a_run():
    flat = Small(rate=1e-12)
    result = fit(flat, START, CASE.batch, NUM_STEPS, stop_when=Patience(4, min_decrease=10.0))
    assert (result.reason, result.num_steps) == ("stop_when", 5)


@pytest.mark.parametrize("chunk", [1, 7, None])
def test_callbacks_come_at_fixed_steps_and_can_stop(chunk):
    seen = []

    def callback(report):
        seen.append(
            (report.step, float(report.metrics["value"]), float(report.state.outer["scale"]))
        )
        return report.step >= 20

    options = {"callbacks": [callback], "every": 10, "chunk": chunk}
    result = fit(ALGORITHM, START, CASE.batch, NUM_STEPS, **options)
    assert [step for step, *_ in seen] == [10, 20]
    assert seen[-1][1] == result.metrics["value"][-1]
    assert (result.reason, result.num_steps) == ("callback", 20)
    assert result.message == "A callback ended the run after 20 of 30 steps."


def test_without_every_the_callbacks_come_a_hundred_times():
    steps = []
    fit(ALGORITHM, START, CASE.batch, 250, callbacks=[lambda report: steps.append(report.step)])
    assert steps == list(range(2, 251, 2))


SCORES = {4: 0.5, 8: 0.9, 12: float("nan"), 16: 0.7, 20: 0.9, 24: 0.1, 28: 0.6}


@pytest.mark.parametrize(("highest", "step"), [(True, 8), (False, 24)])
def test_the_best_state_of_a_watched_number_is_kept(highest, step):
    score = lambda report: {"accuracy": SCORES[report.step]}
    watch = training.Watch("accuracy", highest=highest)
    result = fit(ALGORITHM, START, CASE.batch, NUM_STEPS, callbacks=[score], every=4, watch=watch)
    assert (result.best.step, result.best.value) == (step, pytest.approx(SCORES[step]))
    assert equal(result.best.state, fit(ALGORITHM, START, CASE.batch, step).state)
    assert [line["step"] for line in result.evaluations] == list(SCORES)
    assert result.evaluations[0] == {"step": 4, "accuracy": 0.5}


def test_nothing_watched_or_met_is_no_best():
    assert fit(ALGORITHM, START, CASE.batch, 3).best is None
    options = {"callbacks": [lambda report: {"a": 1.0}], "every": 5, "watch": training.Watch("a")}
    assert fit(ALGORITHM, START, CASE.batch, 3, **options).best is None


def test_minibatches_depend_on_the_step_and_the_seed_alone():
    x = jnp.arange(100.0)
    data = Batch(inner={"x": x, "y": 2 * x}, outer=x)
    draw = lambda seed, step: Minibatches(inner=8, outer=4, linear=8, seed=seed)(step, data)
    sample = jax.jit(draw)
    batch = sample(3, 5)
    assert batch.inner["x"].shape == (8,) and batch.outer.shape == (4,)
    np.testing.assert_array_equal(batch.inner["y"], 2 * batch.inner["x"])
    assert not np.array_equal(batch.linear["x"], batch.inner["x"])
    assert equal(sample(3, 5), batch)
    assert not equal(sample(3, 6), batch) and not equal(sample(0, 5), batch)
    stacked = jax.jit(lambda step: draw((0, 3), step))(5)
    assert equal(jax.tree.map(lambda a: a[1], stacked), batch)
    assert Minibatches()(jnp.int32(0), data).outer is x
    epoch = [jax.jit(lambda k: Minibatches(inner=25)(k, data).inner["x"])(k) for k in range(4)]
    assert sorted(np.concatenate(epoch)) == x.tolist()  # each example once


def regression(seed=0):
    """Weighted least squares; the outer variable is a log-regulariser for each weight."""
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(keys[0], (64, 4))
    y = x @ jnp.arange(4.0) + 0.1 * jax.random.normal(keys[1], (64,))
    loss = lambda w, data: jnp.mean((data[0] @ w - data[1]) ** 2)
    problem = BilevelProblem(
        lambda outer, inner, data: loss(inner, data),
        lambda outer, inner, data: loss(inner, data) + jnp.sum(jnp.exp(outer) * inner**2),
    )
    return problem, Batch((x[:32], y[:32]), (x[32:], y[32:]))


def test_ten_seeds_equal_ten_runs():
    problem, arrays = regression()
    single = DoubleLoop(
        problem, Implicit(Minimize(optax.sgd(0.1), 5), linear.CG(4)), optax.adam(0.05)
    )
    inits = jax.random.normal(jax.random.key(1), (10, 4))
    many = Seeds(single, 10, shared_batch=False)
    state = many.init(jnp.full((10, 4), -3.0), inits)
    sampler = Minibatches(inner=16, outer=16, seed=tuple(range(10)))
    result = fit(many, state, sampler, 12, arrays=arrays)
    assert result.metrics["value"].shape == (12, 10)
    # The seed is in `arrays`, not in the sampler, so that ten runs share one program.
    seeded = lambda step, a: Minibatches(inner=16, outer=16, seed=a[0])(step, a[1])
    for seed in range(10):
        start = single.init(jnp.full(4, -3.0), inits[seed])
        alone = fit(single, start, seeded, 12, arrays=(seed, arrays))
        np.testing.assert_allclose(result.metrics["value"][:, seed], alone.metrics["value"], 1e-4)
        for ours, theirs in zip(leaves(result.state), leaves(alone.state), strict=True):
            np.testing.assert_allclose(ours[seed], theirs, rtol=1e-4, atol=1e-5)


def test_skip_drops_only_the_seed_that_failed():
    many = Seeds(ALGORITHM, 2, shared_batch=False)
    pair = jax.tree.map(lambda a: jnp.stack([a, a]), (CASE.outer, CASE.init))
    both = jax.tree.map(lambda a: jnp.stack([a, a]), CASE.batch)

    def data(step, arrays):
        poison = jnp.where(step == 1, jnp.array([0.0, jnp.nan]), 0.0)
        return arrays._replace(outer=arrays.outer + poison[:, None])

    result = fit(many, many.init(*pair), data, 3, arrays=both, nan_policy="skip")
    np.testing.assert_array_equal(result.metrics["finite"], [[1, 1], [1, 0], [1, 1]])
    for seed, num_good in ((0, 3), (1, 2)):
        good = fit(ALGORITHM, START, CASE.batch, num_good)
        for ours, theirs in zip(leaves(result.state), leaves(good.state), strict=True):
            np.testing.assert_allclose(ours[seed], theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(training.NonFiniteError, match="Step 2"):
        fit(many, many.init(*pair), data, 3, arrays=both)


def test_the_progress_line():
    stream = io.StringIO()
    line = ProgressLine(100, None, stream)
    line.update(10, {"value": 1.0})
    line.close()
    assert stream.getvalue() == ""  # no terminal
    line = ProgressLine(100, True, stream)
    line.update(10, {"value": 1.0})
    line.update(50, {"value": np.array([1.0, 2.0]), "hypergrad_norm": 3e-5, "inner_grad_norm": 0.2})
    line.update(51, {"value": 1.5, "accuracy": 0.75})
    line.update(52, {})
    line.update(53, {"value": np.float32(1.5)})
    line.close()
    text = stream.getvalue()
    for part in ("step 50/100", "loss 1.5", "hypergrad 3e-05", "inner grad 0.2", "steps/s", "left"):
        assert part in text
    assert "accuracy 0.75" in text.rsplit("\r")[-1] and "step 52" not in text
    assert text.endswith("\n") and text.count("\n") == 1
    assert [clock(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]


def test_metrics_are_lines_of_json(tmp_path):
    rows = {"value": np.array([1.0, np.nan]), "seeds": np.array([[1, 2], [3, 4]])}
    file = training._metrics.MetricsFile(tmp_path / "metrics.jsonl", None, 0, 0, lambda: "")
    file.write(1, rows, 1, {})
    file.write(3, {"value": np.array([-np.inf]), "seeds": np.array([[5, 6]])}, 1, {})
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN is not JSON
    with (tmp_path / "metrics.jsonl").open("a") as torn:
        torn.write('{"step": 4, "va')
    read = training.read_metrics(tmp_path)
    assert [line["step"] for line in read] == [1, 2, 3]
    assert np.isnan(read[1]["value"]) and read[2]["value"] == -np.inf
    assert read[2]["seeds"] == [5, 6]


def test_log_every_thins_the_file_and_tensorboard_gets_the_same(tmp_path):
    folder = RunFolder(tmp_path / "run", log_every=10, tensorboard=True)
    score = {"callbacks": [lambda report: {"accuracy": np.float32(0.5)}], "every": 15}
    result = fit(ALGORITHM, START, CASE.batch, NUM_STEPS, folder=folder, **score)
    read = training.read_metrics(tmp_path / "run")
    assert [line["step"] for line in read] == [10, 15, 20, 30]
    assert [line.get("accuracy") for line in read] == [None, 0.5, None, 0.5]
    assert read[0]["value"] == pytest.approx(float(result.metrics["value"][9]))
    events = b"".join(p.read_bytes() for p in (tmp_path / "run" / "events").iterdir())
    assert events.count(b"hypergrad_norm") == 4 and events.count(b"accuracy") == 2


WRONG = {
    "steps": (lambda: fit(ALGORITHM, START, CASE.batch, 0), ValueError, "`num_steps` must be"),
    "chunk": (
        lambda: fit(ALGORITHM, START, CASE.batch, 1, chunk=0),
        ValueError,
        "`chunk` must be an integer >= 1, got 0",
    ),
    "data": (
        lambda: fit(ALGORITHM, START, [CASE.batch], 1),
        TypeError,
        r"`data` must be a `bilevel.Batch`.*got list. Pass `iter",
    ),
    "arrays": (
        lambda: fit(ALGORITHM, START, CASE.batch, 1, arrays=1),
        ValueError,
        "`arrays` is what a function.*but `data` is a Batch",
    ),
    "function": (
        lambda: fit(ALGORITHM, START, lambda step, arrays: (1, 2), 1),
        TypeError,
        r"must return a `bilevel.Batch`, got tuple",
    ),
    "closure": (
        lambda: fit(ALGORITHM, START, lambda step, _: Batch(jnp.asarray(np.ones((600, 600)))), 1),
        ValueError,
        r"closes over 1.4 MiB of arrays.*Pass them as `arrays",
    ),
    "iterator": (
        lambda: fit(ALGORITHM, START, iter([1]), 1),
        TypeError,
        "`data` must yield `bilevel.Batch`es, got int at step 0",
    ),
    "empty iterator": (
        lambda: fit(ALGORITHM, START, iter([]), 1),
        ValueError,
        "an iterator that yields nothing",
    ),
    "policy": (
        lambda: fit(ALGORITHM, START, CASE.batch, 1, nan_policy="ignore"),
        ValueError,
        '`nan_policy` must be "raise", "skip" or "stop", got \'ignore\'',
    ),
    "skip": (
        lambda: fit(ALGORITHM, START, CASE.batch, 1, nan_policy="skip"),
        ValueError,
        "needs data that changes from step to step",
    ),
    "stop_when": (
        lambda: fit(ALGORITHM, START, CASE.batch, 1, stop_when=3),
        TypeError,
        "`stop_when` must be a function of the info",
    ),
    "stop_when, a class": (
        lambda: fit(ALGORITHM, START, CASE.batch, 1, stop_when=Patience),
        TypeError,
        "`stop_when` must be .*the class `Patience` itself. Make an instance of it",
    ),
    "data, a class": (
        lambda: fit(ALGORITHM, START, Minibatches, 1),
        TypeError,
        "`data` must be .*the class `Minibatches` itself. Make an instance of it",
    ),
    "patience": (lambda: Patience(0), ValueError, "`num_steps` must be an integer >= 1, got 0"),
    "decrease": (lambda: Patience(1, min_decrease=-1), ValueError, "`min_decrease` must be"),
    "minibatch": (lambda: Minibatches(inner=0), ValueError, "`inner` must be an integer >= 1"),
    "too many": (
        lambda: Minibatches(inner=9)(0, Batch(inner=jnp.zeros(8))),
        ValueError,
        "must be at most the number of examples, got batch_size=9 and 8 examples",
    ),
    "no arrays": (
        lambda: fit(ALGORITHM, START, Minibatches(inner=2), 1),
        TypeError,
        r"`Minibatches` draw from `arrays`.*there are none: write `fit.*arrays=Batch\(inner=",
    ),
    "arrays that are no batch": (
        lambda: fit(ALGORITHM, START, Minibatches(inner=2), 1, arrays=[jnp.zeros(3)]),
        TypeError,
        "`Minibatches` draw from `arrays`.*there are a list",
    ),
    "every": (
        lambda: fit(ALGORITHM, START, CASE.batch, 1, every=0),
        ValueError,
        "`every` must be an integer >= 1, got 0",
    ),
    "callback": (
        lambda: fit(ALGORITHM, START, CASE.batch, 1, callbacks=[3]),
        TypeError,
        "`callbacks` must be a function of a `Report`, got 3",
    ),
    "answer": (
        lambda: fit(ALGORITHM, START, CASE.batch, 1, callbacks=[lambda report: "no"]),
        TypeError,
        "A callback must return None, True to end the run, or a dictionary.*got str at step 1",
    ),
    "numbers": (
        lambda: fit(ALGORITHM, START, CASE.batch, 1, callbacks=[lambda report: {"a": [1]}]),
        TypeError,
        r"A callback must return single numbers, got a=\[1\]",
    ),
    "taken": (
        lambda: fit(ALGORITHM, START, CASE.batch, 1, callbacks=[lambda report: {"value": 1}]),
        ValueError,
        "A callback returned 'value', which the run itself records",
    ),
    "watch": (
        lambda: fit(ALGORITHM, START, CASE.batch, 1, watch="accuracy", callbacks=[print]),
        TypeError,
        "`watch` must be like `Watch.*got 'accuracy'",
    ),
    "watch nothing": (
        lambda: fit(ALGORITHM, START, CASE.batch, 1, watch=training.Watch("a")),
        ValueError,
        "`watch` needs a callback that returns a dictionary with 'a' in it",
    ),
    "watch another": (
        lambda: fit(
            ALGORITHM,
            START,
            CASE.batch,
            1,
            callbacks=[lambda report: {"b": 1.0}],
            watch=training.Watch("a"),
        ),
        ValueError,
        "`watch` names 'a', but the callbacks returned 'b' at step 1",
    ),
    "changed": (
        lambda: RunFolder("x", changed="config"),
        TypeError,
        "`changed` must be a tuple of names of settings, got 'config'",
    ),
    "seeds": (lambda: Seeds(ALGORITHM, 0), ValueError, "`num_seeds` must be an integer >= 1"),
    "unstacked": (
        lambda: Seeds(ALGORITHM, 3).init(CASE.outer, CASE.init),
        ValueError,
        r"`outer` must have a leading axis of length num_seeds=3, got shape \(\) at"
        r" `outer\['scale'\]`",
    ),
    "keep": (lambda: RunFolder("x", keep=0), ValueError, "`keep` must be an integer >= 1, got 0"),
    "config": (
        lambda: RunFolder("x", config={"f": jnp.sin}),
        TypeError,
        "`config` must be a dataclass or a dictionary",
    ),
    "precision": (lambda: training.MixedPrecision(3), TypeError, "`loss` must be a function"),
    "dtype": (
        lambda: training.MixedPrecision(sum, jnp.int32),
        TypeError,
        "`dtype` must be a floating type such as `jnp.bfloat16`",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("module", "option", "extra"),
    [("orbax.checkpoint", {}, "training"), ("tensorboardX", {"tensorboard": True}, "tensorboard")],
)
def test_a_missing_package_is_named(monkeypatch, tmp_path, module, option, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'bilevel\[{extra}\]'"):
        fit(ALGORITHM, START, CASE.batch, 1, folder=RunFolder(tmp_path, **option))


def test_loops_of_unhashable_parts_are_themselves_only():
    class Unhashable(Small):
        __hash__ = None

    algorithm = Unhashable()
    rule = training._stopping.as_rule(None)
    parts = (training._data.same_batch, rule, False, 4, START)
    loop = Loop(algorithm, *parts)
    assert loop == Loop(algorithm, *parts) and hash(loop) == hash(Loop(algorithm, *parts))
    assert loop != Loop(ALGORITHM, *parts)


STRICTLY = {
    "debug_nans": lambda: jax.debug_nans(True),
    "leaks": jax.checking_leaks,
    "promotion": lambda: jax.numpy_dtype_promotion("strict"),
}
TWO_LOSSES = BilevelProblem(
    lambda x, y, data: jnp.sum((y - jnp.mean(data)) ** 2), lambda x, y, data: jnp.sum((y - x) ** 2)
)
SGD = optax.sgd(0.1)
HEALTHY = {
    "double loop": DoubleLoop(TWO_LOSSES, Minimize(SGD, 3), SGD),
    **{
        type(solver).__name__: DoubleLoop(TWO_LOSSES, Implicit(Minimize(SGD, 3), solver), SGD)
        for solver in (
            linear.CG(3),
            linear.MINRES(3),
            linear.GMRES(3),
            linear.Dense(),
            linear.Auto(),
            linear.NormalCG(3),
            linear.Neumann(3, 0.4),
        )
    },
    "single loop": SOBA(TWO_LOSSES, SGD, SGD, SGD),
}


PAIRS = [(strictly, name) for strictly in STRICTLY for name in HEALTHY]


@pytest.mark.parametrize(("strictly", "name"), PAIRS)
def test_healthy_runs_pass_the_checks_of_jax(strictly, name):
    algorithm = HEALTHY[name]
    data = Batch(inner=jnp.ones((4, 1)), outer=jnp.ones((4, 1)))
    with STRICTLY[strictly]():
        result = fit(
            algorithm,
            algorithm.init(jnp.ones(3), jnp.zeros(3)),
            Minibatches(inner=2, outer=2),
            4,
            arrays=data,
            stop_when=Patience(3),
            callbacks=[lambda report: {"score": -report.step}],
            watch=training.Watch("score"),
        )
    assert result.reason == "finished" and result.best.step == 4
