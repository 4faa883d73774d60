"""Attribution: scores against finite differences of retrainings, the LDS, the page."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from applications import attribution
from applications.attributing.banks import DESIGNS, Bank, mean_weight, subsets
from applications.attributing.methods import Influence, Metagradient, Projected, Study, _factors
from applications.attributing.networks import SMOOTH, SmoothMLP
from applications.attributing.training import Recipe, Start, Training
from applications.components.data import from_arrays
from applications.components.errors import InputError, NonFiniteError
from applications.components.models import make
from applications.components.training import initialise

pytestmark = pytest.mark.slow

SIZE = 40


def small_data(shape=(5,)):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SIZE + 20, *shape)).astype(np.float32)
    y = (x.reshape(len(x), -1)[:, :3]).argmax(axis=1)
    return dict(x_train=x[:SIZE], y_train=y[:SIZE], x_test=x[SIZE:], y_test=y[SIZE:])


def study(name="smooth_mlp", shape=(5,), **recipe):
    dataset = from_arrays(**small_data(shape))
    model = make(SMOOTH.get(name, name), dataset)
    points = dataset.train.on_device()
    start = Start(points, initialise(model, points.x, jax.random.key(0)), jax.random.key(1))
    settings = {"num_steps": 30, "batch_size": 8, "learning_rate": 0.05} | recipe
    training = Training(model, Recipe(**settings))
    return Study(training, start, dataset.test.at(slice(3)).on_device(), 1.0)


@pytest.mark.parametrize("adam", [False, True])
def test_the_metagradient_is_the_derivative_of_retraining(adam):
    asked = study(adam=adam, learning_rate=0.003 if adam else 0.05)
    scores = np.asarray(Metagradient().scores(asked))
    rng = np.random.default_rng(1)
    directions = rng.choice([-1.0, 1.0], (4, SIZE)).astype(np.float32)
    rows = np.concatenate([1 + 0.01 * directions, 1 - 0.01 * directions])
    retrain = lambda: np.asarray(
        asked.training.retrained(asked.start, jnp.asarray(rows), asked.queries)
    )
    losses = retrain()
    np.testing.assert_array_equal(losses, retrain())
    up, down = np.split(losses, 2)
    np.testing.assert_allclose(directions @ scores.T, (up - down) / 0.02, rtol=0.05, atol=2e-3)


def test_the_last_steps_are_all_steps_where_there_are_no_more():
    asked = study()
    whole, last = (Metagradient(last=last).scores(asked) for last in (0, 30))
    np.testing.assert_allclose(last, whole, rtol=1e-4, atol=1e-7)


def test_influence_is_its_formula():
    """Against dense matrices, for softmax regression: `-g_q' (G + ridge I)^-1 g_i / n`."""
    asked = study(lambda num_classes: SmoothMLP(num_classes, hidden=()))
    variables, points = asked.trained(), asked.start.points
    flat, unravel = ravel_pytree(variables["params"])
    logits = lambda p, x: asked.training.logits(asked.start, unravel(p), x)
    losses = lambda p, points: asked.training.losses(asked.start, unravel(p), points)
    slopes, query_slopes = (jax.jacrev(losses)(flat, part) for part in (points, asked.queries))
    jacobians, probabilities = (
        jax.jacrev(logits)(flat, points.x),
        jax.nn.softmax(logits(flat, points.x)),
    )
    spreads = jax.vmap(lambda p: jnp.diag(p) - jnp.outer(p, p))(probabilities)
    curvature = jnp.einsum("nka,nkl,nlb->ab", jacobians, spreads, jacobians) / SIZE
    expected = (
        -query_slopes @ jnp.linalg.solve(curvature + 0.1 * jnp.eye(flat.size), slopes.T) / SIZE
    )
    for kind in ("CG", "Nystrom"):
        found = Influence(kind, 0.1).scores(asked)
        np.testing.assert_allclose(found, expected, rtol=2e-2, atol=1e-4)
    plain = Influence("one step").scores(asked)
    np.testing.assert_allclose(plain, -query_slopes @ slopes.T / SIZE, rtol=1e-3, atol=1e-6)
    for method in (Influence("EKFAC", 0.1), Projected(64, 0.1)):
        scores = np.asarray(method.scores(asked))
        assert np.corrcoef(scores.ravel(), expected.ravel())[0, 1] > 0.5


@pytest.mark.parametrize(
    ("name", "shape", "layers"),
    [
        ("smooth_mlp", (5,), {"Dense_0", "Dense_1"}),
        ("smooth_cnn", (8, 8, 1), {"Conv_0", "Conv_1", "Dense_0"}),
    ],
)
def test_every_layer_is_seen(name, shape, layers):
    asked = study(name, shape)
    factors = _factors(asked, asked.start.variables)
    assert set(factors.layers) == layers and not factors.diagonal


def test_the_score_is_a_rank_correlation():
    rng = np.random.default_rng(0)
    weights = subsets("half", 12, 30, rng)
    scores = rng.normal(size=(2, 30))
    right = Bank(weights, np.exp(weights @ scores.T))
    np.testing.assert_allclose(right.lds(scores), 1.0)
    np.testing.assert_allclose(right.lds(-scores), -1.0)
    np.testing.assert_allclose(right.lds(np.zeros((2, 30))), 0.0)


@pytest.mark.parametrize("design", DESIGNS)
def test_subsets_have_their_share_and_mean(design):
    weights = subsets(design, 5, 30, np.random.default_rng(0))
    share, low, high = DESIGNS[design]
    assert np.all((weights == low).sum(axis=1) == round(share * 30))
    assert set(np.unique(weights)) == {low, high}
    np.testing.assert_allclose(weights.mean(), mean_weight(design), rtol=1e-6)


SETTINGS = dict(num_train=None, num_steps=12, batch_size=8, bank_size=5, num_queries=3, seeds=(0,))


def test_the_page_keeps_its_banks(tmp_path, monkeypatch):
    config = attribution.Config(output=tmp_path / "a", **SETTINGS)
    result = attribution.run(config, small_data())
    assert len(result.rows) == 2 * 8 and set(result.designs) == {"half", "drop"}
    assert all(row.lds.shape == (3,) for row in result.rows)
    assert len(result.labels) == 8 and all(0 <= s[0] <= 1 for s in result.labels.values())
    written = json.loads((tmp_path / "a" / "result.json").read_text())
    assert len(written["rows"]) == 16
    arrays = np.load(tmp_path / "a" / "result.npz")
    assert arrays["half, metagradient, seed 0"].shape == (3, SIZE)
    assert (tmp_path / "a" / "report.html").exists()
    monkeypatch.setattr(Training, "retrained", lambda *_: pytest.fail("the bank was not kept"))
    again = attribution.Config(output=tmp_path / "a", resume=True, **SETTINGS)
    assert attribution.run(again, small_data()).lds("metagradient", "half") == result.lds(
        "metagradient", "half"
    )


ERRORS = {
    "designs": ({"designs": ("quarter",)}, "`designs` must be of half, double, drop"),
    "bank": ({"bank_size": 2}, "`bank_size` must be an integer >= 5"),
    "labels": ({"wrong_labels": 1.0}, r"`wrong_labels` must be in \[0, 1\)"),
    "steps": ({"num_steps": 0}, "`num_steps` must be a number > 0"),
    "queries": ({"num_queries": 20}, "`num_queries` must be less than the number of points"),
    "batch": ({"batch_size": 100}, "`batch_size` must not exceed the number of training points"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, tmp_path):
    change, message = ERRORS[name]
    with pytest.raises(InputError, match=message):
        attribution.run(
            attribution.Config(output=tmp_path / "a", **(SETTINGS | change)), small_data()
        )


def test_a_model_in_training_is_refused(tmp_path):
    import flax.linen as nn

    class Dropping(nn.Module):
        num_classes: int

        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(self.num_classes)(nn.Dropout(0.5, deterministic=not train)(x))

    with pytest.raises(InputError, match="has statistics or dropout"):
        attribution.run(
            attribution.Config(output=tmp_path / "a", **SETTINGS), small_data(), Dropping
        )


def test_a_training_that_diverges_is_told(tmp_path):
    config = attribution.Config(output=tmp_path / "a", learning_rate=1e30, **SETTINGS)
    with pytest.raises(NonFiniteError, match="Lower `learning_rate`"):
        attribution.run(config, small_data())
