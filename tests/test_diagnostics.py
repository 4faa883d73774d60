"""The evidence is tested as evidence: over a thousand random cases, and on wrong hypergradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from benchmarks.evidence import ROUNDING, calibration, correction_sweep, slope
from bilevel import (
    Batch,
    BilevelProblem,
    Implicit,
    Minimize,
    SignUnrolled,
    Truncated,
    corrected_hypergradient,
    linear,
)
from bilevel.diagnostics import (
    HypergradError,
    check_hypergrad,
    check_labels,
    diagnose,
    plan_memory,
)
from bilevel.diagnostics._double import as_double, double_precision
from bilevel.linear import LinearInfo, LinearSolution
from bilevel.testing import logistic, quadratic, ridge, standard_cases


def test_the_estimate_bounds_the_true_error_in_99_percent():
    estimate, error, norm = calibration()
    assert estimate.size >= 1000
    # Below this the oracle itself is rounding.
    covered = error <= np.maximum(estimate, ROUNDING * norm)
    assert covered.mean() >= 0.99, covered.mean()
    assert np.isfinite(estimate).mean() > 0.9


def test_the_estimate_is_within_a_factor_five_in_the_median():
    estimate, error, norm = calibration()
    seen = error > ROUNDING * norm
    ratio = estimate[seen] / error[seen]
    assert 1 / 5 < np.median(ratio) < 5, np.median(ratio)
    assert np.ptp(np.log10(error[seen] / norm[seen])) > 6  # from hopeless to nearly exact


def test_the_corrected_error_falls_with_the_square(x64):
    (plain, estimate, corrected), _ = correction_sweep(num_steps=(5, 8, 12, 18, 26))
    assert slope(plain, corrected) >= 1.8
    # Once the error is below 2 %, the estimate of it is within a few percent.
    np.testing.assert_allclose(estimate[2:], plain[2:], rtol=0.03)


def test_the_correction_is_exact_on_a_quadratic(x64):
    case = quadratic(jax.random.key(0), condition=100.0, dtype="float64")
    solver = Implicit(Minimize(optax.sgd(1.0), 3), linear.CG(tolerance=1e-13))
    result = jax.jit(
        lambda x: corrected_hypergradient(case.problem, solver, x, case.init, case.batch)
    )(case.outer)
    exact = ravel_pytree(case.hypergrad(case.outer))[0]
    corrected, plain = (ravel_pytree(t)[0] for t in (result.hypergrad, result.correction.hypergrad))
    assert jnp.linalg.norm(plain - exact) > 0.01 * jnp.linalg.norm(exact)
    assert jnp.linalg.norm(corrected - exact) < 1e-9 * jnp.linalg.norm(exact)
    assert float(result.correction.contraction) < 1e-10


def test_correction_needs_an_implicit_rule():
    case = ridge(jax.random.key(0))
    with pytest.raises(TypeError, match="`solver` must be an `Implicit`"):
        corrected_hypergradient(
            case.problem, Minimize(optax.sgd(0.1), 3), case.outer, case.init, case.batch
        )


def test_the_correction_sees_through_a_wrapper(x64):
    @dataclasses.dataclass(frozen=True)
    class Counted:
        solver: object

        def __call__(self, *args):
            return self.solver(*args)

    case = ridge(jax.random.key(0), dtype="float64")
    rule = Implicit(descend(case, 10), linear.CG(tolerance=1e-13))
    args = case.outer, case.init, case.batch
    found, expected = (
        corrected_hypergradient(case.problem, solver, *args) for solver in (Counted(rule), rule)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


LABELS = {
    "negative": (
        [0, -1],
        3,
        ValueError,
        r"must lie in \[0, 3\), got -1 at entry 1 and 1 such",
    ),
    "too large": ([[0, 3]], 3, ValueError, "got 3 at entry 1"),
    "floating": ([0.0], 3, TypeError, "`labels` must be an array of integers, got float64"),
    "classes": ([0], 0, ValueError, "`num_classes` must be an integer >= 1, got 0"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_out_of_range_are_told(name):
    labels, num_classes, error, message = LABELS[name]
    with pytest.raises(error, match=message):
        check_labels(np.array(labels), num_classes)


def test_labels_in_range_pass():
    check_labels(jnp.array([0, 2]), 3)
    check_labels(np.zeros(0, np.uint8), 1)


def test_a_seed_is_no_key():
    case = ridge(jax.random.key(0))
    args = case.problem, descend(case, 3), case.outer, case.init, case.batch
    with pytest.raises(TypeError, match=r"`key` must be one random key, got 0: pass `jax.random"):
        check_hypergrad(*args, key=0)


def descend(case, num_steps):
    return Minimize(optax.sgd(1 / case.curvature[1]), num_steps)


DIAGNOSED = {
    "converged": lambda case: Implicit(descend(case, 300)),
    "few inner steps": lambda case: Implicit(descend(case, 12)),
    "few linear steps": lambda case: Implicit(descend(case, 100), linear.CG(max_steps=2)),
    "truncated": lambda case: Truncated(descend(case, 60), 8),
    "sign": lambda case: SignUnrolled(0.02, 60),
}


@pytest.mark.parametrize("name", DIAGNOSED)
def test_diagnosis_of_every_rule_in_float32(name):
    case = logistic(jax.random.key(0))
    found = diagnose(case.problem, DIAGNOSED[name](case), case.outer, case.init, case.batch)
    with double_precision():
        truth = logistic_truth()
    error = np.linalg.norm(np.asarray(found.hypergrad, np.float64) - truth)
    assert error <= found.error_estimate <= 10 * error + 1e-6
    assert found.linear_status is None or "linear solve" in str(found)
    assert not found.concerns and "condition number" in str(found)


@functools.cache
def logistic_truth():
    """The float32 case's own data, solved in float64."""
    case = logistic(jax.random.key(0))
    outer, batch = as_double((case.outer, case.batch))
    loss = case.problem.inner_loss

    def newton(_, y):
        g = jax.grad(loss, 1)(outer, y, batch.inner)
        return y - jnp.linalg.solve(jax.hessian(loss, 1)(outer, y, batch.inner), g)

    y = jax.lax.fori_loop(0, 30, newton, jnp.zeros(6))
    cotangent = jax.grad(case.problem.outer_loss, 1)(outer, y, batch.outer)
    u = jnp.linalg.solve(jax.hessian(loss, 1)(outer, y, batch.inner), cotangent)
    return np.asarray(-jnp.exp(outer) * y * u)


def test_concerns_name_what_is_wrong():
    saddle = BilevelProblem(
        lambda x, y, b: jnp.sum((y - 1) ** 2), lambda x, y, b: 0.25 * jnp.sum((y**2 - x) ** 2)
    )
    found = diagnose(
        saddle, Implicit(Minimize(optax.sgd(0.01), 2)), jnp.ones(2), jnp.full(2, 0.1), Batch()
    )
    assert "not positive definite" in str(found)
    overshot = BilevelProblem(  # a Newton step from afar leads farther away
        lambda x, y, b: jnp.sum(y**2), lambda x, y, b: jnp.sum(jnp.logaddexp(y - x, x - y))
    )
    found = diagnose(
        overshot, Implicit(Minimize(optax.sgd(0.1), 1)), jnp.ones(2), jnp.full(2, 4.0), Batch()
    )
    assert "take more inner steps" in str(found)
    single = BilevelProblem(
        lambda x, y, b: jnp.sum(y**2), lambda x, y, b: jnp.sum((y - x) ** 2).astype(jnp.float32)
    )
    found = diagnose(
        single, Implicit(Minimize(optax.sgd(0.5), 9)), jnp.ones(2), jnp.ones(2), Batch()
    )
    assert "computes in float32" in str(found)


@dataclasses.dataclass(frozen=True)
class JaxScipyCG:
    """JAX's own CG as a linear solver: no evidence, and zeros for a NaN right-hand side."""

    maxiter: int = 50
    normal: bool = False

    def __call__(self, matvec, rhs, init=None):
        product = (lambda v: matvec(matvec(v))) if self.normal else matvec
        target = matvec(rhs) if self.normal else rhs
        value, _ = jsp.sparse.linalg.cg(product, target, maxiter=self.maxiter, tol=1e-6)
        zero = jnp.zeros(())
        return LinearSolution(value, LinearInfo(jnp.int32(0), jnp.int32(0), *[zero] * 4))


def test_check_passes_what_is_right():
    for case in standard_cases():
        solver = Implicit(descend(case, 400), linear.CG())
        found = check_hypergrad(
            case.problem, solver, case.outer, case.init, case.batch, key=jax.random.key(0)
        )
        assert found.cosine > 0.9999 and found.relative_error < 1e-3
        second = Implicit(descend(case, 400), linear.Dense())
        check_hypergrad(
            case.problem,
            solver,
            case.outer,
            case.init,
            case.batch,
            key=jax.random.key(0),
            reference=second,
        )


def ill_conditioned():
    case = quadratic(jax.random.key(3), num_inner=40, condition=1e4)
    return case, Minimize(optax.lbfgs(), 300)


def failing(name):
    case = logistic(jax.random.key(0))
    if name == "normal-equation CG in float32":
        case, solver = ill_conditioned()
        return case, Implicit(solver, JaxScipyCG(400, normal=True)), "is off by"
    if name == "CG that never converges":
        solver = Implicit(descend(case, 300), linear.CG(max_steps=1))
        return case, solver, "ended NOT_CONVERGED"
    if name == "bias":
        return case, Truncated(descend(case, 300), 2), "truncated or one-step rule is biased"
    if name == "zero":
        return case, SignUnrolled(0.01, 300), "is zero, hence off by 100.0% against the reference"
    if name == "unsolved":
        return case, descend(case, 4), "derivative of the steps that were taken"
    raise KeyError(name)


@pytest.mark.parametrize(
    "name",
    ["normal-equation CG in float32", "CG that never converges", "bias", "zero", "unsolved"],
)
def test_check_fails_loudly(name):
    case, solver, message = failing(name)
    with pytest.raises(HypergradError, match=message):
        check_hypergrad(
            case.problem, solver, case.outer, case.init, case.batch, key=jax.random.key(0)
        )


def test_check_refuses_nan_and_the_zero_made_of_it():
    """A NaN cotangent: JAX's CG returns zero, and our own NaN; neither passes."""
    problem = BilevelProblem(
        lambda x, y, b: jnp.sum(jnp.sqrt(y - x)), lambda x, y, b: 0.5 * jnp.sum((y - x) ** 2)
    )
    args = (jnp.ones(2), jnp.zeros(2), Batch())
    for solver, message in ((JaxScipyCG(), "not finite"), (linear.CG(), "entries of the")):
        with pytest.raises(HypergradError, match=message):
            check_hypergrad(
                problem,
                Implicit(Minimize(optax.sgd(0.5), 50), solver),
                *args,
                key=jax.random.key(0),
            )


@pytest.mark.parametrize("settings", [dict(tolerance=0.0), dict(num_directions=0)])
def test_check_settings_out_of_range(settings):
    case = ridge(jax.random.key(0))
    args = (case.problem, descend(case, 3), case.outer, case.init, case.batch)
    with pytest.raises(ValueError, match="must be"):
        check_hypergrad(*args, key=jax.random.key(0), **settings)


def test_plan_orders_by_memory_and_runs_nothing():
    case = logistic(jax.random.key(0), num_weights=32)
    plain = Minimize(optax.sgd(0.1), 64)
    candidates = {
        "plain": dataclasses.replace(plain, remat="none", mode="reverse"),
        "step": plain,
        "implicit": Implicit(plain),
    }
    shapes = jax.eval_shape(lambda: (case.outer, case.init, case.batch))
    plan = plan_memory(case.problem, Implicit(plain), *shapes, candidates=candidates)
    memory = {row.name: row.memory for row in plan.rows}
    assert memory["implicit"] < memory["step"] < memory["plain"]
    assert [row.memory for row in plan.rows] == sorted(memory.values())
    assert all(row.compile_seconds > 0 and row.flops > 0 for row in plan.rows)
    assert "GFLOP" in str(plan)


def test_plan_counts_loops_by_their_length():
    case = ridge(jax.random.key(0))
    flops = [
        plan_memory(
            case.problem,
            Minimize(optax.sgd(0.1), n),
            case.outer,
            case.init,
            case.batch,
            candidates={"": Minimize(optax.sgd(0.1), n, remat="none")},
        )
        .rows[0]
        .flops
        for n in (10, 100)
    ]
    assert 9 < flops[1] / flops[0] < 10.5


def test_plan_has_standard_candidates():
    case = ridge(jax.random.key(0))
    solver = Implicit(Minimize(optax.sgd(0.1), 16))
    plan = plan_memory(case.problem, solver, case.outer, case.init, case.batch)
    names = {row.name for row in plan.rows}
    assert {"Implicit, CG", "Truncated, last=4", "unrolled, remat='none'"} <= names
    with pytest.raises(ValueError, match="`solver` holds no `Minimize`"):
        plan_memory(case.problem, lambda loss, x, y, b: y, case.outer, case.init, case.batch)
