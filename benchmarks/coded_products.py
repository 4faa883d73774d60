"""Hessian-vector products with lost workers: coded, uncoded, and dropped and rescaled.

    python -m benchmarks.coded_products

Every straggler set of n <= 10, the digits that a code costs, CG with 3 of 10 answers lost at every
iteration, and the hypergradient of a ridge regression whose adjoint is solved like that.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import Batch, BilevelProblem, Implicit, hypergradient, linear
from bilevel.linear import GradientCode, coded_hvp

NUM_WORKERS, NUM_LOST, SIZE = 10, 3, 50
SEEDS = range(20)


def worst_error(code: GradientCode) -> float:
    """Largest relative error of the decoded sum over all sets of `num_stragglers` workers."""
    n = code.num_workers
    blocks = np.random.default_rng(0).standard_normal((n, 8))
    answers, exact = code.encoding @ blocks, blocks.sum(0)
    decode = jax.jit(code.decode)
    errors = []
    for lost in itertools.combinations(range(n), code.num_stragglers):
        alive = np.ones(n, bool)
        alive[list(lost)] = False
        errors.append(np.linalg.norm(np.asarray(decode(answers, alive)) - exact))
    return max(errors) / np.linalg.norm(exact)


def show_codes() -> None:
    print("| n | s | repetition | Reed-Solomon | amplification |\n|---|---|---|---|---|")
    for n, s in ((4, 1), (6, 2), (8, 3), (10, 1), (10, 3), (10, 4), (10, 9)):
        code = GradientCode(n, s, "reed_solomon")
        same = f"{worst_error(GradientCode(n, s)):.0e}" if n % (s + 1) == 0 else "-"
        print(f"| {n} | {s} | {same} | {worst_error(code):.0e} | {code.amplification:.0e} |")


def masks(seed: int, count: int) -> jax.Array:
    """`[count, NUM_WORKERS]`: who answers at each product."""
    rng = np.random.default_rng(seed)
    alive = np.ones((count, NUM_WORKERS), bool)
    for row in alive:
        row[rng.permutation(NUM_WORKERS)[:NUM_LOST]] = False
    return jnp.asarray(alive)


def conjugate_gradients(product, rhs, num_steps):
    """The plain recurrence, whose product may differ from step to step: `product(step, v)`."""

    def step(carry, index):
        value, residual, direction, square = carry
        image = product(index, direction)
        length = square / (direction @ image)
        value, residual = value + length * direction, residual - length * image
        fresh = residual @ residual
        return (value, residual, residual + fresh / square * direction, fresh), None

    start = (jnp.zeros_like(rhs), rhs, rhs, rhs @ rhs)
    return jax.lax.scan(step, start, jnp.arange(num_steps))[0][0]


@jax.jit
def errors(x, rhs, alive):
    """Relative errors of CG on complete, coded (two ways) and dropped products."""
    parts = x.reshape(NUM_WORKERS, -1, SIZE)
    block = lambda i, v: (parts[i] @ v) @ parts[i] / len(x) + 0.1 * v / NUM_WORKERS
    blocks = lambda v: jax.vmap(block, in_axes=(0, None))(jnp.arange(NUM_WORKERS), v)
    code = GradientCode(NUM_WORKERS, NUM_LOST, "reed_solomon")
    repetition = GradientCode(NUM_WORKERS, NUM_LOST + 1)
    scale = NUM_WORKERS / (NUM_WORKERS - NUM_LOST)
    products = {
        "complete": lambda t, v: blocks(v).sum(0),
        "coded, Reed-Solomon": lambda t, v: coded_hvp(block, code, alive[t])(v),
        "coded, repetition": lambda t, v: coded_hvp(block, repetition, alive[t])(v),
        "dropped and rescaled": lambda t, v: (
            scale * jnp.where(alive[t][:, None], blocks(v), 0).sum(0)
        ),
    }
    exact = jnp.linalg.solve(x.T @ x / len(x) + 0.1 * jnp.eye(SIZE), rhs)
    error = lambda value: jnp.linalg.norm(value - exact) / jnp.linalg.norm(exact)
    return {
        name: error(conjugate_gradients(product, rhs, len(alive)))
        for name, product in products.items()
    }


def show_solves() -> None:
    print(
        "\n| products | error after 60 iterations of CG, mean +- deviation of 20 seeds |\n|---|---|"
    )
    found = []
    for seed in SEEDS:
        x = jax.random.normal(jax.random.key(seed), (400, SIZE))
        found.append(errors(x, jnp.ones(SIZE), masks(seed, 60)))
    for name in found[0]:
        values = np.array([float(row[name]) for row in found])
        print(f"| {name} | {values.mean():.1e} +- {values.std():.1e} |")


def show_hypergradients() -> None:
    """The hypergradient of a ridge regression whose adjoint is solved with lost answers."""
    print("\n| products of the adjoint's solve | error of the hypergradient |\n|---|---|")
    x = jax.random.normal(jax.random.key(0), (400, SIZE))
    y = x[:, :5].sum(1) + jax.random.normal(jax.random.key(1), (400,))
    held, target = x[::-1] + 0.1, y[::-1]
    log_ridge, alive = jnp.float64(-1.0), masks(0, 1)[0]
    solution = lambda o: jnp.linalg.solve(x.T @ x / 400 + jnp.exp(o) * jnp.eye(SIZE), x.T @ y / 400)
    outer_loss = lambda o, w, _: jnp.mean((held @ w - target) ** 2)
    inner_loss = lambda o, w, _: jnp.mean((x @ w - y) ** 2) / 2 + jnp.exp(o) * w @ w / 2
    exact = jax.grad(lambda o: outer_loss(o, solution(o), None))(log_ridge)

    parts = x.reshape(NUM_WORKERS, -1, SIZE)
    block = lambda i, v: (parts[i] @ v) @ parts[i] / 400 + jnp.exp(log_ridge) * v / NUM_WORKERS
    kept = lambda v: sum(jnp.where(alive[i], block(i, v), 0) for i in range(NUM_WORKERS))
    code = GradientCode(NUM_WORKERS, NUM_LOST, "reed_solomon")
    matvecs = {
        "complete": None,
        "coded": coded_hvp(block, code, alive),
        "dropped and rescaled": lambda v: kept(v) * NUM_WORKERS / (NUM_WORKERS - NUM_LOST),
    }
    solver = linear.CG(tolerance=1e-12)
    for name, coded in matvecs.items():
        solve = lambda matvec, rhs, init=None, coded=coded: solver(coded or matvec, rhs, init)
        implicit = Implicit(lambda *_: solution(log_ridge), solve)
        problem = BilevelProblem(outer_loss, inner_loss)
        found = hypergradient(problem, implicit, log_ridge, jnp.zeros(SIZE), Batch()).hypergrad
        print(f"| {name} | {abs(found / exact - 1):.0e} |")


def main() -> None:
    with jax.enable_x64(True):
        show_codes()
        show_solves()
        show_hypergradients()


if __name__ == "__main__":
    main()
