"""What a first run compiles, counted: a count does not depend on how busy the machine is."""

import jax
import jax.numpy as jnp
import optax
import pytest

from bilevel import Batch, BilevelProblem, DoubleLoop, Implicit, Minimize, linear, run
from bilevel.linear._columns import columns


def squares(weights, data):
    return jnp.mean((data[0] @ weights - data[1]) ** 2)


def logistic(weights, data):
    return jnp.mean(jnp.logaddexp(0.0, -data[1] * (data[0] @ weights)))


# README's first example and a logistic regression on 30 features, with all evidence, and the most
# kernels that XLA may make of them. JAX 0.10 makes 67 and 72 with the flags of the tests, else 78
# and 87.
PROGRAMS = {"README": (squares, 20, 82), "logistic": (logistic, 30, 92)}


@pytest.mark.parametrize("name", PROGRAMS)
def test_kernels_of_a_whole_run(name):
    fit, size, most = PROGRAMS[name]
    problem = BilevelProblem(
        lambda log_reg, w, data: fit(w, data),
        lambda log_reg, w, data: fit(w, data) + jnp.sum(jnp.exp(log_reg) * w**2),
    )
    solver = Implicit(Minimize(optax.adam(0.05), num_steps=100), linear.CG())
    algorithm = DoubleLoop(problem, solver, optax.adam(0.1))
    data = jnp.ones((30, size)), jnp.ones(30)
    state = algorithm.init(outer=jnp.full(size, -4.0), inner=jnp.zeros(size))
    program = jax.jit(lambda s, b: run(algorithm, s, b, 200)).lower(state, Batch(data, data))
    text = program.compile().as_text()
    count = lambda kind: text.count(f" {kind}(")
    # Two each for outer value and gradient, inner steps, linearised gradient; the solver's product.
    assert count("dot") <= 10
    assert count("while") == 4 and count("conditional") == 1
    assert count("fusion") <= most


@pytest.mark.parametrize(
    ("product", "like"),
    [
        (lambda x, v: x.T @ (x @ v) + v, jnp.zeros(4)),
        (lambda x, v: (v @ x.T) @ x, jnp.zeros((3, 4))),
        (
            lambda x, v: {"a": x.T @ (x @ v["a"] + v["b"][None]), "b": 2.0 * v["b"]},
            {"a": jnp.zeros((4, 3)), "b": jnp.ones(3)},
        ),
        (lambda x, v: jnp.einsum("ab,bcd,ca->d", x, v, x), jnp.zeros((4, 4, 2))),
        (lambda x, v: jnp.einsum("cb,abcd->da", v, jnp.ones((5, 4, 3, 2))), jnp.zeros((3, 4))),
        (lambda x, v: 2.0 * v, jnp.zeros(3)),
    ],
)
def test_columns_of_a_linear_function(product, like):
    """The same as products with the unit vectors, under `jit` and `vmap` too."""
    inputs = jax.random.normal(jax.random.key(0), (2, 4, 4))
    flat, unravel = jax.flatten_util.ravel_pytree(like)
    flattened = lambda x, v: jax.flatten_util.ravel_pytree(product(x, v))[0]
    ours = jax.jit(jax.vmap(lambda x: columns(lambda v: flattened(x, v), like)))(inputs)
    each = lambda x: jax.jacobian(lambda v: flattened(x, unravel(v)))(flat)
    assert jnp.allclose(ours, jax.vmap(each)(inputs), rtol=1e-5, atol=1e-5)


def test_dense_takes_no_product_with_the_identity():
    """Of `X' (X v)`, n products at once: one product of matrices, and that of X with I is none."""
    inputs = jnp.ones((80, 40))
    build = lambda x: columns(lambda v: x.T @ (x @ v), jnp.ones(40))
    program = jax.make_jaxpr(build)(inputs)
    assert str(program).count("dot_general") == 1
    solve = lambda solver, x: solver(lambda v: x.T @ (x @ v) + v, jnp.ones(40)).value
    counts = [
        jax.jit(lambda x, s=solver: solve(s, x)).lower(inputs).compile().cost_analysis()["flops"]
        for solver in (linear.Dense(), linear.Dense(matrix=inputs.T @ inputs))
    ]
    assert counts[0] - counts[1] < 1.1 * 2 * 40 * 40 * 80
