"""Bi-level problems whose hypergradient is known in closed form: the oracles of every test."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bilevel._problem import Batch, BilevelProblem, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class Case:
    """A problem, where to look at it, and what is true there.

    Attributes:
        name: what prints.
        problem: the two losses; all data comes through `batch`.
        outer: where to differentiate.
        init: where inner solvers start.
        batch: the data.
        solution: `outer -> y*(outer)`, the exact inner minimiser.
        hypergrad: `outer -> d/dx F(x, y*(x))`, by an explicit formula, without automatic
            differentiation of either level.
        curvature: `(smallest, largest)` eigenvalue of the inner Hessian at `outer` and `y*(outer)`,
            or bounds of them: `1 / largest` is a safe step size.
    """

    name: str
    problem: BilevelProblem
    outer: PyTree
    init: PyTree
    batch: Batch
    solution: Callable[[PyTree], PyTree]
    hypergrad: Callable[[PyTree], PyTree]
    curvature: tuple[float, float]

    def __repr__(self) -> str:
        return self.name

    def value(self, outer: PyTree) -> jax.Array:
        """The outer loss at the exact inner solution, scalar."""
        return self.problem.outer_loss(outer, self.solution(outer), self.batch.outer)


def ridge(
    key: jax.Array, num_examples: int = 40, num_weights: int = 8, dtype: Any = jnp.float32
) -> Case:
    """Ridge regression with one log-regulariser per weight, chosen by held-out loss.

    Inner: `||A y - b||^2 / 2n + sum_i exp(x_i) y_i^2 / 2`. Outer: `||C y - d||^2 / 2n`.

    Args:
        key: draws both data sets.
        num_examples: n, in each data set.
        num_weights: length of both variables.
        dtype: of all arrays.
    """

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        design_key, noise_key = jax.random.split(key)
        design = jax.random.normal(design_key, (num_examples, num_weights), dtype)
        target = design @ jnp.sin(jnp.arange(num_weights, dtype=dtype))
        return design, target + 0.5 * jax.random.normal(noise_key, (num_examples,), dtype)

    def fit(weights: jax.Array, data: tuple[jax.Array, jax.Array]) -> jax.Array:
        design, target = data
        return 0.5 * jnp.mean((design @ weights - target) ** 2)

    def inner_loss(outer: jax.Array, inner: jax.Array, data: Any) -> jax.Array:
        return fit(inner, data) + 0.5 * jnp.sum(jnp.exp(outer) * inner**2)

    train, held_out = (draw(k) for k in jax.random.split(key))
    outer = jnp.linspace(-2.0, 0.0, num_weights, dtype=dtype)

    def hessian(outer: jax.Array) -> jax.Array:
        return train[0].T @ train[0] / num_examples + jnp.diag(jnp.exp(outer))

    def solution(outer: jax.Array) -> jax.Array:
        return jnp.linalg.solve(hessian(outer), train[0].T @ train[1] / num_examples)

    def hypergrad(outer: jax.Array) -> jax.Array:
        weights = solution(outer)
        slope = held_out[0].T @ (held_out[0] @ weights - held_out[1]) / num_examples
        return -jnp.exp(outer) * weights * jnp.linalg.solve(hessian(outer), slope)

    return Case(
        name="ridge",
        problem=BilevelProblem(lambda outer, inner, data: fit(inner, data), inner_loss),
        outer=outer,
        init=jnp.zeros(num_weights, dtype),
        batch=Batch(train, held_out),
        solution=solution,
        hypergrad=hypergrad,
        curvature=_extremes(hessian(outer)),
    )


def quadratic(
    key: jax.Array,
    num_inner: int = 12,
    num_outer: int = 6,
    condition: float = 10.0,
    dtype: Any = jnp.float32,
) -> Case:
    """Quadratic in both variables, with a random spectrum between `1 / condition` and 1.

    Inner: `y'Hy / 2 - y'(B x + c)`. Outer: `||y - t||^2 / 2 + ||x||^2 / 20`. Both variables are
    nested dictionaries of arrays of different ranks, so that a method that assumes vectors fails.

    Args:
        key: draws the matrices and vectors.
        num_inner: length of y, an even number >= 4.
        num_outer: length of x, at least 2.
        condition: of H, at least 1.
        dtype: of all arrays.

    Raises:
        ValueError: a size or the condition number is out of its range.
    """
    if num_inner < 4 or num_inner % 2 or num_outer < 2 or condition < 1:
        raise ValueError(
            "`num_inner` must be even and >= 4, `num_outer` >= 2, `condition` >= 1, got"
            f" num_inner={num_inner}, num_outer={num_outer}, condition={condition}."
        )
    spectrum_key, basis_key, cross_key, linear_key, target_key = jax.random.split(key, 5)
    exponents = jax.random.uniform(spectrum_key, (num_inner,), dtype).at[:2].set(jnp.array([0, 1]))
    basis = jnp.linalg.qr(jax.random.normal(basis_key, (num_inner, num_inner), dtype))[0]
    spectrum = condition ** (-exponents)
    data = {
        "hessian": (basis * spectrum[None]) @ basis.T,
        # Divided by the condition number, both keep y* and the outer curvature of order 1.
        "cross": jax.random.normal(cross_key, (num_inner, num_outer), dtype)
        / (num_inner**0.5 * condition),
        "linear": jax.random.normal(linear_key, (num_inner,), dtype) / condition,
    }
    target = jax.random.normal(target_key, (num_inner,), dtype)

    def pack_inner(flat: jax.Array) -> PyTree:
        return {"bias": flat[:2], "layers": {"kernel": flat[2:].reshape(-1, 2)}}

    def flat_inner(tree: PyTree) -> jax.Array:
        return jnp.concatenate([tree["bias"], tree["layers"]["kernel"].ravel()])

    def flat_outer(tree: PyTree) -> jax.Array:
        return jnp.concatenate([tree["scale"][None], tree["shift"]])

    def inner_loss(outer: PyTree, inner: PyTree, data: Any) -> jax.Array:
        y = flat_inner(inner)
        return 0.5 * y @ data["hessian"] @ y - y @ (
            data["cross"] @ flat_outer(outer) + data["linear"]
        )

    def outer_loss(outer: PyTree, inner: PyTree, target: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum((flat_inner(inner) - target) ** 2) + 0.05 * jnp.sum(
            flat_outer(outer) ** 2
        )

    def inverse_times(vector: jax.Array) -> jax.Array:
        return basis @ ((basis.T @ vector) / spectrum)

    def solution(outer: PyTree) -> PyTree:
        return pack_inner(inverse_times(data["cross"] @ flat_outer(outer) + data["linear"]))

    def hypergrad(outer: PyTree) -> PyTree:
        gap = flat_inner(solution(outer)) - target
        flat = data["cross"].T @ inverse_times(gap) + 0.1 * flat_outer(outer)
        return {"scale": flat[0], "shift": flat[1:]}

    start = jnp.linspace(-1.0, 1.0, num_outer, dtype=dtype)
    return Case(
        name=f"quadratic(condition={condition:g})",
        problem=BilevelProblem(outer_loss, inner_loss),
        outer={"scale": start[0], "shift": start[1:]},
        init=pack_inner(jnp.zeros(num_inner, dtype)),
        batch=Batch(data, target),
        solution=solution,
        hypergrad=hypergrad,
        curvature=(1.0 / condition, 1.0),
    )


def logistic(
    key: jax.Array, num_examples: int = 60, num_weights: int = 6, dtype: Any = jnp.float32
) -> Case:
    """Logistic regression with one log-regulariser per weight; the solution is Newton's, converged.

    Inner: `mean log(1 + exp(-b_i a_i'y)) + sum_i exp(x_i) y_i^2 / 2`. Outer: the same mean on
    held-out data.

    Args:
        key: draws both data sets.
        num_examples: in each data set.
        num_weights: length of both variables.
        dtype: of all arrays.
    """

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        design_key, noise_key = jax.random.split(key)
        design = jax.random.normal(design_key, (num_examples, num_weights), dtype)
        score = design @ jnp.cos(jnp.arange(num_weights, dtype=dtype))
        noise = jax.random.logistic(noise_key, (num_examples,), dtype)
        return design, jnp.where(score + noise > 0, 1.0, -1.0).astype(dtype)

    def fit(weights: jax.Array, data: tuple[jax.Array, jax.Array]) -> jax.Array:
        design, sign = data
        return jnp.mean(jax.nn.softplus(-sign * (design @ weights)))

    def fit_grad(weights: jax.Array, data: tuple[jax.Array, jax.Array]) -> jax.Array:
        design, sign = data
        return -design.T @ (sign * jax.nn.sigmoid(-sign * (design @ weights))) / num_examples

    def inner_loss(outer: jax.Array, inner: jax.Array, data: Any) -> jax.Array:
        return fit(inner, data) + 0.5 * jnp.sum(jnp.exp(outer) * inner**2)

    train, held_out = (draw(k) for k in jax.random.split(key))

    def hessian(outer: jax.Array, weights: jax.Array) -> jax.Array:
        probability = jax.nn.sigmoid(train[0] @ weights)
        spread = (probability * (1 - probability))[:, None]
        return train[0].T @ (spread * train[0]) / num_examples + jnp.diag(jnp.exp(outer))

    def newton(weights: jax.Array, outer: jax.Array) -> jax.Array:
        slope = fit_grad(weights, train) + jnp.exp(outer) * weights
        return weights - jnp.linalg.solve(hessian(outer, weights), slope)

    def solution(outer: jax.Array) -> jax.Array:
        # From zero, with this much regularisation, Newton's method converges within 10 steps.
        start = jnp.zeros(num_weights, dtype)
        return jax.lax.fori_loop(0, 20, lambda _, weights: newton(weights, outer), start)

    def hypergrad(outer: jax.Array) -> jax.Array:
        weights = solution(outer)
        adjoint = jnp.linalg.solve(hessian(outer, weights), fit_grad(weights, held_out))
        return -jnp.exp(outer) * weights * adjoint

    outer = jnp.linspace(-3.0, -1.0, num_weights, dtype=dtype)
    # Curvature of the logistic loss is at most a quarter, met at zero weights.
    flattest = _extremes(hessian(outer, solution(outer)))[0]
    return Case(
        name="logistic",
        problem=BilevelProblem(lambda outer, inner, data: fit(inner, data), inner_loss),
        outer=outer,
        init=jnp.zeros(num_weights, dtype),
        batch=Batch(train, held_out),
        solution=solution,
        hypergrad=hypergrad,
        curvature=(flattest, _extremes(hessian(outer, jnp.zeros(num_weights, dtype)))[1]),
    )


def _extremes(matrix: jax.Array) -> tuple[float, float]:
    eigenvalues = jnp.linalg.eigvalsh(matrix)
    return float(eigenvalues[0]), float(eigenvalues[-1])
