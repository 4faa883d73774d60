"""What every model of the applications promises beside its shapes."""

import jax
import jax.numpy as jnp
import pytest

from applications.components import networks

SMALL = {
    "mlp": networks.MLP(3, (4,)),
    "small_cnn": networks.SmallCNN(3, (2, 2), 4),
    "resnet9": networks.ResNet9(3, width=2),
    "resnet18": networks.ResNet18(3, width=2),
    "vgg16": networks.VGG16(3, width=2),
}


def test_every_model_is_here():
    assert {*SMALL, "bag"} == set(networks.MODELS)  # the bag has tests of its own


@pytest.mark.parametrize("name", SMALL)
def test_layers_name_all_parameters_and_end_in_the_classifier(name):
    model, x = SMALL[name], jnp.zeros((1, 32, 32, 1))
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    assert len(set(model.layers)) == len(model.layers) and set(model.layers) == set(params)
    assert params[model.layers[-1]]["kernel"].shape[-1] == 3


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_leaves_parameters_and_logits_in_float32(name):
    model, x = SMALL[name].clone(dtype=jnp.bfloat16), jnp.zeros((1, 32, 32, 1))
    logits, params = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves((logits, params)))
    jaxpr = str(jax.make_jaxpr(model.apply)(params, x))
    assert "bf16" in jaxpr


def test_bfloat16_is_near_float32():
    x = jax.random.normal(jax.random.key(0), (5, 8, 8, 1))
    full, half = (networks.MLP(3, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    params = full.init(jax.random.key(1), x)
    gap = jnp.abs(full.apply(params, x) - half.apply(params, x))
    assert 0 < float(jnp.max(gap)) < 0.05
