"""Random and aimed systems against the promise of CONVERGED: `python -m benchmarks.linear_suite`.

Each problem is solved by eight solvers in both precisions: dimension 1 to 200, condition 1 to 1e8,
a third indefinite, right-hand sides at random or aimed, so that flat directions are hardly in them.
CONVERGED promises a true residual of at most the tolerance; of `Dense` also an error of at most a
few times the tolerance, and of `Probed` one within a few times its bound. The table counts how
solves ended, and those that broke the promise.
"""

import collections
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import linear
from bilevel.linear import LinearStatus

SLACK = 5.0  # what an estimate may be off by
SOLVERS = {
    "CG": linear.CG(400, 1e-5),
    "MINRES": linear.MINRES(400, 1e-5),
    "GMRES": linear.GMRES(200, 50, 1e-5),
    "BiCGSTAB": linear.BiCGSTAB(200, 1e-5),
    "NormalCG": linear.NormalCG(400, 1e-5),
    "Dense": linear.Dense(),
    "Probed CG": linear.Probed(linear.CG(400, 1e-5)),
    "Probed MINRES": linear.Probed(linear.MINRES(400, 1e-5)),
}
SIZES = (1, 2, 5, 20, 60, 200)


@functools.partial(jax.jit, static_argnums=0)
def solved(name: str, matrix: jax.Array, rhs: jax.Array):
    """One solve; compiled once a solver, size and precision."""
    return tuple(SOLVERS[name](lambda u: matrix @ u, rhs))


def system(rng: np.random.Generator, size: int, aimed: bool) -> tuple[np.ndarray, np.ndarray]:
    """A matrix and a right-hand side in double precision."""
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    share = rng.uniform(0, 1, size)
    spectrum = 10.0 ** (-rng.uniform(0, 8) * share)
    if aimed:
        spectrum = np.where(share < 0.3, spectrum, 1.0)
        spectrum[-1] = 10.0 ** -rng.uniform(3, 8)
    if rng.uniform() < 1 / 3:
        spectrum = spectrum * np.where(rng.uniform(size=size) < 0.2, -1.0, 1.0)
    coefficients = rng.normal(size=size)
    if aimed:  # the flattest direction is below the tolerance, and rules the solution
        coefficients[-1] = 3e-6 * np.linalg.norm(coefficients[:-1]) if size > 1 else 1.0
    matrix = basis * spectrum @ basis.T
    return (matrix + matrix.T) / 2, basis @ coefficients


def broken(name: str, matrix: np.ndarray, rhs: np.ndarray, value: np.ndarray, info) -> bool:
    """Whether a solve that says CONVERGED holds less than it promises."""
    if int(info.status) != LinearStatus.CONVERGED:
        return False
    value, eps = np.asarray(value, np.float64), np.finfo(value.dtype).eps
    norm = np.linalg.norm(rhs)
    residual = np.linalg.norm(rhs - matrix @ value) / norm
    rounding = 10 * eps * (1 + np.linalg.norm(matrix, 2) * np.linalg.norm(value) / norm)
    tolerance = SOLVERS[name].solver.tolerance if "Probed" in name else SOLVERS[name].tolerance
    if residual > tolerance + rounding:
        return True
    if info.error_bound is None:
        return False
    # The matrix that the solver saw is the rounded one: judge by its solution.
    exact = np.linalg.solve(matrix, rhs)
    error = np.linalg.norm(value - exact) / np.linalg.norm(exact)
    promise = SOLVERS[name].max_error if "Probed" in name else tolerance
    return error > SLACK * promise


def count(num_problems: int) -> dict[str, collections.Counter]:
    """Endings by solver and precision; `broken` counts the promises that were not kept."""
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            for index in range(num_problems):
                rng = np.random.default_rng(index)
                exact, rhs = system(rng, SIZES[index % len(SIZES)], index % 2 == 1)
                matrix, v = jnp.asarray(exact, dtype), jnp.asarray(rhs, dtype)
                given = np.asarray(matrix, "float64"), np.asarray(v, "float64")
                for name in SOLVERS:
                    value, info = jax.device_get(solved(name, matrix, v))
                    row = counts[f"{name}, {dtype}"]
                    row[LinearStatus(int(info.status)).name] += 1
                    row["broken"] += broken(name, *given, value, info)
    return counts


def main() -> None:
    """Print the table as Markdown."""
    columns = [*(status.name for status in LinearStatus), "broken"]
    print("| solver |", " | ".join(columns), "|")
    print("|---" * (len(columns) + 1) + "|")
    for name, row in count(int(sys.argv[1]) if len(sys.argv) > 1 else 300).items():
        print(f"| {name} |", " | ".join(str(row[column]) for column in columns), "|")


if __name__ == "__main__":
    main()
