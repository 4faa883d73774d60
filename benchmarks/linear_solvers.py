"""Linear solvers at three condition numbers: `python benchmarks/linear_solvers.py` prints a table.

The matrix has 100 rows and eigenvalues spread evenly in the logarithm; the error is
`||u - exact|| / ||exact||`, exact to double precision. Each cell is `error (products)`, and the
status where it is not CONVERGED; the tolerance is 1e-5 in float32, 1e-10 in float64. A second
table times `Dense` against `CG` by size, the measurement behind `linear.Auto`.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import linear

SIZE = 100
SOLVERS = {
    "CG": lambda t: linear.CG(2000, t),
    "MINRES": lambda t: linear.MINRES(2000, t),
    "GMRES(50)": lambda t: linear.GMRES(500, 50, t),
    "BiCGSTAB": lambda t: linear.BiCGSTAB(1000, t),
    "NormalCG": lambda t: linear.NormalCG(1000, t),
    "CG, Nystrom(50)": lambda t: linear.CG(2000, t, preconditioner=linear.Nystrom(50)),
    "Dense": lambda t: linear.Dense(tolerance=t),
    "Nystrom(50), ridge 1e-2": lambda t: linear.Nystrom(50, 1e-2, 0, t),
    "DiagonalFisher(10 probes)": lambda t: linear.DiagonalFisher(tolerance=t),
    "Neumann(1000, 1.0)": lambda t: linear.Neumann(1000, 1.0, 0.0, t),
}


def system(condition: float) -> tuple[np.ndarray, np.ndarray]:
    """A symmetric matrix of this condition number and norm 1, and a right-hand side."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    return basis * np.geomspace(1 / condition, 1.0, SIZE) @ basis.T, rng.normal(size=SIZE)


def cell(make, condition: float, dtype: str) -> str:
    """Error, products with H and status of one solve."""
    matrix, rhs = system(condition)
    with jax.enable_x64(dtype == "float64"):
        solver = make(1e-10 if dtype == "float64" else 1e-5)
        solve = jax.jit(lambda m, v: tuple(solver(lambda u: m @ u, v)))
        value, info = solve(jnp.asarray(matrix, dtype), jnp.asarray(rhs, dtype))
    exact = np.linalg.solve(matrix, rhs)
    error = np.linalg.norm(np.asarray(value, "float64") - exact) / np.linalg.norm(exact)
    status = linear.LinearStatus(int(info.status))
    note = "" if status == linear.LinearStatus.CONVERGED else f" {status.name.lower()}"
    return f"{error:.0e} ({int(info.num_steps)}){note}"


def milliseconds(solver, matrix: jax.Array, rhs: jax.Array) -> float:
    """The least of seven timed solves, compiled before."""
    solve = jax.jit(lambda m, v: solver(lambda u: (m @ u) @ m, v).value)
    solve(matrix, rhs).block_until_ready()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        solve(matrix, rhs).block_until_ready()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def main() -> None:
    """Print both tables as Markdown."""
    conditions = [(c, d) for d in ("float32", "float64") for c in (1e2, 1e4, 1e6)]
    print("| solver |", " | ".join(f"{d}, {c:.0e}" for c, d in conditions), "|")
    print("|---" * (len(conditions) + 1) + "|")
    for name, make in SOLVERS.items():
        cells = (cell(make, condition, dtype) for condition, dtype in conditions)
        print(f"| {name} |", " | ".join(cells), "|", flush=True)
    print(f"\n{jax.devices()[0].device_kind}, ms\n\n| n | Dense | CG at 1e2 | CG at 1e4 |")
    print("|---|---|---|---|")
    for size in (30, 100, 200, 300, 500, 1000):
        draw = jax.random.normal(jax.random.key(0), (2 * size, size)) / (2 * size) ** 0.5
        designs = [draw * jnp.geomspace(c**-0.5, 1.0, size)[None] for c in (1e2, 1e4)]
        rhs, krylov = jnp.ones(size), linear.CG(2000, 1e-4)
        row = [milliseconds(linear.Dense(), designs[0], rhs)]
        row += [milliseconds(krylov, design, rhs) for design in designs]
        print(f"| {size} |", " | ".join(f"{t:.2f}" for t in row), "|", flush=True)


if __name__ == "__main__":
    main()
