"""Three standard problems, each with data, a start, and a score that knows the right answer.

The first two are those of the bilevel benchmark of Dagréou et al. (NeurIPS 2022), benchopt's
`benchmark_bilevel`; the third is data hyper-cleaning (Franceschi et al., ICML 2017).
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.sparse
import scipy.special
import sklearn.datasets

from applications.components.data import load
from bilevel import Batch, BilevelProblem, projections

BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Standard:
    """One problem to race on.

    Attributes:
        name: what prints.
        problem: the two losses, means over the examples that they see.
        outer: where x starts.
        inner: where y starts.
        data: all examples of both levels; leaves have them along axis 0.
        inner_step_size: 1 / L, at which gradient steps on the inner loss do not diverge.
        outer_step_sizes: the grid to tune over, which is the same for all algorithms.
        projection: of x, or None.
        score: `(outer, inner) -> number`, the lower the better, in double precision on the host.
        score_name: what the score is.
    """

    name: str
    problem: BilevelProblem
    outer: Any
    inner: Any
    data: Batch
    inner_step_size: float
    outer_step_sizes: tuple[float, ...]
    projection: Callable[[Any], Any] | None
    score: Callable[[np.ndarray, np.ndarray], float]
    score_name: str

    @property
    def full_batch(self) -> int:
        """Gradients on a minibatch that one on all inner examples costs."""
        return jax.tree.leaves(self.data.inner)[0].shape[0] // BATCH_SIZE


def quadratic(num_examples: int = 1024, num_inner: int = 100, num_outer: int = 100) -> Standard:
    """Sums of random quadratics: the mean of 1,024 matrices of 100 x 100 on each level.

    `y'A_i y / 2 + x'D_i x / 2 + y'(B_i x + c_i)`, eigenvalues of the mean between 0.1 and 1. The
    loss is written on the mean matrices of a minibatch, so that each is read once.
    """
    rng = np.random.default_rng(0)

    def level(dim: int) -> np.ndarray:
        basis = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
        spectrum = np.logspace(-1, 0, dim)
        factors = rng.normal(size=(num_examples, dim, dim)) / np.sqrt(dim)
        noise = factors @ factors.transpose(0, 2, 1)
        noise -= noise.mean(axis=0)
        return ((basis * spectrum) @ basis.T + 0.5 * noise).astype(np.float32)

    def draw(coupling: float) -> dict[str, np.ndarray]:
        shape = (num_inner, num_outer)
        cross = coupling * rng.normal(size=shape) / num_inner**0.5
        return {
            "A": level(num_inner),
            "B": (cross + 0.1 * rng.normal(size=(num_examples, *shape))).astype(np.float32),
            "D": level(num_outer),
            "c": rng.normal(size=(num_examples, num_inner)).astype(np.float32),
        }

    def loss(outer: jax.Array, inner: jax.Array, examples: Any) -> jax.Array:
        def mean(a: jax.Array) -> jax.Array:  # a row times a matrix: the fast order on a CPU
            row = jnp.full(a.shape[0], 1.0 / a.shape[0], a.dtype)
            return (row @ a.reshape(a.shape[0], -1)).reshape(a.shape[1:])

        m = {k: mean(v) for k, v in examples.items()}
        along = m["B"] @ outer + m["c"]
        return 0.5 * inner @ (m["A"] @ inner) + 0.5 * outer @ (m["D"] @ outer) + inner @ along

    # A weak coupling on the outer level keeps the value function convex.
    data = Batch(inner=draw(0.1), outer=draw(0.02))
    inner_mean, outer_mean = (
        {k: v.astype(np.float64).mean(axis=0) for k, v in part.items()} for part in data[:2]
    )

    def value(x: np.ndarray) -> float:
        y = -np.linalg.solve(inner_mean["A"], inner_mean["B"] @ x + inner_mean["c"])
        m = outer_mean
        return float(0.5 * y @ m["A"] @ y + 0.5 * x @ m["D"] @ x + y @ (m["B"] @ x + m["c"]))

    best = _minimum_of_quadratic(value, num_outer)
    return Standard(
        "simulated quadratic",
        BilevelProblem(loss, loss),
        jnp.ones(num_outer),
        jnp.zeros(num_inner),
        jax.tree.map(jnp.asarray, data),
        inner_step_size=0.5,
        outer_step_sizes=(0.01, 0.03, 0.1, 0.3, 1.0),
        projection=None,
        score=lambda x, y: value(np.asarray(x, np.float64)) - best,
        score_name="suboptimality of the value function",
    )


def _minimum_of_quadratic(value: Callable[[np.ndarray], float], dim: int) -> float:
    """The least value, from the coefficients that evaluations at 0, e_i and e_i + e_j reveal."""
    eye, zero = np.eye(dim), value(np.zeros(dim))
    plus, minus = (np.array([value(s * e) for e in eye]) for s in (1.0, -1.0))
    slope, diagonal = (plus - minus) / 2, plus + minus - 2 * zero
    hessian = np.diag(diagonal)
    for i in range(dim):
        for j in range(i):
            both = value(eye[i] + eye[j]) - plus[i] - plus[j] + zero
            hessian[i, j] = hessian[j, i] = both
    if np.linalg.eigvalsh(hessian)[0] <= 0:
        raise ArithmeticError("The value function has no minimum: another seed, or a larger D.")
    return value(-np.linalg.solve(hessian, slope))


def logistic(name: str, data_dir: pathlib.Path) -> Standard:
    """One log-regulariser for each weight of a logistic regression on `a9a` or `w8a`.

    Inner: `mean log(1 + exp(-b_i a_i'y)) + sum_j exp(x_j) y_j^2 / 2`. Outer: the same mean on the
    official test examples (a9a), or on a quarter that is held out (w8a).
    """
    read = sklearn.datasets.load_svmlight_file
    folder = pathlib.Path(data_dir) / "libsvm"
    if not (folder / name).is_file():
        raise FileNotFoundError(
            f"{folder / name} is missing. Pass `--data-dir`, the folder that holds `libsvm/` with"
            " the files of www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets."
        )
    design, sign = read(str(folder / name))
    if name == "a9a":
        held_out = read(str(folder / "a9a.t"), n_features=design.shape[1])
    else:
        rows = np.random.default_rng(0).permutation(len(sign))
        part, rest = np.split(rows, [len(sign) // 4])
        held_out, (design, sign) = (design[part], sign[part]), (design[rest], sign[rest])
    num_weights = design.shape[1]

    def fit(inner: jax.Array, examples: Any) -> jax.Array:
        # Weights on the left of the transposed design: the fast order on a CPU.
        return jnp.mean(jax.nn.softplus(-examples["sign"] * (examples["design"] @ inner)))

    problem = BilevelProblem(
        lambda x, y, examples: fit(y, examples),
        lambda x, y, examples: fit(y, examples) + 0.5 * jnp.sum(jnp.exp(x) * y**2),
    )
    value = _LogisticValue(design, sign, *held_out)
    start = np.full(num_weights, -4.0)
    found = scipy.optimize.minimize(
        value, start, jac=True, method="L-BFGS-B", bounds=[(-14, 0)] * num_weights,
        options={"maxiter": 300, "maxfun": 400, "ftol": 1e-12},
    )  # fmt: skip
    dense = lambda a, b: {
        "design": jnp.asarray(a.toarray(), jnp.float32), "sign": jnp.asarray(b, jnp.float32)
    }  # fmt: skip
    # A bound, with the largest regulariser that the projection allows.
    curvature = 0.25 * scipy.sparse.linalg.norm(design) ** 2 / len(sign) + 1.0
    return Standard(
        f"regularisation, {name}",
        problem,
        jnp.asarray(start, jnp.float32),
        jnp.zeros(num_weights),
        Batch(dense(design, sign), dense(*held_out)),
        inner_step_size=float(1 / curvature),
        outer_step_sizes=(1.0, 10.0, 100.0, 1000.0, 10_000.0),
        projection=projections.Box(-14.0, 0.0),
        score=lambda x, y: value(np.asarray(x, np.float64))[0] - found.fun,
        score_name="suboptimality of the value function",
    )


class _LogisticValue:
    """The value function and its gradient, exact to rounding, by Newton's method on the host."""

    def __init__(self, design: Any, sign: np.ndarray, other: Any, other_sign: np.ndarray) -> None:
        self.design, self.sign = design.tocsr(), sign
        self.other, self.other_sign = other.tocsr(), other_sign
        self.inner = np.zeros(design.shape[1])  # warm start

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        y, reg = self.inner, np.exp(x)
        for _ in range(50):
            margin = self.sign * (self.design @ y)
            weight = scipy.special.expit(-margin)
            gradient = -self.design.T @ (self.sign * weight) / len(margin) + reg * y
            spread = scipy.sparse.diags(weight * (1 - weight) / len(margin))
            hessian = (self.design.T @ spread @ self.design).toarray() + np.diag(reg)
            step = np.linalg.solve(hessian, gradient)
            y = y - step
            if np.abs(step).max() < 1e-10:
                break
        self.inner = y
        margin = self.other_sign * (self.other @ y)
        slope = -self.other.T @ (self.other_sign * scipy.special.expit(-margin)) / len(margin)
        adjoint = np.linalg.solve(hessian, slope)
        return float(np.mean(np.logaddexp(0, -margin))), -reg * y * adjoint


def hyper_cleaning(corruption: float, data_dir: pathlib.Path) -> Standard:
    """Softmax regression on Fashion-MNIST with wrong labels, one weight for each example.

    10,000 training images, of which a share `corruption` has a label drawn at random; 5,000 clean
    images on the outer level. Inner: `mean sigmoid(x_i) CE_i + 1e-3 ||y||^2 / 2`.
    """
    images = load("fashion_mnist", data_dir, num_train=10_000, num_validation=5_000)
    rng = np.random.default_rng(0)
    labels = images.train.y.copy()
    wrong = rng.random(len(labels)) < corruption
    labels[wrong] = rng.integers(0, 10, wrong.sum())

    def flat(x: np.ndarray) -> np.ndarray:
        x = x.reshape(len(x), -1)
        return np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)  # the bias

    def losses(inner: jax.Array, examples: Any) -> jax.Array:
        # Kept transposed: `x @ inner.T` is the fast order on a CPU.
        logits = examples["x"] @ inner.T
        return jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(
            logits, examples["y"][:, None], axis=1
        ).squeeze(1)

    def inner_loss(outer: jax.Array, inner: jax.Array, examples: Any) -> jax.Array:
        weight = jax.nn.sigmoid(outer[examples["row"]])
        return jnp.mean(weight * losses(inner, examples)) + 5e-4 * jnp.sum(inner**2)

    def examples(x: np.ndarray, y: np.ndarray) -> dict[str, jax.Array]:
        return {"x": jnp.asarray(flat(x)), "y": jnp.asarray(y), "row": jnp.arange(len(y))}

    test_x, test_y = flat(images.test.x), images.test.y
    return Standard(
        f"hyper-cleaning, {corruption:.0%} wrong",
        BilevelProblem(lambda x, y, part: jnp.mean(losses(y, part)), inner_loss),
        jnp.zeros(len(labels)),
        jnp.zeros((10, 785)),
        Batch(
            examples(images.train.x, labels),
            examples(images.validation.x, images.validation.y),
        ),
        inner_step_size=0.01,
        outer_step_sizes=(1.0, 10.0, 100.0, 1000.0, 10_000.0),
        projection=projections.Box(-8.0, 8.0),
        score=lambda x, y: 100 * float(np.mean((test_x @ y.T).argmax(axis=1) != test_y)),
        score_name="test error of the tracked model, %",
    )


PROBLEMS = ("quadratic", "a9a", "w8a", "cleaning50", "cleaning70", "cleaning90")


def build(name: str, data_dir: pathlib.Path) -> Standard:
    """The problem of this name, one of `PROBLEMS`.

    Raises:
        FileNotFoundError: `data_dir` does not hold the data.
    """
    if name == "quadratic":
        return quadratic()
    if name.startswith("cleaning"):
        return hyper_cleaning(int(name.removeprefix("cleaning")) / 100, data_dir)
    return logistic(name, data_dir)
