"""The problems: each gives the arguments and, by contestant, a function of them to time."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import optax

from bilevel import (
    Batch,
    BilevelProblem,
    Implicit,
    Minimize,
    fast_on_cpu,
    implicit_gradient,
    linear,
    value_and_hypergrad,
)

from . import by_jaxopt, by_torch

Contestant = Callable[..., Any]
STEP, DECAY = 0.1, 1e-3


class Problem(NamedTuple):
    """One comparison.

    Attributes:
        name: for people.
        args: of every contestant.
        contestants: by name, `args -> hypergradient`; "by hand" is the yardstick.
        eager: PyTorch's, functions of nothing.
    """

    name: str
    args: tuple[Any, ...]
    contestants: dict[str, Contestant]
    eager: Mapping[str, by_torch.Contestant] = MappingProxyType({})


def all_problems(small: bool) -> list[Problem]:
    """At the sizes of the table, or at toy size."""
    found = [ridge(*((40, 20) if small else (2000, 1000)))]
    rows, columns, steps = (60, 20, 4) if small else (10_000, 784, 100)
    found += [
        cleaning_by_unrolling(rows, columns, steps),
        cleaning_by_series("CG", rows, columns, 3 if small else 20),
        cleaning_by_series("Neumann", rows, columns, 3 if small else 20),
        network(4 if small else 16, 8 if small else 28, 2 if small else 10),
    ]
    return found


def ridge(rows: int, columns: int) -> Problem:
    """The adjoint of a regulariser for every weight, at the exact inner solution."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, x_val = (jax.random.normal(key, (rows, columns)) for key in keys[:2])
    truth = jax.random.normal(keys[2], (columns,)) / columns**0.5
    y, y_val = x @ truth, x_val @ truth + 0.1

    def outer_loss(outer: jax.Array, w: jax.Array, data: Any) -> jax.Array:
        return jnp.mean((data[0] @ w - data[1]) ** 2)

    def inner_loss(outer: jax.Array, w: jax.Array, data: Any) -> jax.Array:
        return jnp.mean((data[0] @ w - data[1]) ** 2) + jnp.sum(jnp.exp(outer) * w**2)

    def gram(train: Any, outer: jax.Array) -> jax.Array:
        return 2 * train[0].T @ train[0] / rows + 2 * jnp.diag(jnp.exp(outer))

    def by_hand(outer: jax.Array, w: jax.Array, train: Any, test: Any) -> jax.Array:
        pulled = jax.grad(outer_loss, 1)(outer, w, test)
        u = jsp.linalg.cho_solve(jsp.linalg.cho_factor(gram(train, outer)), pulled)
        return -2 * jnp.exp(outer) * w * u

    def ours(solver: Any) -> Contestant:
        def call(outer: jax.Array, w: jax.Array, train: Any, test: Any) -> jax.Array:
            moved = lambda outer: outer_loss(
                outer, implicit_gradient(fast_on_cpu(inner_loss), outer, w, train, solver), test
            )
            return jax.grad(moved)(outer)

        return call

    known = linear.AtPoint(lambda outer, w, train: linear.Dense(matrix=gram(train, outer)))

    outer = jnp.full(columns, -2.0)
    w = jnp.linalg.solve(x.T @ x / rows + jnp.diag(jnp.exp(outer)), x.T @ y / rows)
    contestants = {
        "by hand": by_hand,
        "ours, CG": ours(linear.CG(max_steps=200, tolerance=1e-6)),
        "ours, Dense": ours(linear.Dense()),
        "ours, Dense of its Gram matrix": ours(known),
    }
    contestants |= by_jaxopt.ridge(inner_loss, outer_loss)
    return Problem(
        "ridge, adjoint of a regulariser each", (outer, w, (x, y), (x_val, y_val)), contestants
    )


def _cleaning(rows: int, columns: int) -> tuple[Any, Any, Any]:
    """Softmax regression with a weight for each example: the losses, and their arguments."""
    x = jax.random.normal(jax.random.key(0), (rows, columns))
    y = jnp.abs(100 * x.mean(axis=1)).astype(jnp.int32) % 10
    data = (x, y)

    def outer_loss(outer: jax.Array, w: jax.Array, data: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(data[0] @ w, data[1]).mean()

    def inner_loss(outer: jax.Array, w: jax.Array, data: Any) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(data[0] @ w, data[1])
        return jnp.mean(jax.nn.sigmoid(outer) * losses) + DECAY * jnp.sum(w**2)

    return outer_loss, inner_loss, (jnp.zeros(rows), jnp.zeros((columns, 10)), data)


def _transposed(loss: Any) -> Any:
    """The loss of weights `[10, columns]`, whose gradient is a product that XLA is fast at."""
    return lambda outer, w, data: loss(outer, w.T, data)


def cleaning_by_unrolling(rows: int, columns: int, steps: int) -> Problem:
    """Data hyper-cleaning through plain gradient steps."""
    outer_loss, inner_loss, args = _cleaning(rows, columns)

    def by_hand(outer: jax.Array, w: jax.Array, data: Any) -> jax.Array:
        slope = jax.grad(_transposed(inner_loss), 1)

        def final(outer: jax.Array) -> jax.Array:
            step = jax.checkpoint(lambda w, _: (w - STEP * slope(outer, w, data), None))
            end = jax.lax.scan(step, w.T, None, steps)[0]
            return _transposed(outer_loss)(outer, end, data)

        return jax.grad(final)(outer)

    solver = Minimize(optax.sgd(STEP), steps)
    contestants = {"by hand": by_hand} | _ours(outer_loss, inner_loss, solver)
    contestants |= by_jaxopt.unrolled(inner_loss, outer_loss, STEP, steps)
    theirs = by_torch.unrolled(args, STEP, steps, DECAY)
    return Problem(f"hyper-cleaning, unroll {steps}", args, contestants, theirs)


def cleaning_by_series(kind: str, rows: int, columns: int, terms: int) -> Problem:
    """The same by an implicit gradient: as many steps, then CG or Neumann's series."""
    outer_loss, inner_loss, args = _cleaning(rows, columns)

    def by_hand(outer: jax.Array, w: jax.Array, data: Any) -> jax.Array:
        loss, outer_of = _transposed(inner_loss), _transposed(outer_loss)
        slope = jax.grad(loss, 1)
        move = lambda _, w: w - STEP * slope(outer, w, data)
        w = jax.lax.fori_loop(0, terms, move, w.T)
        product = lambda v: jax.jvp(lambda w: slope(outer, w, data), (w,), (v,))[1]
        pulled = jax.grad(outer_of, 1)(outer, w, data)
        if kind == "CG":
            u = jsp.sparse.linalg.cg(product, pulled, maxiter=terms, tol=1e-12)[0]
        else:
            add = lambda _, carry: (carry[0] + carry[1], carry[1] - STEP * product(carry[1]))
            u = STEP * jax.lax.fori_loop(0, terms, add, (jnp.zeros_like(pulled), pulled))[0]
        return -jax.vjp(lambda outer: slope(outer, w, data), outer)[1](u)[0]

    by_kind: dict[str, Any] = {
        "CG": linear.CG(max_steps=terms, tolerance=1e-12),
        "Neumann": linear.Neumann(terms, STEP),
    }
    solver = Implicit(Minimize(optax.sgd(STEP), terms), by_kind[kind])
    contestants = {"by hand": by_hand} | _ours(outer_loss, inner_loss, solver)
    if kind == "CG":
        contestants |= by_jaxopt.implicit(inner_loss, outer_loss, STEP, terms)
    theirs = by_torch.series(kind, args, STEP, terms, DECAY)
    return Problem(f"hyper-cleaning, {kind} {terms}", args, contestants, theirs)


def network(examples: int, side: int, steps: int) -> Problem:
    """Weights of the examples of a small CNN, through plain gradient steps."""
    keys = jax.random.split(jax.random.key(1), 4)
    last = (side // 4) ** 2 * 32
    shapes = (3, 3, 1, 16), (3, 3, 16, 32), (last, 64), (64, 10)
    params = [0.1 * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
    x = jax.random.normal(jax.random.key(0), (examples, side, side, 1))
    data = x, jnp.arange(examples) % 10

    def logits(params: Any, x: jax.Array) -> jax.Array:
        for kernel in params[:2]:
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            n, height, width, channels = x.shape
            x = jax.nn.gelu(x).reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))
        return jax.nn.gelu(x.reshape(len(x), -1) @ params[2]) @ params[3]

    def outer_loss(outer: jax.Array, params: Any, data: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(params, data[0]), data[1]
        ).mean()

    def inner_loss(outer: jax.Array, params: Any, data: Any) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, data[0]), data[1])
        return jnp.mean(jax.nn.sigmoid(outer) * losses)

    def by_hand(outer: jax.Array, params: Any, data: Any) -> jax.Array:
        slope = jax.grad(inner_loss, 1)

        def final(outer: jax.Array) -> jax.Array:
            for _ in range(steps):  # unrolled in Python: XLA:CPU has no fast convolutions in loops
                grads = slope(outer, params_now[-1], data)
                params_now.append(jax.tree.map(lambda p, g: p - STEP * g, params_now[-1], grads))
            return outer_loss(outer, params_now[-1], data)

        params_now = [params]
        return jax.grad(final)(outer)

    solver = Minimize(optax.sgd(STEP), steps)
    contestants = {"by hand": by_hand} | _ours(outer_loss, inner_loss, solver)
    contestants |= by_jaxopt.unrolled(inner_loss, outer_loss, STEP, steps)
    args = jnp.zeros(examples), params, data
    return Problem(
        f"CNN, unroll {steps}", args, contestants, by_torch.unrolled(args, STEP, steps, 0.0)
    )


def _ours(outer_loss: Any, inner_loss: Any, solver: Any) -> dict[str, Contestant]:
    """The losses as they stand, and made fast on CPUs."""

    def call(transform: Any, outer: jax.Array, init: Any, data: Any) -> jax.Array:
        problem = BilevelProblem(transform(outer_loss), transform(inner_loss))
        return value_and_hypergrad(problem, solver)(outer, init, Batch(data, data))[1]

    return {
        "ours": functools.partial(call, fast_on_cpu),
        "ours, without fast_on_cpu": functools.partial(call, lambda loss: loss),
    }
