"""Settings as text and as identity: every number is seen, and nothing that differs by process."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bilevel import SOBA, BilevelProblem, Implicit, Minimize, linear, sharding
from bilevel._describe import describe, differences, render, settings
from bilevel._fingerprint import fingerprint

ROOT = pathlib.Path(__file__).parent.parent
PLAIN = 2.0


def problem(reg=1.0):
    fit = lambda w, data: jnp.mean(w**2)
    return BilevelProblem(lambda x, w, d: fit(w, d), lambda x, w, d: fit(w, d) + reg * jnp.sum(x))


def soba(inner=0.5, linear_rate=0.4, outer=0.01, reg=1.0):
    return SOBA(problem(reg), optax.sgd(inner), optax.sgd(linear_rate), optax.adam(outer))


class Layer(nn.Module):
    width: int = 3

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width)(x)


class Callable:
    """An object of no library, with state of its own."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return self.scale * PLAIN * x


@jax.custom_vjp
def clipped(x):
    return x


clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -1.5, 1.5),))


def calls_itself(n):
    return 1 if n == 0 else calls_itself(n - 1) * int(PLAIN)


# Name: the value, and what its text must show.
SHOWN = {
    "sgd": (optax.sgd(0.5), "chain(identity(), scale(step_size=-0.5))"),
    "adam": (optax.adam(0.05), r"scale_by_adam(b1=0.9, b2=0.999, eps=1e-08"),
    "schedule": (optax.adam(optax.cosine_decay_schedule(0.125, 77)), "decay_steps=77"),
    "own schedule": (optax.sgd(lambda t, scale=0.25: scale / t), "scale=0.25"),
    "injected": (optax.inject_hyperparams(optax.adam)(0.375), "learning_rate=0.375"),
    "groups": (optax.partition({"a": optax.sgd(0.75)}, {"x": "a"}), "step_size=-0.75"),
    "masked": (optax.masked(optax.sgd(0.625), {"a": True}), "step_size=-0.625"),
    "line search": (optax.lbfgs(memory_size=7), "memory_size=7"),
    "lookahead": (optax.lookahead(optax.sgd(0.1), 3, 0.875), "slow_step_size=0.875"),
    "own optimizer": (
        optax.GradientTransformation(lambda p: (), lambda g, s, p=None, rate=0.3: (g, s)),
        "rate=0.3",
    ),
    "partial": (functools.partial(jnp.clip, max=3.5), "partial(function=jit(clip), max=3.5)"),
    "array": (np.zeros((2, 3), np.float32), "float32[2,3]#"),
    "scalar": (jnp.float32(0.5), "float32(0.5)"),
    "dtype": (jnp.bfloat16, "bfloat16"),
    "key": (jax.random.key(3), "key<fry>[]"),
    "shape": (jax.ShapeDtypeStruct((2,), jnp.float32), "float32[2]"),
    "jit": (jax.jit(lambda x, scale=4.5: scale * x), "scale=4.5"),
    "custom_vjp": (clipped, "bwd=<lambda>#"),
    "linen": (Layer(5), "width=5"),
    "equinox": (eqx.nn.Linear(2, 3, key=jax.random.key(0)), "weight=float32[3,2]#"),
    "nnx": (nnx.Linear(2, 3, rngs=nnx.Rngs(0)), "kernel=Param#"),
    "object": (Callable(6.5), "scale=6.5"),
    "method": (Callable(6.5).__call__, "scale=6.5"),
    "set": ({"b", "a"}, "('a', 'b')"),
    "long": (list(range(1000)), "1000 entries #"),
    "circle": (calls_itself, "calls_itself#"),
    "class": (Callable, "Callable#"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_the_text_shows_every_number_and_no_address(name):
    value, part = SHOWN[name]
    assert part in describe(value)
    assert " at 0x" not in describe(value) and " object " not in describe(value)


CHANGES = {
    "inner rate": (soba(), soba(inner=0.6), "inner_optimizer.1.step_size", "-0.5", "-0.6"),
    "outer rate": (soba(), soba(outer=3.0), "1.step_size", "-0.01", "-3.0"),
    "closure": (soba(), soba(reg=3.0), "problem.inner_loss.reg", "1.0", "3.0"),
    "another": (optax.sgd(0.1), optax.adam(0.1), "0", "identity()", "scale_by_adam("),
    "body": (lambda x: x + 1, lambda x: x + 2, "bytecode", "", ""),
    "shape": (np.zeros(2), np.zeros(3), "", "float64[2]#", "float64[3]#"),
    "nnx": (nnx.Param(jnp.zeros(2)), nnx.Param(jnp.ones(2)), "", "float32[2]#", "float32[2]#"),
    "numbers": (np.zeros(2), np.ones(2), "", "float64[2]#", "float64[2]#"),
    "linen": (Layer(5), Layer(6), "width", "5", "6"),
    "field": (linear.CG(5), linear.CG(6), "max_steps", "5", "6"),
    "length": ([1, 2], [1, 2, 3], "", "(1, 2)", "(1, 2, 3)"),
    "entry": ([1, 2], [1, 3], "1", "2", "3"),
    "key": ({"a": 1}, {"b": 1}, "a", "1", "nothing"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found_and_named(name):
    here, there, path, *texts = CHANGES[name]
    found = next(differences(fingerprint(here), fingerprint(there)))
    assert found[0].endswith(path) and found[1] != found[2]
    assert all(text.startswith(start) for text, start in zip(found[1:], texts, strict=True))
    assert not list(differences(fingerprint(here), fingerprint(here)))


def test_swapped_optimizers_are_another_algorithm():
    paths = [path for path, *_ in differences(fingerprint(soba()), fingerprint(soba(0.4, 0.5)))]
    assert paths == ["inner_optimizer.1.step_size", "linear_optimizer.1.step_size"]


def test_globals_that_a_loss_reads_belong_to_it():
    source = "def helper(x): return {0} * x\nREG = {1}\ndef loss(x): return helper(x) + REG"

    def defined(factor, reg):
        names = {"__name__": "user"}
        exec(source.format(factor, reg), names)
        return fingerprint(names["loss"])

    assert defined(2, 1.0) == defined(2, 1.0)
    assert "REG=1.0" in render(defined(2, 1.0))
    assert next(differences(defined(2, 1.0), defined(2, 3.0))) == ("globals.REG", "1.0", "3.0")
    assert next(differences(defined(2, 1.0), defined(5, 1.0)))[0] == "globals.helper.bytecode"


def test_methods_of_a_user_belong_to_an_object():
    def made(factor):
        class Model:
            def __call__(self, x):
                return factor * x

        return fingerprint(Model())

    assert made(2) == made(2) != made(3)


@settings
class Settings:
    rate: float
    optimizer: optax.GradientTransformation = optax.sgd(0.5)


def test_settings_are_frozen_dataclasses_that_print_every_number():
    value = Settings(0.1)
    assert repr(value) == "Settings(rate=0.1, optimizer=chain(identity(), scale(step_size=-0.5)))"
    assert value == Settings(0.1) and hash(value) == hash(Settings(0.1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.rate = 0.2
    printed = []
    jax.jit(lambda rate: printed.append(repr(Settings(rate))))(0.5)
    assert printed[0].startswith("Settings(rate=traced float32[]")


def test_equal_in_every_process():
    names = list(SHOWN)
    code = (
        "from tests.test_describe import *\nimport json\n"
        f"print(json.dumps([fingerprint(SHOWN[n][0]) for n in {names}] + [fingerprint(soba())]))"
    )
    texts = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1] and "0x" not in texts[0]


def test_implicit_prints_its_rate():
    assert "step_size=-0.1" in describe(Implicit(Minimize(optax.sgd(0.1), 5)))


class Cached:
    def __init__(self, number):
        self.number = number

    @functools.cached_property
    def double(self):
        return 2 * self.number


def test_use_changes_no_identity():
    """What an object works out and keeps once it is asked, as a mesh does, is no setting of it."""
    mesh = sharding.data_mesh()
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    values = Cached(3), mesh, split
    before = fingerprint(values)
    assert values[0].double == 6 and "double" in vars(values[0])
    jax.jit(lambda x: jax.lax.with_sharding_constraint(x, split))(jnp.ones(8))
    assert fingerprint(values) == before
    other = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    assert fingerprint(other) != fingerprint(split)
