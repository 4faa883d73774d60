"""RCIG: condensation by the implicit gradient of a lower level that was made convex.

    f_lin(x)   = f(x; p0) + J(x; p0) d                   network linearised at p0, d is learned
    L_in(S, d) = ridge/(2 m C) ( tr r' (K + ridge I)^-1 r + ||d||^2 ),  r = y_s - f_lin(x_s)
    L_out      = CE( e^tau (f_lin(x_t) + K_ts w), y_t ),  w = (K + ridge I)^-1 r

K = h h' with h the features at p0; the head w is eliminated. L_in is quadratic in d and strongly
convex, so that one linear solve gives its minimiser and one the adjoint, and the implicit function
theorem applies as it stands.

Source: Loo, Hasani, Lechner and Rus, "Dataset Distillation with Convexified Implicit Gradients",
ICML 2023, section 3.2. Differs from the paper in that the lower level and the adjoint are solved
exactly (`condensing.dual`), not by 20 steps of a tuned Adam; hence the implicit part needs no
clipping.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import bilevel

from ..components.models import Model
from ..components.training import cross_entropy, logits
from .dual import woodbury
from .ridge import label_margin
from .synthetic import Synthetic, flattened, split_head

PyTree = Any


class Seen(NamedTuple):
    """What a level sees: the point of linearisation, and real images with their classes."""

    params: PyTree
    x: jax.Array
    labels: jax.Array


@dataclasses.dataclass(frozen=True)
class NewtonStep:
    """The exact minimiser of a quadratic loss: one linear solve, a `bilevel.Solver`.

    Attributes:
        linear_solver: of the Hessian.
    """

    linear_solver: bilevel.LinearSolver

    def __call__(self, loss: Any, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """The minimiser, whatever `init` is; only its residual depends on the solver."""
        slope = lambda inner: jax.grad(loss, argnums=1)(outer, inner, data)
        start, product = jax.linearize(slope, init)
        step = self.linear_solver(product, start).value
        return jax.tree.map(jnp.subtract, init, step)


@dataclasses.dataclass(frozen=True)
class Convexified:
    """RCIG.

    Attributes:
        model: smooth, since its second derivatives matter.
        solver: of the lower level, with the gradient rule. The problem is the same for each. None:
            `Implicit` with the exact inverse of `dual.woodbury`, which suits up to a thousand label
            entries (images times classes); `NewtonStep` and `linear.CG` serve beyond that, and for
            a last layer that is no Flax layer with a bias.
        relative_ridge: lambda over the number of images.
        margin: weight of the term that keeps label vectors labels.
    """

    model: Model
    solver: bilevel.Solver | None = None
    relative_ridge: float = 5e-4
    margin: float = 1.0

    def __call__(
        self, outer: Synthetic, params: PyTree, batch: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Synthetic]:
        """The outer loss on real images `[C, b, ...]`, and the hypergradient."""
        del key
        result = self.hypergradient(outer, params, batch)
        return result.value, result.hypergrad

    def hypergradient(
        self, outer: Synthetic, params: PyTree, batch: jax.Array
    ) -> bilevel.Hypergradient:
        """The hypergradient with its evidence; arguments as for `__call__`."""
        seen = Seen(params, *flattened(batch))
        start = jax.tree.map(jnp.zeros_like, params)
        both = bilevel.Batch(inner=seen, outer=seen)
        solver = self.exact(outer, params) if self.solver is None else self.solver
        return bilevel.hypergradient(self.problem, solver, outer, start, both)

    def exact(self, outer: Synthetic, params: PyTree) -> bilevel.Implicit:
        """The rule in closed form: one factor for the lower level and the adjoint."""
        if set(split_head(self.model, params)[1]) != {"kernel", "bias"}:
            cg = bilevel.linear.CG(200)
            return bilevel.Implicit(NewtonStep(cg), cg)
        inverse = woodbury(self.model, params, outer.x, self.relative_ridge * len(outer.x))
        return bilevel.Implicit(NewtonStep(inverse), inverse)

    @property
    def problem(self) -> bilevel.BilevelProblem:
        """Both levels; the inner variable is d, like the parameters."""
        return bilevel.BilevelProblem(self.outer_loss, self.inner_loss)

    def inner_loss(self, outer: Synthetic, d: PyTree, seen: Seen) -> jax.Array:
        """L_in."""
        h, linearised = self._linearised(seen.params, outer.x, d)
        r, ridge = outer.y - linearised, self._ridge(h)
        w = self._head(h, r, ridge)
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(d))
        return (jnp.sum(r * w) * ridge + ridge * squares) / (2 * outer.y.size)

    def outer_loss(self, outer: Synthetic, d: PyTree, seen: Seen) -> jax.Array:
        """L_out."""
        h, linearised = self._linearised(seen.params, outer.x, d)
        w = self._head(h, outer.y - linearised, self._ridge(h))
        h_real, linearised_real = self._linearised(seen.params, seen.x, d)
        scores = jnp.exp(outer.log_scale) * (linearised_real + h_real @ (h.T @ w))
        num_classes = outer.y.shape[1]
        margin = jnp.mean(jnp.minimum(label_margin(outer.y), 1 / (2 * num_classes)))
        return jnp.mean(cross_entropy(scores, seen.labels)) - self.margin * margin

    def _linearised(self, params: PyTree, x: jax.Array, d: PyTree) -> tuple[jax.Array, jax.Array]:
        """Features at p0 and the outputs of the linearised network."""
        value, slope = jax.jvp(lambda p: logits(self.model, p, x), (params,), (d,))
        return self.model.features(params, x), value + slope

    def _ridge(self, h: jax.Array) -> jax.Array:
        return jnp.asarray(self.relative_ridge * len(h), h.dtype)

    def _head(self, h: jax.Array, r: jax.Array, ridge: jax.Array) -> jax.Array:
        factor = jax.scipy.linalg.cho_factor(h @ h.T + ridge * jnp.eye(len(h), dtype=h.dtype))
        return jax.scipy.linalg.cho_solve(factor, r)
