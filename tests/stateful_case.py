"""A problem with model state whose solution has a closed form, for tests of stateful rules.

The inner variable is that of a ridge; the state has two running means of different momentum, one of
which reads the other, a counter, and statistics that depend on both variables.
"""

import re

import jax
import jax.numpy as jnp

from bilevel import Aux, Batch, BilevelProblem, Stateful

MOMENTUM = {"mean": 0.5, "scale": 0.8}


def matrices():
    left, right = (jax.random.normal(jax.random.key(i), (6, 3)) for i in (0, 1))
    return left, right[:, 0]


def inner_value(outer, variable, data):
    x, y = data
    fit = jnp.mean((jnp.dot(x, variable["w"]) + variable["b"] - y * outer["gain"]) ** 2)
    return fit + jnp.exp(outer["ridge"]) * jnp.sum(variable["w"] ** 2)


def statistics(outer, variable, mean, data):
    """What the running means run after: the second one reads the first."""
    output = jnp.dot(data[0], variable["w"]) + variable["b"] * outer["gain"]
    return {"mean": jnp.mean(output), "scale": jnp.mean(output**2) + jnp.tanh(mean)}


def inner_loss(outer, inner, data):
    variable, state = inner
    seen = statistics(outer, variable, state["mean"], data)
    moved = {n: m * state[n] + (1 - m) * seen[n] for n, m in MOMENTUM.items()}
    value = inner_value(outer, variable, data)
    aux = Aux({**moved, "count": state["count"] + 1}, {"double": 2 * value})
    return value, aux


def outer_value(outer, variable, state, data):
    x, y = data
    output = (jnp.dot(x, variable["w"]) - state["mean"]) / jnp.sqrt(state["scale"] + 1.0)
    return jnp.mean((output - y) ** 2) + 0.1 * outer["gain"] * state["scale"]


def outer_loss(outer, inner, data):
    value = outer_value(outer, *inner, data)
    return value, Aux(metrics={"plus": value + 1.0})


PROBLEM = BilevelProblem(outer_loss, inner_loss)


def start(dtype=None):
    """The outer variable, a `Stateful`, and the batch."""
    x, y = (a.astype(dtype or a.dtype) for a in matrices())
    scalar = lambda value: jnp.asarray(value, x.dtype)
    outer = {"gain": scalar(1.5), "ridge": scalar(-1.0)}
    state = {"mean": scalar(0.3), "scale": scalar(1.0), "count": jnp.int32(0)}
    init = Stateful({"w": jnp.zeros_like(x[0]), "b": scalar(0.0)}, state)
    return outer, init, Batch((x, y), (x, y))


def solved(outer, data):
    """The exact variable and the fixed point of the state, as a differentiable function."""
    x, y = data
    columns = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
    ridge = jnp.exp(outer["ridge"]) * jnp.diag(jnp.ones_like(columns[0]).at[-1].set(0.0))
    gram = jnp.dot(columns.T, columns) / len(y) + ridge
    solution = jnp.linalg.solve(gram, jnp.dot(columns.T, y) / len(y) * outer["gain"])
    variable = {"w": solution[:-1], "b": solution[-1]}
    mean = statistics(outer, variable, 0.0, data)["mean"]
    return variable, statistics(outer, variable, mean, data)


def exact_value(outer, batch):
    """The value function in closed form."""
    return outer_value(outer, *solved(outer, batch.inner), batch.outer)


def loop_value(outer, init, batch, rate, num_steps):
    """Gradient descent and the state, written out: what an unrolled solver must agree with."""
    inner = init
    for _ in range(num_steps):
        slope = jax.grad(inner_value, argnums=1)(outer, inner.variable, batch.inner)
        state = inner_loss(outer, inner, batch.inner)[1].state
        inner = Stateful(jax.tree.map(lambda a, g: a - rate * g, inner.variable, slope), state)
    return outer_value(outer, *inner, batch.outer)


def products(function, *args):
    """How many matrix products the compiled function takes."""
    text = jax.jit(function).lower(*args).compile().as_text()
    return len(re.findall(r"\bdot\(", text))
