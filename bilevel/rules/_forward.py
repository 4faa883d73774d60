"""Forward-mode hypergradients: exact for the steps taken, in memory that they do not add to."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _check, _derivatives, _tree
from bilevel._describe import settings
from bilevel._problem import Loss
from bilevel._tree import PyTree
from bilevel.solvers import Solver


@settings
class Forward:
    """The gradient of the steps taken, pushed forward along with them: for few outer numbers.

    One forward derivative for each outer number runs beside the inner steps, all in one pass, and
    their end is the Jacobian `dy_K/dx` that the backward pass multiplies by. Memory is that of n
    inner variables for n outer numbers, whatever the number of steps; time is about n + 1 times
    that of solving. Prefer it to unrolling for up to a few tens of numbers and many steps, and for
    solvers whose loops have no reverse derivative (`while_loop`). (Franceschi, Donini, Frasconi and
    Pontil, ICML 2017, section 3.2.)

    It counts what is being differentiated: numbers of the outer variable, and of the start, the
    data or closed-over arrays too if a derivative in these is asked for.

    Attributes:
        solver: any solver with a forward derivative; a `mode="mixed"` of its own, which has none,
            is replaced by `"reverse"`.
        max_numbers: refuse to differentiate with respect to more numbers than this, since time and
            memory grow with them.

    Raises:
        TypeError: `solver` is not callable.
        ValueError: `max_numbers` is not an integer >= 1. When it is differentiated: more numbers
            than that are moving.
    """

    solver: Solver
    max_numbers: int = 64

    def __post_init__(self) -> None:
        _check.solver("solver", self.solver)
        _check.positive_integer("max_numbers", self.max_numbers)

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """Solve from `init`; returns a pytree like `init`."""
        solver: Any = self.solver
        if getattr(solver, "mode", None) == "mixed":
            solver = dataclasses.replace(solver, mode="reverse")
        if getattr(solver, "offload", False):
            solver = dataclasses.replace(solver, offload=False)  # no iterate waits for anything
        run = lambda outer, init, data: solver(loss, outer, init, data)
        pure, consts = _tree.hoist(run, outer, init, data)
        leaves, structure = jax.tree.flatten((consts, outer, init, data))
        kinds = [(jnp.shape(a), jnp.result_type(a)) for a in leaves]

        @jax.custom_vjp
        def solve(leaves: list[Any]) -> PyTree:
            return pure(*jax.tree.unflatten(structure, leaves))

        def forward(primals: list[Any]) -> tuple[PyTree, list[PyTree]]:
            leaves = [primal.value for primal in primals]
            moving = [p.perturbed and _tree.is_differentiable(p.value) for p in primals]
            flat, unravel = ravel_pytree(list(itertools.compress(leaves, moving)))
            self._check_count(flat.size)

            def push(flat: jax.Array) -> tuple[list[Any], PyTree]:
                given = iter(unravel(flat))
                pairs = zip(leaves, moving, strict=True)
                moved = [next(given) if moves else leaf for leaf, moves in pairs]
                inner = pure(*jax.tree.unflatten(structure, moved))
                return _tree.split_differentiable(inner)[0], inner

            _, jacobian, inner = jax.vmap(
                lambda tangent: jax.jvp(push, (flat,), (tangent,), has_aux=True),
                out_axes=(None, 0, None),
            )(jnp.eye(flat.size, dtype=flat.dtype))
            # JAX keeps one structure of residuals for all patterns of what moves, so the pattern
            # is in their shapes: no rows for a leaf that rests.
            counts = [jnp.size(leaf) * moves for leaf, moves in zip(leaves, moving, strict=True)]
            ends = itertools.pairwise(itertools.accumulate(counts, initial=0))
            return inner, [_rows(jacobian, *pair) for pair in ends]

        def backward(jacobians: list[PyTree], cotangent: PyTree) -> tuple[list[Any]]:
            given = jax.tree.leaves(_derivatives.instantiated(cotangent))
            floating = [a for a in given if a.dtype != jax.dtypes.float0]
            pull = jax.vmap(lambda row: _tree.vdot(row, floating))
            pulled = [pull(rows) for rows in jacobians]
            bars = zip(pulled, kinds, strict=True)
            return ([a.reshape(shape).astype(d) if a.size else None for a, (shape, d) in bars],)

        solve.defvjp(forward, backward, symbolic_zeros=True)
        return solve(leaves)

    def _check_count(self, count: int) -> None:
        if count > self.max_numbers:
            raise ValueError(
                f"`Forward` is being differentiated with respect to {count} numbers, and"
                f" max_numbers={self.max_numbers}: each costs a pass of its own. Unroll"
                " (`Minimize` alone) or wrap the solver in `Implicit`, whose cost does not grow"
                f" with them, or allow it by `Forward(..., max_numbers={count})`."
            )


def _rows(jacobian: PyTree, start: int, end: int) -> PyTree:
    return jax.tree.map(lambda a: a[start:end], jacobian)
