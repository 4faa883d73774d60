"""GMRES: the Krylov solver for a matrix that need not be symmetric."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy as jsp

from bilevel import _tree
from bilevel._describe import settings
from bilevel.linear._info import LinearSolution, LinearStatus, MatVec, PyTree
from bilevel.linear._system import (
    Settings,
    System,
    along_null_space,
    least_between,
    rounding,
    status_if,
)


class _Cycle(NamedTuple):
    step: jax.Array  # Arnoldi steps in this cycle
    basis: PyTree  # orthonormal vectors stacked along a new first axis of length restart + 1
    hessenberg: jax.Array  # [restart + 1, restart], the matrix H in that basis
    rotation: jax.Array  # [restart + 1, restart + 1], makes the Hessenberg matrix triangular
    triangle: jax.Array  # [restart + 1, restart]
    residual: jax.Array  # norm of the least residual over the basis
    singular: jax.Array


class _State(NamedTuple):
    step: jax.Array  # products with H so far
    value: PyTree
    residual: PyTree
    min_curvature: jax.Array
    max_curvature: jax.Array
    singular: jax.Array


@settings
class GMRES(Settings):
    """Restarted GMRES on `(H + ridge I) u = v`, for any square H given by products.

    Prefer it where `matvec` is not symmetric (a fixed-point or an equilibrium map); for a Hessian
    `CG` and `MINRES` do the same with three vectors instead of `restart + 1`. On a symmetric H of
    negative curvature `info.status` says INDEFINITE, though the solution of the system stands.
    (Saad and Schultz, SIAM J. Sci. Stat. Comput. 1986, Algorithm 4.)

    Differs from the paper in that each new vector is orthogonalised twice by classical
    Gram-Schmidt: once is not enough in float32. `min_curvature` and `max_curvature` are over the
    whole space of each cycle.

    Attributes:
        max_steps: Arnoldi steps at most, each one Hessian-vector product. Judging a first guess and
            beginning a new cycle take one more each; the latter is not counted in `num_steps`.
        restart: vectors kept; the memory is `restart + 1` times that of v. Too few of them stall on
            a badly conditioned H: `info.residual_norm` tells.
        tolerance: relative residual to stop at.
        ridge: added to the diagonal.

    Raises:
        ValueError: a setting is out of its range.
    """

    max_steps: int = 100
    restart: int = 30
    tolerance: float = 1e-6
    ridge: float = 0.0

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for `rhs`, a pytree; `init` is a first guess."""
        system = System.of(self, matvec, rhs)
        value, residual, spent = system.start(init)
        infinite = jnp.full_like(_tree.norm(residual), jnp.inf)
        state = jax.lax.while_loop(
            lambda s: (
                (s.step < self.max_steps) & (_tree.norm(s.residual) > self.tolerance) & ~s.singular
            ),
            lambda s: self._cycle(system, s),
            _State(jnp.int32(0), value, residual, infinite, -infinite, jnp.bool_(False)),
        )
        scale_of_matrix = jnp.maximum(jnp.abs(state.max_curvature), jnp.abs(state.min_curvature))
        grown = along_null_space(system, state.value, scale_of_matrix)
        indefinite = state.min_curvature < -8 * rounding(system.rhs) * scale_of_matrix
        return system.conclude(
            state.value,
            residual=state.residual,
            num_steps=state.step + spent,
            solved=status_if(indefinite, LinearStatus.INDEFINITE, LinearStatus.CONVERGED),
            unsolved=status_if(
                state.singular | grown, LinearStatus.SINGULAR, LinearStatus.NOT_CONVERGED
            ),
            min_curvature=state.min_curvature,
            max_curvature=state.max_curvature,
        )

    def _cycle(self, system: System, state: _State) -> _State:
        """Arnoldi from the residual, then the least residual over its basis."""
        norm = _tree.norm(state.residual)
        end = jax.lax.while_loop(
            lambda c: (
                (c.step < c.rotation.shape[0] - 1)
                & (state.step + c.step < self.max_steps)
                & (c.residual > 0.9 * self.tolerance)
                & ~c.singular
            ),
            lambda c: _arnoldi(system.matvec, norm, c),
            self._begin(state.residual, norm),
        )
        used = jnp.arange(end.triangle.shape[1]) < end.step - end.singular.astype(jnp.int32)
        pair = used[:, None] & used[None, :]
        triangle = jnp.where(pair, end.triangle[:-1], jnp.eye(used.size, dtype=norm.dtype))
        weights = jsp.linalg.solve_triangular(
            triangle, jnp.where(used, norm * end.rotation[:-1, 0], 0.0)
        )
        step = _combine(end.basis, jnp.append(weights, 0.0))
        value = _tree.add(state.value, step)
        # Least over the whole basis but for rounding, which a nearly singular triangle magnifies.
        value, residual = least_between(state.value, state.residual, value, system.residual(value))
        used = jnp.arange(used.size) < end.step
        small = jnp.where(used[:, None] & used[None, :], end.hessenberg[:-1], 0.0)
        small += jnp.diag(jnp.where(used, 0.0, end.hessenberg[0, 0]))
        curvatures = jnp.linalg.eigvalsh((small + small.T) / 2)
        return _State(
            step=state.step + end.step,
            value=value,
            residual=residual,
            min_curvature=jnp.minimum(state.min_curvature, curvatures[0]),
            max_curvature=jnp.maximum(state.max_curvature, curvatures[-1]),
            singular=end.singular,
        )

    def _begin(self, residual: PyTree, norm: jax.Array) -> _Cycle:
        size = min(self.restart, self.max_steps)
        return _Cycle(
            step=jnp.int32(0),
            basis=jax.tree.map(
                lambda a: (
                    jnp.zeros((size + 1, *a.shape), a.dtype).at[0].set(a / norm.astype(a.dtype))
                ),
                residual,
            ),
            hessenberg=jnp.zeros((size + 1, size), norm.dtype),
            rotation=jnp.eye(size + 1, dtype=norm.dtype),
            triangle=jnp.zeros((size + 1, size), norm.dtype),
            residual=norm,
            singular=jnp.bool_(False),
        )


def _arnoldi(matvec: MatVec, norm: jax.Array, cycle: _Cycle) -> _Cycle:
    """One more vector: `H v_k = sum_j h_jk v_j`, and the rotation that removes `h_{k+1,k}`."""
    k = cycle.step
    image = matvec(jax.tree.map(lambda a: a[k], cycle.basis))
    size = _tree.norm(image)
    coefficients = jnp.zeros(cycle.rotation.shape[0], norm.dtype)
    for _ in range(2):
        part = jax.vmap(_tree.vdot, (0, None))(cycle.basis, image).astype(norm.dtype)
        image = _tree.add_scaled(image, -1.0, _combine(cycle.basis, part))
        coefficients += part
    rest = _tree.norm(image)
    eps = jnp.finfo(norm.dtype).eps
    ended = rest <= 8 * eps * size  # what is left is rounding: the space is invariant
    column = coefficients.at[k + 1].set(jnp.where(ended, 0.0, rest))
    rotated = cycle.rotation @ column
    radius = jnp.hypot(rotated[k], rotated[k + 1])
    largest = jnp.maximum(jnp.max(jnp.abs(cycle.triangle)), jnp.max(jnp.abs(column)))
    singular = radius <= 8 * eps * largest
    cos, sin = (jnp.where(singular, d, rotated[k + i] / radius) for i, d in ((0, 1.0), (1, 0.0)))
    upper, lower = cycle.rotation[k], cycle.rotation[k + 1]
    rotation = cycle.rotation.at[k].set(cos * upper + sin * lower)
    rotation = rotation.at[k + 1].set(cos * lower - sin * upper)
    vector = _tree.scale(jnp.where(ended, 0.0, 1 / rest), image)
    return _Cycle(
        step=k + 1,
        basis=jax.tree.map(lambda b, a: b.at[k + 1].set(a), cycle.basis, vector),
        hessenberg=cycle.hessenberg.at[:, k].set(column),
        rotation=rotation,
        triangle=cycle.triangle.at[:, k].set(rotated.at[k].set(radius).at[k + 1].set(0.0)),
        residual=jnp.where(singular, cycle.residual, norm * jnp.abs(rotation[k + 1, 0])),
        singular=singular,
    )


def _combine(basis: PyTree, weights: jax.Array) -> PyTree:
    """The sum of the stacked vectors, each times its weight."""
    return jax.tree.map(lambda b: jnp.tensordot(weights.astype(b.dtype), b, 1), basis)
