"""Models of three frameworks as pure functions: their layers, features, dropout and statistics."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from applications.components import models, networks
from applications.components.data import from_arrays
from applications.components.errors import InputError
from applications.components.training import Recipe, train


class LinenNet(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(self.num_classes, name="a_head")(x)


class NNXNet(nnx.Module):
    def __init__(self, num_classes, input_shape, rngs):
        self.hidden = nnx.Linear(*input_shape, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.a_head = nnx.Linear(8, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.a_head(self.drop(nnx.relu(self.norm(self.hidden(x)))))


class EquinoxNet(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    a_head: eqx.nn.Linear

    def __init__(self, num_classes, input_shape, key):
        first, last = jax.random.split(key)
        self.hidden = eqx.nn.Linear(*input_shape, 8, key=first)
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="batch")
        self.drop = eqx.nn.Dropout(0.5)
        self.a_head = eqx.nn.Linear(8, num_classes, key=last)

    def __call__(self, x, state, key=None):
        x, state = self.norm(self.hidden(x), state)
        return self.a_head(self.drop(jax.nn.relu(x), key=key)), state


def equinox_mlp(num_classes, input_shape, key):
    return eqx.nn.MLP(*input_shape, num_classes, 8, 1, key=key)


def points():
    rng = np.random.default_rng(0)
    y = np.arange(40) % 3
    return from_arrays(rng.normal(size=(40, 5)) + y[:, None], y)


NETS = {"linen": LinenNet, "nnx": NNXNet, "equinox": EquinoxNet, "equinox mlp": equinox_mlp}


@pytest.mark.parametrize("name", NETS)
def test_training_moves_what_it_should(name):
    dataset = points()
    model = models.make(NETS[name], dataset)
    assert models.make(NETS[name], dataset) is model  # so that programs are shared
    there = dataset.train.on_device()
    start = model.init(jax.random.key(0), there.x)
    assert set(start["params"]) == set(model.layers)
    recipe = Recipe(5, batch_size=8, learning_rate=0.05)
    rows = jnp.arange(len(there.y))
    end = train(model, recipe, start, there, rows, jax.random.key(1))
    assert jax.tree.structure(end) == jax.tree.structure(start)
    before, after = model.apply(start, there.x), model.apply(end, there.x)
    right = lambda logits: float(jnp.mean(jnp.argmax(logits, axis=1) == there.y))
    assert before.shape == (len(there.y), 3) and right(after) > right(before)
    statistics = [k for k in start if k != "params"]
    assert bool(statistics) == (name != "equinox mlp") and model.step is not None
    for one in statistics:
        gap = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), start[one], end[one])
        assert max(jax.tree.leaves(gap)) > 0
    # As a finished model it is deterministic, point by point, and statistics have no gradient.
    np.testing.assert_allclose(after[:3], model.apply(end, there.x[:3]), rtol=1e-4, atol=1e-5)
    grads = jax.grad(lambda v: model.apply(v, there.x).sum())(end)
    for one in statistics:
        assert all(float(jnp.abs(a).max()) == 0 for a in jax.tree.leaves(grads[one]))


@pytest.mark.parametrize("name", NETS)
def test_features_are_what_the_classifier_sees(name):
    dataset = points()
    model = models.make(NETS[name], dataset)
    variables = model.init(jax.random.key(0), dataset.train.x)
    head = variables["params"][model.layers[-1]]
    kernel = head["kernel"] if "kernel" in head else head["weight"].T
    logits = model.apply(variables, dataset.train.x)
    features = model.features(variables, dataset.train.x)
    np.testing.assert_allclose(features @ kernel + head["bias"][None], logits, rtol=1e-4, atol=1e-5)


def test_the_models_of_the_house_fit_points_of_every_kind():
    vectors = points()
    assert models.make("auto", vectors).name == "MLP"
    images = from_arrays(np.zeros((20, 20, 20), np.uint8), np.arange(20) % 2)
    assert models.make("auto", images).name == "SmallCNN"
    tokens = from_arrays(np.arange(60).reshape(20, 3), np.arange(20) % 2)
    bag = models.make("auto", tokens)
    assert bag.name == "Bag" and tokens.kind == "tokens"
    variables = bag.init(jax.random.key(0), tokens.train.x)
    assert bag.apply(variables, tokens.train.x).shape == (len(tokens.train.y), 2)


def untouched(num_classes):
    return networks.MLP(num_classes + 1)


BAD = {
    "unknown": ("resnet", "`model` must be one of auto, mlp"),
    "no module": ("nowhere.at.all:Net", "`model` 'nowhere.at.all:Net' cannot be loaded"),
    "no name": ("applications:Net", "cannot be loaded: module 'applications' has no attribute"),
    "an instance": (lambda: eqx.nn.Identity(), "must take `rngs` .NNX., `key` .Equinox., or make"),
    "classes": (untouched, r"to 3 logits, one for each class; 2 points gave shape \(2, 4\)"),
    "shape": (networks.VGG16, "cannot be built for points of shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_models_that_cannot_be(name):
    spec, message = BAD[name]
    with pytest.raises(InputError, match=message):
        models.make(spec, points())
