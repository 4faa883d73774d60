"""What the solvers share: checked settings, a system at unit norm, the judgement of an answer."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _check, _tree
from bilevel.linear._info import (
    LinearInfo,
    LinearSolution,
    LinearSolver,
    LinearStatus,
    MatVec,
    PyTree,
)

_RANGES = {
    "max_steps": _check.positive_integer,
    "restart": _check.positive_integer,
    "max_dense": _check.positive_integer,
    "num_terms": _check.positive_integer,
    "num_probes": _check.positive_integer,
    "rank": _check.positive_integer,
    "tolerance": _check.positive,
    "max_error": _check.positive,
    "step_size": _check.positive,
    "scale": _check.positive,
    "ridge": _check.non_negative,
    "seed": _check.seed,
}


class Settings:
    """Base of the solvers: each setting is checked by the range that its name has everywhere."""

    symmetric_only: ClassVar[Any] = False  # right only for a symmetric matrix

    def __post_init__(self) -> None:
        """Check every field."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if check := _RANGES.get(field.name):
                check(field.name, getattr(self, field.name))


class Wrapper(Settings):
    """Base of the solvers that wrap another one, in a field `solver`."""

    solver: LinearSolver

    @property
    def symmetric_only(self) -> bool:
        """Whether the solution is right only for a symmetric matrix."""
        return getattr(self.solver, "symmetric_only", False)

    def __post_init__(self) -> None:
        """Check every field, and the wrapped solver."""
        super().__post_init__()
        _check.linear_solver("solver", self.solver)


@dataclasses.dataclass(frozen=True)
class System:
    """`H u = v` with v at unit norm, so that no cotangent is too small or too large for float32.

    Attributes:
        matvec: product with the matrix to solve, the ridge included.
        rhs: v at unit norm; as it was where its norm is zero or not finite, so that zero stays zero
            and NaN stays NaN.
        scale: what v was divided by.
        tolerance: largest relative residual that counts as converged.
    """

    matvec: MatVec
    rhs: PyTree
    scale: jax.Array
    tolerance: float | jax.Array

    @classmethod
    def of(cls, solver: Any, matvec: MatVec, rhs: PyTree) -> "System":
        """The system that `solver`, with its `tolerance` and maybe a `ridge`, is to solve."""
        norm = _tree.norm(rhs)
        scale = jnp.where((norm > 0) & jnp.isfinite(norm), norm, 1.0)
        unit = jax.tree.map(lambda a: a / scale.astype(a.dtype), rhs)
        return cls(shifted(matvec, getattr(solver, "ridge", 0.0)), unit, scale, solver.tolerance)

    def residual(self, value: PyTree, damping: float | jax.Array = 0.0) -> PyTree:
        """`v - (H + damping) value`, at the price of one product."""
        return jax.tree.map(jnp.subtract, self.rhs, shifted(self.matvec, damping)(value))

    def start(self, init: PyTree | None) -> tuple[PyTree, PyTree, int]:
        """Where an iteration begins: a value, its residual, and the products that judging it took.

        `init` serves if its residual is below that of zero; a stale guess can be worse than none.
        """
        zero = jax.tree.map(jnp.zeros_like, self.rhs)
        if init is None:
            return zero, self.rhs, 0
        guess = self.scaled(init)
        residual = self.residual(guess)
        better = _tree.norm(residual) < 1.0  # NaN compares false
        return _tree.where(better, guess, zero), _tree.where(better, residual, self.rhs), 1

    def scaled(self, init: PyTree) -> PyTree:
        """A guess for the original right-hand side, as one for that of unit norm."""
        return jax.tree.map(lambda a: a / self.scale.astype(a.dtype), init)

    def better(
        self,
        best: PyTree,
        last: PyTree,
        best_norm: jax.Array,
        best_residual: PyTree | None = None,
        residual: PyTree | None = None,
    ) -> tuple[PyTree, PyTree]:
        """`last` and its residual; where `best` has a smaller one, the least between the two.

        Args:
            best: an iterate met on the way, or the start.
            last: where the iteration ended.
            best_norm: the residual norm of `best`, as the iteration knew it.
            best_residual: the true residual of `best`, where known: a product less to compile.
            residual: that of `last`.
        """
        residual = self.residual(last) if residual is None else residual
        known = lambda: self.residual(best) if best_residual is None else best_residual
        return jax.lax.cond(
            best_norm < _tree.norm(residual),  # NaN compares false, and stays
            lambda: least_between(best, known(), last, residual),
            lambda: (last, residual),
        )

    def conclude(
        self,
        value: PyTree,
        *,
        num_steps: int | jax.Array,
        residual: PyTree | None = None,
        residual_norm: jax.Array | None = None,
        solved: LinearStatus | jax.Array = LinearStatus.CONVERGED,
        unsolved: LinearStatus | jax.Array = LinearStatus.NOT_CONVERGED,
        zero_pivot: bool | jax.Array = False,
        **evidence: Any,
    ) -> LinearSolution:
        """Judge `value` by its true residual on the system that was solved, and scale it back.

        Args:
            value: the solution for the right-hand side at unit norm.
            num_steps: products with H spent.
            residual: the true one, where the solver has just computed it; None: computed here.
            residual_norm: its norm, where that is known too.
            solved: the status where the residual meets the tolerance.
            unsolved: the status where it does not.
            zero_pivot: whether a division by an exact zero explains a value that is not finite.
            **evidence: further fields of `LinearInfo`.
        """
        norm = residual_norm
        if norm is None:
            norm = _tree.norm(self.residual(value) if residual is None else residual)
        status = jnp.where(norm <= self.tolerance, jnp.asarray(solved), jnp.asarray(unsolved))
        finite = jnp.isfinite(norm) & _tree.all_finite(value)
        broken = jnp.int32(LinearStatus.NON_FINITE)
        if zero_pivot is not False:
            singular = jnp.asarray(zero_pivot) & _tree.all_finite(self.rhs)
            broken = status_if(singular, LinearStatus.SINGULAR, broken)
        status = jnp.where(finite, status, broken).astype(jnp.int32)
        # A plausible number out of a broken system is the worst result of all.
        back = lambda a: jnp.where(finite, a * self.scale.astype(a.dtype), jnp.nan)
        evidence = {"damping": 0.0} | evidence
        evidence = {
            name: jnp.asarray(e, norm.dtype) if name != "lanczos" else e
            for name, e in evidence.items()
        }
        info = LinearInfo(status, jnp.asarray(num_steps, jnp.int32), norm, **evidence)
        return LinearSolution(jax.tree.map(back, value), info)


def shifted(matvec: MatVec, shift: float | jax.Array) -> MatVec:
    """The product with `H + shift I`; H itself where the shift is known to be zero."""
    if isinstance(shift, int | float) and shift == 0:
        return matvec
    return lambda vector: _tree.add_scaled(matvec(vector), shift, vector)


def least_between(
    one: PyTree, residual: PyTree, other: PyTree, other_residual: PyTree
) -> tuple[PyTree, PyTree]:
    """The point of least residual on the line through two, and that residual.

    Never worse than either; of two iterates of CG, whose residuals are orthogonal, better than
    both, so that a solve of a single warm-started step still gains.
    """
    change = jax.tree.map(jnp.subtract, other_residual, residual)
    squared = _tree.vdot(change, change)
    weight = -_tree.vdot(residual, change) / jnp.where(squared > 0, squared, 1.0)
    move = jax.tree.map(jnp.subtract, other, one)
    return _tree.add_scaled(one, weight, move), _tree.add_scaled(residual, weight, change)


def along_null_space(system: System, value: PyTree, scale: jax.Array) -> jax.Array:
    """Whether `H value` vanishes to rounding: on a singular system some iterates grow like that.

    Args:
        system: what was solved.
        value: the last iterate.
        scale: an estimate of the norm of the matrix.
    """
    image, length = _tree.norm(system.matvec(value)), _tree.norm(value)
    small = image <= 16 * jnp.finfo(image.dtype).eps * scale * length
    return small & ((length > 0) | (scale == 0))


def vector(numbers: Sequence[jax.Array]) -> jax.Array:
    """Up to eight numbers as a vector that is made in one kernel, and read from there."""
    return jax.lax.optimization_barrier(jnp.stack(numbers))


def rounding(tree: PyTree) -> float:
    """The rounding error of the coarsest dtype among the leaves: that of products with H."""
    return max(float(jnp.finfo(a.dtype).eps) for a in jax.tree.leaves(tree))


def ridge_of(linear_solver: Any, rhs: PyTree) -> float | jax.Array:
    """What a solver adds to the diagonal, or the one that it wraps or chooses for `rhs`."""
    if hasattr(linear_solver, "choice"):
        return ridge_of(linear_solver.choice(rhs), rhs)
    if hasattr(linear_solver, "ridge") or not hasattr(linear_solver, "solver"):
        return getattr(linear_solver, "ridge", 0.0)
    return ridge_of(linear_solver.solver, rhs)


def random_like(
    tree: PyTree, key: jax.Array, draw: Callable[..., jax.Array] = jax.random.normal
) -> PyTree:
    """A pytree like `tree` with entries by `draw(key, shape, dtype)`."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    draws = [draw(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, draws)


def lifted(leaf: jax.Array) -> jax.Array:
    """A leaf in float32 at least: no factorisation exists in half precision."""
    return leaf.astype(_tree.widest(leaf))


def flattened(tree: PyTree) -> tuple[jax.Array, Callable[[jax.Array], PyTree]]:
    """The leaves as one vector in float32 at least, and the way back to their own dtypes."""
    flat, unravel = ravel_pytree(tree)
    return lifted(flat), lambda vector: unravel(vector.astype(flat.dtype))


def status_if(bad: jax.Array, name: LinearStatus, otherwise: Any) -> jax.Array:
    """`name` where `bad` holds."""
    return jnp.where(bad, int(name), jnp.asarray(otherwise)).astype(jnp.int32)
