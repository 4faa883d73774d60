"""How right the gradient of a robust coreset is: rules against the exact one, frozen attacks.

Both look at the dense head of a trained network, where the Hessian of the lower level can be had
exactly.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel

from ..components.models import Model
from ..components.pixel_ball import Ball
from ..components.points import Points
from ..components.training import cross_entropy
from .bilevel_coreset import DECAY, INNER_RATE, PROBLEM, Coreset, Pool, no_head, select

PyTree = Any
EXACT = bilevel.linear.Dense(tolerance=1e-2)
CONVERGED = bilevel.linear.CG(max_steps=500)  # stands for it in the many solves of a selection
RULES: dict[str, bilevel.LinearSolver] = {
    "CG, 5 steps": bilevel.linear.CG(max_steps=5),
    "CG, 50 steps": bilevel.linear.CG(max_steps=50),
    "Nystrom, rank 20": bilevel.linear.Nystrom(rank=20, ridge=DECAY),
    "Neumann, 20 terms": bilevel.linear.Neumann(num_terms=20, step_size=INNER_RATE),
    "Hessian-free": bilevel.linear.Identity(scale=1 / DECAY),
}


def rules(pool: Pool, size: int) -> dict[str, tuple[float, float]]:
    """For each rule the cosine of its hypergradient with the exact one, and the shared selection.

    Args:
        pool: what the losses see; the hypergradient is taken at equal weights of sum `size`.
        size: points to select.
    """
    exact, chosen = _hypergradient(EXACT, pool), select(Coreset(CONVERGED), pool, size)
    found = {}
    for name, rule in RULES.items():
        shared = np.intersect1d(select(Coreset(rule), pool, size), chosen)
        found[name] = cosine(_hypergradient(rule, pool), exact), len(shared) / size
    return found


@functools.partial(jax.jit, static_argnames="rule")
def _hypergradient(rule: bilevel.LinearSolver, pool: Pool) -> jax.Array:
    search = Coreset(rule, inner_steps=500)
    w = pool.task * pool.size / jnp.sum(pool.task)
    batch = bilevel.Batch(pool, pool)
    return bilevel.hypergradient(PROBLEM, search.solver, w, no_head(pool), batch).hypergrad


def frozen_attacks(
    model: Model,
    variables: PyTree,
    ball: Ball,
    points: Points,
    num_steps: int,
    signed: bool,
) -> tuple[float, float]:
    """Hypergradients with the attack frozen, against those through its steps: cosine and ratio.

    The attack takes a quarter of eps in each step, along the sign of the gradient or along the
    gradient over its mean size. Both are taken at the head of the trained network.

    Args:
        model: from points to logits.
        variables: of the trained network.
        ball: where attacks may go.
        points: of the task.
        num_steps: of the attack, from zero.
        signed: along signs. They have no derivative, so that the two agree by construction.

    Returns:
        The cosine of the two, and the norm of the frozen one over that of the other.
    """
    args = (model, variables, ball, points, num_steps, signed)
    frozen, through = (_through_attack(*args, frozen=flag) for flag in (True, False))
    return cosine(frozen, through), float(jnp.linalg.norm(frozen) / jnp.linalg.norm(through))


@functools.partial(jax.jit, static_argnames=("model", "num_steps", "signed", "frozen"))
def _through_attack(
    model: Model,
    variables: PyTree,
    ball: Ball,
    points: Points,
    num_steps: int,
    signed: bool,
    frozen: bool,
) -> jax.Array:
    (x, y), params, last = points, variables["params"], model.layers[-1]

    def apply(head: PyTree, x: jax.Array) -> jax.Array:
        return model.apply(variables | {"params": params | {last: head}}, x)

    def attacked(head: PyTree) -> jax.Array:
        slope = jax.grad(lambda d: jnp.sum(cross_entropy(apply(head, ball.moved(x, d)), y)))

        def step(delta: jax.Array, _: None) -> tuple[jax.Array, None]:
            g = slope(delta)
            size = jnp.mean(jnp.abs(g), axis=(1, 2, 3), keepdims=True) + 1e-12
            direction = jnp.sign(g) if signed else g / size
            return ball.clip(delta + 0.25 * ball.eps * direction, x), None

        return jax.lax.scan(step, jnp.zeros_like(x), length=num_steps)[0]

    def losses(head: PyTree) -> jax.Array:
        delta = attacked(jax.lax.stop_gradient(head) if frozen else head)
        return cross_entropy(apply(head, ball.moved(x, delta)), y)

    def inner_loss(w: jax.Array, head: PyTree, _: PyTree) -> jax.Array:
        return jnp.vdot(w, losses(head)) + DECAY / 2 * optax.tree.norm(head, squared=True)

    problem = bilevel.BilevelProblem(lambda w, head, _: jnp.mean(losses(head)), inner_loss)
    stay = lambda loss, outer, init, data: init
    solver = bilevel.Implicit(stay, bilevel.linear.CG(max_steps=30, tolerance=1e-4))
    w = jnp.full(len(y), 1 / len(y))
    batch = bilevel.Batch(None, None)
    return bilevel.hypergradient(problem, solver, w, params[last], batch).hypergrad


def cosine(a: jax.Array, b: jax.Array) -> float:
    """Of two vectors."""
    return float(jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b)))
