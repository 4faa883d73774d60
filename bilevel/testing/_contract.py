"""The contract that every solver and every algorithm passes, for third parties too."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _tree
from bilevel._algorithm import Algorithm
from bilevel._problem import Batch, BilevelProblem, PyTree, check_alike
from bilevel.solvers import Solver
from bilevel.testing._cases import Case, logistic, quadratic, ridge


class TraceCounter:
    """Wrap a function and count how often JAX traces it: `TraceCounter(loss).count`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.count = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, counting."""
        self.count += 1
        return self.function(*args, **kwargs)


def standard_cases(dtype: Any = jnp.float32) -> list[Case]:
    """One case of each kind, small enough to compile in a second.

    Args:
        dtype: of all arrays, whatever their shape; float64 needs `jax_enable_x64`.
    """
    return list(_standard_cases(jnp.dtype(dtype)))


@functools.cache
def _standard_cases(dtype: Any) -> tuple[Case, ...]:
    """Built once: that costs as much as a check of a cheap solver."""
    ridge_key, quadratic_key, logistic_key = jax.random.split(jax.random.key(0), 3)
    return (
        ridge(ridge_key, dtype=dtype),
        quadratic(quadratic_key, dtype=dtype),
        logistic(logistic_key, dtype=dtype),
    )


def check_solver(make: Callable[[Case], Solver], *, dtype: Any = jnp.float32) -> None:
    """Raise an AssertionError unless the solvers that `make` builds obey the `Solver` contract.

    On every standard case the result has the structure, shapes and dtypes of `init`, is finite and
    lowers the inner loss, and the hypergradient through it has those of `outer` and is finite. On
    the nested one `vmap`, `scan` and `grad` compose around it and agree with single calls, and the
    loss may close over traced values.

    Args:
        make: from a case to a solver that suits it (`case.curvature` bounds the step size).
        dtype: of the cases; float64 needs `jax_enable_x64`.

    Raises:
        ValueError: the result, or the gradient, has the wrong structure, shapes or dtypes.
    """
    for case in standard_cases(dtype):
        inner, hypergrad = _check_solution(make(case), case)
        if isinstance(case.init, dict):
            _check_composition(make(case), case, inner, hypergrad)


def _check_solution(solver: Solver, case: Case) -> tuple[PyTree, PyTree]:
    loss, data = case.problem.inner_loss, case.batch.inner
    hypergrad, inner = jax.jit(jax.grad(_composed(solver, case), has_aux=True))(case.outer)
    check_alike("the solver's result", inner, "init", case.init)
    check_alike("the hypergradient", hypergrad, "outer", case.outer)
    finite = _tree.all_finite((inner, hypergrad))
    _require(finite, f"{case}: result and hypergradient must be finite")
    before, after = (jax.jit(loss)(case.outer, y, data) for y in (case.init, inner))
    _require(after < before, f"{case}: the inner loss must fall, got {before} -> {after}")
    return inner, hypergrad


def _check_composition(solver: Solver, case: Case, inner: PyTree, hypergrad: PyTree) -> None:
    composed, same = _composed(solver, case), jax.tree.map(lambda a: jnp.stack([a, a]), case.outer)

    def scanned(_: None, outer: PyTree) -> tuple[None, PyTree]:
        return None, jax.grad(composed, has_aux=True)(outer)

    batched = jax.jit(jax.vmap(jax.grad(composed, has_aux=True)))(same)
    looped = jax.jit(lambda pair: jax.lax.scan(scanned, None, pair)[1])(same)
    for name, pair in (("vmap", batched), ("scan", looped)):
        for i in range(2):
            single = jax.tree.map(lambda a, i=i: a[i], pair)
            _close(single, (hypergrad, inner), f"{case}: {name} and a single call differ")

    def closed_over(outer: PyTree) -> jax.Array:
        loss = lambda _, y, b: case.problem.inner_loss(outer, y, b)
        inner = solver(loss, None, case.init, case.batch.inner)
        return case.problem.outer_loss(outer, inner, case.batch.outer)

    message = f"{case}: the gradient through a loss that closes over `outer` differs"
    _close(jax.jit(jax.grad(closed_over))(case.outer), hypergrad, message)


def _composed(solver: Solver, case: Case) -> Callable[[PyTree], tuple[jax.Array, PyTree]]:
    def composed(outer: PyTree) -> tuple[jax.Array, PyTree]:
        inner = solver(case.problem.inner_loss, outer, case.init, case.batch.inner)
        return case.problem.outer_loss(outer, inner, case.batch.outer), inner

    return composed


def check_algorithm(
    make: Callable[[BilevelProblem], Algorithm],
    *,
    num_steps: int = 60,
    dtype: Any = jnp.float32,
    case: Case | None = None,
    stack: bool = False,
) -> None:
    """Raise an AssertionError unless what `make` builds obeys the `Algorithm` contract.

    On the quadratic case (inner curvature between 0.1 and 1, both variables nested dictionaries):
    the state keeps its structure, shapes and dtypes over a step, compiles once, lowers the value
    function by at least a tenth of the possible decrease, is deterministic, and works under `jit`,
    `vmap` and `scan`.

    Args:
        make: from a problem to an algorithm whose settings suit that case.
        num_steps: steps after which the value function must have fallen.
        dtype: of the case; float64 needs `jax_enable_x64`.
        case: another case, for algorithms of problems with a structure (a min-max problem, say);
            its value function must be quadratic in the outer variable. None: the one above.
        stack: True gives the batch as a stack of one minibatch, for finite-sum methods.
    """
    case = quadratic(jax.random.key(1), dtype=dtype) if case is None else case
    batch = jax.tree.map(lambda a: a[None], case.batch) if stack else case.batch
    counter = TraceCounter(case.problem.outer_loss)
    algorithm = make(BilevelProblem(counter, case.problem.inner_loss))
    step = jax.jit(algorithm.step)

    start = algorithm.init(case.outer, case.init)
    state, info = step(start, batch)
    traces = counter.count
    check_alike("the state after a step", state, "the state before it", start)
    for _ in range(num_steps - 1):
        state, info = step(state, batch)
    _require(
        counter.count == traces,
        f"a step must compile once, but step 2 traced the loss {counter.count - traces} more times"
        " (a weakly typed state does that)",
    )
    _require(
        all(bool(jnp.all(jnp.isfinite(a))) for a in _floats(state)), "the state must be finite"
    )
    before, after = (float(jax.jit(case.value)(s.outer)) for s in (start, state))
    _require(
        after < before - 0.1 * (before - _best_value(case)),
        f"{num_steps} steps must lower the value function, got {before} -> {after}",
    )
    _check_transforms(algorithm, start, batch)


def _check_transforms(algorithm: Algorithm, start: Any, batch: Batch) -> None:
    def two_steps(state: Any) -> Any:
        return jax.lax.scan(lambda s, _: algorithm.step(s, batch), state, length=2)[0]

    run = jax.jit(two_steps)
    once, again = run(start), run(start)
    _require(
        all(
            bool(jnp.array_equal(a, b)) for a, b in zip(_floats(once), _floats(again), strict=True)
        ),
        "two runs from one state must agree bitwise",
    )
    pair = jax.tree.map(lambda a: jnp.stack([a, a]), start)
    batched = jax.jit(jax.vmap(two_steps))(pair)
    for i in range(2):
        _close(jax.tree.map(lambda a, i=i: a[i], batched), once, "vmap and a single run differ")


def _best_value(case: Case) -> float:
    """The least value of a quadratic case, by Newton's method on its closed-form hypergradient."""
    flat, unravel = ravel_pytree(case.outer)
    hypergrad = lambda x: ravel_pytree(case.hypergrad(unravel(x)))[0]
    best = flat - jnp.linalg.solve(jax.jacfwd(hypergrad)(flat), hypergrad(flat))
    return float(case.value(unravel(best)))


def _floats(tree: PyTree) -> list[jax.Array]:
    return [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)]


def _close(tree: PyTree, expected: PyTree, message: str) -> None:
    """Agreement to a few hundred roundings: the order of sums may differ, nothing else."""
    for a, b in zip(_floats(tree), _floats(expected), strict=True):
        tolerance = 2000 * float(jnp.finfo(a.dtype).eps)
        scale = 1.0 + float(jnp.max(jnp.abs(b), initial=0.0))
        error = float(jnp.max(jnp.abs(a - b), initial=0.0))
        _require(error <= tolerance * scale, f"{message}: by {error:.3g}, scale {scale:.3g}")


def _require(condition: Any, message: str) -> None:
    # Not an `assert`, which `python -O` removes: a contract must always be able to fail.
    if not bool(condition):
        raise AssertionError(message + ".")
