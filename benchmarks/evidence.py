"""How right the evidence is: the error estimate on random cases, and the corrected hypergradient.

    python -m benchmarks.evidence --figure docs/figures/correction.png

Prints how often the true error lies below the estimate of `diagnose`, and by what factor, over
1,008 random cases; then the error of the implicit hypergradient and of the corrected one against
the inner steps taken, which it also draws.
"""

import argparse
import contextlib
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from bilevel import (
    Batch,
    BilevelProblem,
    Implicit,
    Minimize,
    corrected_hypergradient,
    hypergradient,
    linear,
)
from bilevel.diagnostics import evidence
from bilevel.testing import logistic

DIM = 10
ROUNDING = 1e-13  # relative; below it the oracle itself is no better


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Inside, arrays may be float64."""
    with jax.enable_x64(True):
        yield


def as_double(tree: Any) -> Any:
    """The same numbers in float64; integers as they are."""
    wide = lambda a: np.asarray(a, np.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a
    return jax.tree.map(wide, tree)


# Random problems as functions of a key, one compiled program per row: (problem, draw, exact).


def random_spectrum(key, condition_exponent):
    basis_key, spectrum_key = jax.random.split(key)
    basis = jnp.linalg.qr(jax.random.normal(basis_key, (DIM, DIM), "float64"))[0]
    exponents = jax.random.uniform(spectrum_key, (DIM,), "float64").at[0].set(0.0).at[1].set(1.0)
    return (basis * 10 ** (-condition_exponent * exponents)[None]) @ basis.T


def quadratic_family():
    """Inner Hessian with condition number 1 to 1e6."""
    problem = BilevelProblem(
        lambda x, y, b: 0.5 * jnp.sum((y - b["target"]) ** 2) + 0.05 * jnp.sum(x**2),
        lambda x, y, b: 0.5 * y @ (b["H"] @ y) - y @ (b["B"] @ x),
    )

    def draw(key):
        keys = jax.random.split(key, 4)
        exponent = jax.random.uniform(keys[3], (), "float64", 0.0, 6.0)
        hessian = random_spectrum(keys[0], exponent)
        cross = hessian @ jax.random.normal(keys[1], (DIM, DIM), "float64")
        target = jax.random.normal(keys[2], (DIM,), "float64")
        return {"H": hessian, "B": cross, "target": target}

    def exact(x, b):
        y = jnp.linalg.solve(b["H"], b["B"] @ x)
        return b["B"].T @ jnp.linalg.solve(b["H"], y - b["target"]) + 0.1 * x

    return problem, draw, exact


def logistic_family():
    """Regularised logistic regression, features scaled over up to three decades."""

    def fit(y, b):
        return jnp.mean(jax.nn.softplus(-b["sign"] * (b["A"] @ y)))

    problem = BilevelProblem(
        lambda x, y, b: jnp.mean(jax.nn.softplus(-b["sign2"] * (b["C"] @ y))),
        lambda x, y, b: fit(y, b) + 0.5 * jnp.sum(jnp.exp(x - 3) * y**2),
    )

    def draw(key):
        keys = jax.random.split(key, 5)
        decades = jax.random.uniform(keys[4], (), "float64", 0.0, 1.5)
        scales = 10 ** (-decades * jnp.linspace(0, 1, DIM))
        design, other = (jax.random.normal(k, (40, DIM), "float64") for k in keys[:2])
        noise, noise2 = (jax.random.logistic(k, (40,), "float64") for k in keys[2:4])
        label = lambda a, e: jnp.where(a.sum(1) + e > 0, 1.0, -1.0)
        return {
            "A": design * scales[None],
            "C": other * scales[None],
            "sign": label(design, noise),
            "sign2": label(other, noise2),
        }

    def exact(x, b):
        def newton(_, y):
            g = jax.grad(problem.inner_loss, 1)(x, y, b)
            return y - jnp.linalg.solve(jax.hessian(problem.inner_loss, 1)(x, y, b), g)

        y = jax.lax.fori_loop(0, 30, newton, jnp.zeros(DIM))
        u = jnp.linalg.solve(
            jax.hessian(problem.inner_loss, 1)(x, y, b), jax.grad(problem.outer_loss, 1)(x, y, b)
        )
        return -jnp.exp(x - 3) * y * u

    return problem, draw, exact


FAMILIES = {"quadratic": quadratic_family, "logistic": logistic_family}
LINEAR_STEPS = (2, 4, 8, 40)
CASES_PER_ROW = 63  # 2 families x 4 lengths of the linear solve x 2 precisions x 63 = 1,008


def momentum(loss, outer, init, data):
    """Heavy-ball steps, as many as the batch says: so every case stops elsewhere."""

    def step(_, state):
        y, velocity = state
        velocity = 0.5 * velocity + jax.grad(loss, 1)(outer, y, data)
        return y - velocity, velocity

    return jax.lax.fori_loop(0, data["steps"], step, (init, jnp.zeros_like(init)))[0]


@functools.cache
def calibration():
    """(estimate, true error, norm) for 1,008 random cases, stopped early at random."""
    rows = []
    for problem, draw, exact in (family() for family in FAMILIES.values()):
        # One after the other: on two cores the batched factorisations of a `vmap` wait for each
        # other for ever (JAX 0.10).
        judge = jax.jit(
            lambda *cases, p=problem, e=exact: jax.lax.map(lambda c: _judge(p, e, *c), cases)
        )
        for number, linear_steps in enumerate(LINEAR_STEPS):
            rule = Implicit(momentum, linear.CG(linear_steps, 1e-12))
            run_rule = jax.jit(jax.vmap(functools.partial(_run_rule, problem, rule)))
            for dtype in ("float32", "float64"):
                with double_precision():
                    outer, data = _draw_cases(draw, dtype, number)
                with jax.enable_x64(dtype == "float64"):
                    result = run_rule(outer, jnp.zeros((CASES_PER_ROW, DIM), dtype), data)
                with double_precision():
                    args = as_double((outer, result.inner, result.hypergrad, data))
                    rows.append(np.asarray(judge(*args)))
    return np.concatenate(rows, axis=1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw_cases(draw, dtype, number):
    keys = jax.random.split(jax.random.key(number), CASES_PER_ROW)
    data = jax.vmap(draw)(keys)
    outer = jax.vmap(lambda k: jax.random.normal(k, (DIM,), "float64"))(keys)
    # Rounded to the precision of the run: what it sees is then exact data.
    outer, data = jax.tree.map(lambda a: a.astype(dtype), (outer, data))
    decades = jax.random.uniform(jax.random.key(100 + number), (CASES_PER_ROW,), dtype, 0.5, 3)
    return outer, data | {"steps": (10**decades).astype("int32")}


def _run_rule(problem, rule, x, y, b):
    return hypergradient(problem, rule, x, y, Batch(b, b))


def _judge(problem, exact, x, y, h, b):
    losses = (problem.outer_loss, problem.inner_loss)
    found = evidence(*losses, linear.Dense(), x, y, h, Batch(b, b))
    truth = exact(x, b)
    return found.error, jnp.linalg.norm(h - truth), jnp.linalg.norm(truth)


def correction_sweep(num_steps=range(2, 41)):
    """After each number of inner steps on logistic regression, in float64.

    Returns:
        (error of the hypergradient, its estimate, error of the corrected one), each relative to the
        exact hypergradient, and the Hessian-vector products of one linear solve.
    """
    case = logistic(jax.random.key(0), dtype="float64")
    exact = jax.jit(case.hypergrad)(case.outer)
    one_more = Implicit(Minimize(optax.sgd(1 / case.curvature[1]), 1), linear.CG(tolerance=1e-13))

    @jax.jit
    def correct(start):
        return corrected_hypergradient(case.problem, one_more, case.outer, start, case.batch)

    start, rows, norm = case.init, [], jnp.linalg.norm(exact)
    for step in range(1, max(num_steps) + 1):
        found = correct(start)
        start = found.inner
        if step in num_steps:
            plain = jnp.linalg.norm(found.correction.hypergrad - exact)
            rows.append([plain, found.error, jnp.linalg.norm(found.hypergrad - exact)])
    products = int(found.correction.adjoint_info.num_steps)
    return np.asarray(rows, float).T / float(norm), products


def slope(plain, corrected):
    """Of the corrected error against the plain one, both logarithmic: 2 is the square."""
    return float(np.polyfit(np.log(plain), np.log(corrected), 1)[0])


def draw_correction(plain, estimate, corrected, path: pathlib.Path) -> None:
    """Errors against each other."""
    canvas = Figure(figsize=(5.5, 4.2), layout="constrained")
    axis = canvas.subplots()
    axis.loglog(plain, estimate, "o", ms=4, color="C7", label="estimate of the plain error")
    axis.loglog(plain, plain, color="C7", lw=1, label="plain, h(y)")
    axis.loglog(plain, corrected, "o-", ms=4, color="C0", label="corrected, h(y) - Dh(y) s")
    axis.loglog(plain, corrected[0] * (plain / plain[0]) ** 2, ":", color="C0", label="square")
    axis.set(xlabel="relative error of the plain hypergradient", ylabel="relative error")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=110, metadata={"Software": ""})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=pathlib.Path, help="PNG of the second part")
    options = parser.parse_args()
    estimate, error, norm = calibration()
    seen = error > ROUNDING * norm
    ratio = estimate[seen] / error[seen]
    bounded = np.mean(error <= np.maximum(estimate, ROUNDING * norm))
    low, middle, high = np.percentile(ratio, [5, 50, 95])
    print(f"{error.size} cases, relative errors {np.min(error / norm):.0e} to", end=" ")
    print(f"{np.max(error / norm):.0e}; true error below the estimate in {bounded:.1%};")
    print(f"estimate / error: median {middle:.2f}, 5 % {low:.2f}, 95 % {high:.2f}")
    with double_precision():
        (plain, predicted, corrected), products = correction_sweep()
    print(f"\ncorrection: log-log slope {slope(plain, corrected):.2f}, {products} Hessian-vector")
    print(f"products for the plain hypergradient, {4 * products} for the corrected one")
    print("inner steps   plain error   estimate   corrected error")
    for i in (0, 3, 8, 13, 18, 28, 38):
        print(f"{i + 2:>11} {plain[i]:>13.1e} {predicted[i]:>10.1e} {corrected[i]:>17.1e}")
    if options.figure:
        draw_correction(plain, predicted, corrected, options.figure)


if __name__ == "__main__":
    main()
