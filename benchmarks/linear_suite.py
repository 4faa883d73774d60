"""Random and aimed systems against the promise of CONVERGED: `python -m benchmarks.linear_suite`.

Each problem is solved by eight solvers in both precisions: dimension 1 to 200, condition 1 to 1e8,
a third indefinite, right-hand sides at random or aimed at the stiff directions, so that the
flat ones are hardly in them. CONVERGED promises a true residual of at most the tolerance; of
`Dense` also an error of a few times the tolerance, of `Probed` one of a few times its bound. The
table counts how solves ended, and those that broke the promise. All problems of one size are solved
at once by `vmap`.
"""

import collections
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from bilevel import linear
from bilevel.linear import LinearInfo, LinearStatus

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


def solved(name: str, matrices: jax.Array, rhs: jax.Array) -> tuple[np.ndarray, LinearInfo]:
    """All systems of one size at once: one program a solver, size and precision."""
    one = lambda matrix, v: tuple(SOLVERS[name](lambda u: matrix @ u, v))
    return jax.device_get(jax.jit(jax.vmap(one))(matrices, rhs))


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


class Truth(NamedTuple):
    """What a solver was given and what is right, in double precision.

    The matrix that it saw is the rounded one: it is judged by the solution of that.
    """

    matrix: np.ndarray
    rhs: np.ndarray
    exact: np.ndarray
    norm: float

    @classmethod
    def of(cls, matrix: np.ndarray, rhs: np.ndarray) -> "Truth":
        """From a system as it was rounded."""
        matrix, rhs = matrix.astype("float64"), rhs.astype("float64")
        return cls(matrix, rhs, np.linalg.solve(matrix, rhs), np.linalg.norm(matrix, 2))


def broken(name: str, truth: Truth, value: np.ndarray, info: LinearInfo) -> bool:
    """Whether a solve that says CONVERGED holds less than it promises."""
    if info.status != LinearStatus.CONVERGED:
        return False
    eps, value = np.finfo(value.dtype).eps, value.astype("float64")
    size = np.linalg.norm(truth.rhs)
    residual = np.linalg.norm(truth.rhs - truth.matrix @ value) / size
    rounding = 10 * eps * (1 + truth.norm * np.linalg.norm(value) / size)
    tolerance = SOLVERS[name].solver.tolerance if "Probed" in name else SOLVERS[name].tolerance
    if residual > tolerance + rounding:
        return True
    if info.error_bound is None:
        return False
    error = np.linalg.norm(value - truth.exact) / np.linalg.norm(truth.exact)
    promise = SOLVERS[name].max_error if "Probed" in name else tolerance
    return error > SLACK * promise


def count(
    num_problems: int, sizes: Sequence[int] = SIZES
) -> Iterator[tuple[str, collections.Counter]]:
    """Endings by solver and precision, as they come; `broken` counts promises not kept.

    Args:
        num_problems: of all sizes together, every other one aimed.
        sizes: the dimensions, each of as many problems.
    """
    each = num_problems // len(sizes)
    problems = {
        size: [system(np.random.default_rng([size, i]), size, i % 2 == 1) for i in range(each)]
        for size in sizes
    }
    for dtype in ("float32", "float64"):
        rounded = {
            size: tuple(np.stack(part).astype(dtype) for part in zip(*pairs, strict=True))
            for size, pairs in problems.items()
        }
        truths = {size: list(map(Truth.of, *batch)) for size, batch in rounded.items()}
        for name in SOLVERS:
            row: collections.Counter = collections.Counter()
            for size, batch in rounded.items():
                with jax.enable_x64(dtype == "float64"):
                    values, infos = solved(name, *batch)
                for i, truth in enumerate(truths[size]):
                    info = jax.tree.map(lambda a, i=i: a[i], infos)
                    row[LinearStatus(info.status).name] += 1
                    row["broken"] += broken(name, truth, values[i], info)
            yield f"{name}, {dtype}", row


def main() -> None:
    """Print the table as Markdown."""
    columns = [*(status.name for status in LinearStatus), "broken"]
    print("| solver |", " | ".join(columns), "|")
    print("|---" * (len(columns) + 1) + "|", flush=True)
    for name, row in count(int(sys.argv[1]) if len(sys.argv) > 1 else 300):
        cells = " | ".join(str(row[column]) for column in columns)
        print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
