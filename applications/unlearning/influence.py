"""Unlearning without training: influence functions, and noise where the points to retain allow it.

Source of the first: Koh and Liang, ICML 2017; as an unlearning method Izzo et al., AISTATS 2021,
and Jia et al., "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import bilevel

from ..components.curvature import (
    example_gradients,
    gauss_newton_product,
    hessian_product,
    squared_gradients,
    weighted_gradient,
)
from ..components.errors import InputError
from ..components.points import Points
from ..components.settings import is_known, numbers_as_data
from .layers import last_layers
from .methods import Task, masked

PyTree = Any


@numbers_as_data("ridge", "scale")
@dataclasses.dataclass(frozen=True)
class Influence:
    """One linear solve: where the minimiser moves, to first order, once the forget set is left out.

        theta + scale * H^-1 v,   v = (1/N) sum_F grad l - |F| / (N |R|) sum_R grad l

    H is the curvature of the mean loss over all N points, plus `ridge`. That is the derivative of
    the minimiser as the weights of the loss move from 1/N everywhere to 1/|R| on the |R| points to
    retain, so for a small set and a trained, regularised, convex model it is Retrain but for terms
    of second order in |F| / N. A network at the end of a training is no such model.

    Attributes:
        ridge: added to the diagonal of H. The training's weight decay belongs in it; more than that
            makes the step shorter and safer along what the data say little about.
        scale: of the step; 1 is the formula.
        curvature: "gauss_newton" is never negative; "hessian" is the exact one, indefinite for
            networks, where conjugate gradients then damp it by themselves.
        max_steps: of conjugate gradients, each one product with H.
        tolerance: their relative residual to stop at.
        num_points: points that H is the mean over, drawn once; fewer are faster and noisier. A
            smaller training set is taken whole. v is always that of all points.
        chunk: points in memory at a time; None takes `training.chunk_size()`.

    Raises:
        InputError: `curvature` is neither of the two, `ridge` is negative, or `num_points` is below
            1.
    """

    ridge: float = 1e-2
    scale: float = 1.0
    curvature: str = "gauss_newton"
    max_steps: int = 50
    tolerance: float = 1e-3
    num_points: int = 1000
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.num_points < 1:
            raise InputError(f"`num_points` must be an integer >= 1, got {self.num_points}.")
        if self.curvature not in ("gauss_newton", "hessian"):
            raise InputError(
                f"`curvature` must be 'gauss_newton' or 'hessian', got {self.curvature!r}."
            )
        if is_known(self.ridge) and not self.ridge >= 0:
            raise InputError(f"`ridge` must be a number >= 0, got {self.ridge}.")

    def __call__(self, task: Task, key: jax.Array) -> PyTree:
        """Unlearn; `key` draws the points of H where not all are taken."""
        return _moved(task.original, self.scale, self.solve(task, key).value)

    def solve(self, task: Task, key: jax.Array) -> bilevel.linear.LinearSolution:
        """`H^-1 v` with the evidence of its solve, in the subspace that the mask leaves."""
        points = task.points
        count = min(self.num_points, len(points.y))
        if count < len(points.y):
            rows = jax.random.permutation(key, len(points.y))[:count]
            points = Points(points.x[rows], points.y[rows])
        mean = jnp.full(count, 1.0 / count)
        product = gauss_newton_product if self.curvature == "gauss_newton" else hessian_product

        def matvec(vector: PyTree) -> PyTree:
            vector = masked(vector, task.mask)
            image = product(task.model, task.original, points, mean, vector, chunk=self.chunk)
            # The ridge is traced, and so belongs here and not into the settings of the solver.
            image = jax.tree.map(lambda a, v: a + self.ridge * v, image, vector)
            return masked(image, task.mask)

        rhs = removal_gradient(task, self.chunk)
        solver = bilevel.linear.CG(self.max_steps, self.tolerance)
        return solver(matvec, rhs)


@numbers_as_data("ridge", "scale")
@dataclasses.dataclass(frozen=True)
class WoodFisher:
    """`Influence` with the empirical Fisher matrix of a few points, inverted exactly.

        (ridge I + (1/n) sum_i g_i g_i')^-1 = (1/ridge) (I - G' (n ridge I + G G')^-1 G)

    with the n gradients g_i as the rows of G: what the recursion of Singh and Alistarh, NeurIPS
    2020, equation 13, arrives at after n updates, in one n by n solve. (The released code of Jia et
    al. carries one vector in place of their matrix, which is another quantity.)

    Attributes:
        ridge: see the formula; the smaller, the longer the step along what the n gradients miss.
        scale: of the step; 1 is the formula of `Influence`.
        num_samples: n, points to retain, drawn at random; their gradients are all in memory.
        chunk: points in memory at a time in the gradient; None takes `training.chunk_size()`.

    Raises:
        InputError: `ridge` is not > 0, or `num_samples` is below 1.
    """

    ridge: float = 1e-2
    scale: float = 1.0
    num_samples: int = 256
    chunk: int | None = None

    def __post_init__(self) -> None:
        if is_known(self.ridge) and not self.ridge > 0:
            raise InputError(f"`ridge` must be a number > 0, got {self.ridge}.")
        if self.num_samples < 1:
            raise InputError(f"`num_samples` must be an integer >= 1, got {self.num_samples}.")

    def __call__(self, task: Task, key: jax.Array) -> PyTree:
        """Unlearn."""
        rows = jax.random.permutation(key, task.retain)[: self.num_samples]
        points = Points(task.points.x[rows], task.points.y[rows])
        gradients = example_gradients(task.model, task.original, points)
        if task.mask is not None:
            gradients = gradients * ravel_pytree(task.mask)[0][None]
        rhs, unravel = ravel_pytree(removal_gradient(task, self.chunk))
        step = woodbury_solve(gradients, rhs, self.ridge)
        return _moved(task.original, self.scale, unravel(step))


@numbers_as_data("alpha", "largest")
@dataclasses.dataclass(frozen=True)
class FisherForgetting:
    """Gaussian noise on every weight, as much as the points to retain allow.

        theta + min(sqrt(alpha / F), largest) * N(0, 1),   ten times as much in the last layer

    F is the diagonal of the empirical Fisher matrix over the points to retain: weights that they
    need get little noise. (Golatkar, Achille and Soatto, CVPR 2020, section 4; the cap and the
    factor of ten are those of the released code of Jia et al.)

    Attributes:
        alpha: more noise forgets more and loses accuracy.
        largest: cap of the noise's deviation, for weights that no point needs.
        head_factor: of the last layer's deviation.
        chunk: gradients in memory at a time, each as large as the model.

    Raises:
        InputError: `alpha` or `largest` is not > 0.
    """

    alpha: float = 1e-8
    largest: float = 1e-3
    head_factor: float = 10.0
    chunk: int = 50

    def __post_init__(self) -> None:
        for name in ("alpha", "largest"):
            if is_known(getattr(self, name)) and not getattr(self, name) > 0:
                raise InputError(f"`{name}` must be a number > 0, got {getattr(self, name)}.")

    def __call__(self, task: Task, key: jax.Array) -> PyTree:
        """Unlearn."""
        deviation = masked(self.deviation(task), task.mask)["params"]
        flat, unravel = ravel_pytree(task.original["params"])
        noise = unravel(jax.random.normal(key, flat.shape, flat.dtype))
        noisy = jax.tree.map(lambda a, d, n: a + d * n, task.original["params"], deviation, noise)
        return dict(task.original) | {"params": noisy}

    def deviation(self, task: Task) -> PyTree:
        """The deviation of each weight's noise, a pytree like the model."""
        retained = Points(task.points.x[task.retain], task.points.y[task.retain])
        fisher = squared_gradients(task.model, task.original, retained, self.chunk)
        head = last_layers(task.model, task.original, 1)
        return jax.tree.map(
            lambda f, h: (
                jnp.minimum(jnp.sqrt(self.alpha / f), self.largest)
                * (1 + (self.head_factor - 1) * h)
            ),
            fisher,
            head,
        )


def removal_gradient(task: Task, chunk: int | None = None) -> PyTree:
    """`v = (1/N) sum_F grad l - |F| / (N |R|) sum_R grad l`, within the mask."""
    count = len(task.points.y)
    num_forget, num_retain = len(task.forget), len(task.retain)
    weight = jnp.full(count, -num_forget / (count * num_retain))
    weight = weight.at[task.forget].set(1 / count)
    gradient = weighted_gradient(task.model, task.original, task.points, weight, chunk)
    return masked(gradient, task.mask)


def woodbury_solve(gradients: jax.Array, rhs: jax.Array, ridge: float) -> jax.Array:
    """`(ridge I + (1/n) G' G)^-1 rhs` for n rows of G, by an n by n system.

    Args:
        gradients: G, `[n, d]`.
        rhs: `[d]`.
        ridge: > 0.

    Returns:
        `[d]`.
    """
    count = len(gradients)
    gram = gradients @ gradients.T + count * ridge * jnp.eye(count, dtype=rhs.dtype)
    inner = jax.scipy.linalg.solve(gram, gradients @ rhs, assume_a="pos")
    return (rhs - inner @ gradients) / ridge


def _moved(params: PyTree, scale: float, step: PyTree) -> PyTree:
    return jax.tree.map(lambda a, s: a + scale * s, params, step)
