"""The recipes of `docs/stateful-models.md` are exact, and what is refused without them."""

import re
from pathlib import Path

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bilevel import BilevelProblem, DoubleLoop, Implicit, Minimize, hypergradient
from bilevel import linear as solvers
from bilevel._problem import check_variable

PAGE = Path(__file__).parent.parent / "docs" / "stateful-models.md"
RECIPES = ("linen", "nnx", "equinox")


@pytest.fixture(scope="module")
def page():
    """What the page defines, up to where it runs the three recipes."""
    names = {"__name__": "__docs__"}
    with jax.numpy_rank_promotion("allow"):
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            if block.startswith(("optimizer", "solver", "class Dropped")):
                continue
            exec(block.split("\nalgorithm =")[0], names)
    return names


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_exact(name, page):
    """Unrolled and implicit hypergradients against differences of the outer loss itself."""
    problem = BilevelProblem(page[f"{name}_outer"], page[f"{name}_inner"])
    start, batch = page[f"{name}_start"], page["batch"]
    solver = Minimize(optax.sgd(0.1), 10)
    outer = jnp.float32(-1.0)
    with jax.numpy_rank_promotion("allow"):
        found = jax.jit(lambda x: hypergradient(problem, solver, x, start, batch))(outer)
        value = jax.jit(lambda x: hypergradient(problem, solver, x, start, batch).value)
        difference = (value(outer + 0.02) - value(outer - 0.02)) / 0.04
        np.testing.assert_allclose(found.hypergrad, difference, rtol=2e-2)
        moved = zip(*map(jax.tree.leaves, (found.inner.state, start.state)), strict=True)
        assert all(bool(jnp.any(a != b)) for a, b in moved)
        rule = Implicit(solver, solvers.CG(5, ridge=1e-2))
        algorithm = DoubleLoop(problem, rule, optax.adam(0.1))
        state, info = jax.jit(algorithm.step)(algorithm.init(outer, start), batch)
    assert bool(info.finite)
    assert jax.tree.structure(state.inner) == jax.tree.structure(start)


class Module(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.linear, self.norm = nnx.Linear(4, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)


def test_nnx_statistics_are_no_parameters():
    with pytest.raises(TypeError, match=r"state at .*norm.* \(BatchStat\).*nnx.Param"):
        check_variable("inner", nnx.split(Module())[1])
    check_variable("inner", nnx.split(Module(), nnx.Param, ...)[1])


def test_nnx_random_keys_are_no_parameters():
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))
    with pytest.raises(TypeError, match=r"model's state at .*\(RngCount\).*nnx.split"):
        check_variable("inner", nnx.split(dropout)[1])


def test_linen_collections_are_no_parameters():
    variables = linen.BatchNorm(use_running_average=False).init(jax.random.key(0), jnp.ones((2, 3)))
    with pytest.raises(TypeError, match=r'\("batch_stats"\).*mutable=\["batch_stats"\]'):
        check_variable("inner", variables)
    check_variable("inner", variables["params"])


def test_equinox_state_is_no_parameter():
    norm = eqx.nn.make_with_state(eqx.nn.BatchNorm)
    model, state = norm(3, axis_name="batch", mode="batch")
    with pytest.raises(TypeError, match=r"\(State\).*make_with_state"):
        check_variable("inner", (eqx.filter(model, eqx.is_inexact_array), state))


def test_a_bare_key_belongs_in_the_batch():
    with pytest.raises(TypeError, match=r"key<fry>\[\] at `inner\['key'\]`.*with_key=True"):
        check_variable("inner", {"w": jnp.ones(2), "key": jax.random.key(0)})
