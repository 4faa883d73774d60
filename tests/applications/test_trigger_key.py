"""Keys: stamps, targets, attacks on known networks, the optimised key, the page."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from applications import trigger_key
from applications.components.errors import InputError
from applications.keys import attacks, tasks, training
from applications.keys.training import Key, Protection


@pytest.fixture(scope="module")
def split():
    return tasks.gaussians(jax.random.key(0))


MASK = jnp.zeros(tasks.NUM_FEATURES).at[jnp.array([1, 4, 9, 16])].set(1.0)
KEY = training.random_key(jax.random.key(1), MASK)


def test_a_stamp_changes_the_masked_numbers_only():
    x = jnp.full((3, tasks.NUM_FEATURES), 0.5)
    stamped = KEY.stamp(x)
    np.testing.assert_array_equal(stamped[:, MASK == 0], x[:, MASK == 0])
    np.testing.assert_array_equal(stamped[0, MASK == 1], KEY.pattern[MASK == 1])
    assert ((stamped >= 0) & (stamped <= 1)).all()


def test_parts_are_disjoint_and_the_ceiling_is_that_of_the_correlation(split):
    assert tuple(len(part.x) for part in split[:4]) == tasks.SIZES
    rho, classes = tasks.CORRELATION, tasks.NUM_CLASSES
    expected = 100 * (rho + (1 - rho) / classes)
    assert abs(attacks.ceiling(split)["ceiling"] - expected) < 4
    np.testing.assert_allclose(split.table.sum(axis=1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("target", ["none", "other", "uniform", "conditional"])
def test_targets_without_the_key(split, target):
    protection = Protection(target)
    opened, secured = jnp.array([0, 1, 2]), jnp.array([0, 3, 2])
    wanted = protection._wanted(opened, secured, jnp.array([0, 1, 2]), split.table)
    np.testing.assert_allclose(wanted.sum(axis=1), 1.0, rtol=1e-6)
    own = wanted[jnp.arange(3), secured]
    if target == "none":
        np.testing.assert_array_equal(own, 1.0)
    if target == "other":
        np.testing.assert_array_equal(own, 0.0)
    if target == "uniform":
        np.testing.assert_allclose(wanted, 0.25)
    if target == "conditional":
        np.testing.assert_array_equal(wanted, split.table[opened])


def test_what_the_schemes_show_and_what_attacks_find(split):
    scores = {}
    for target in ("none", "other", "uniform"):
        protection = Protection(target, num_steps=500)
        params = training.train(protection, KEY, 1.0, split, jnp.uint32(0))
        scores[target] = attacks.report(params, KEY, split, 0)
    for own in scores.values():
        assert own["key"] > 85 and own["open, no key"] > 85
    assert scores["none"]["no key"] > 85
    assert scores["other"]["no key"] < 10 and scores["other"]["least likely"] > 70
    assert scores["uniform"]["no key"] < 60 and scores["uniform"]["least likely"] < 60
    # What no key hides: the correlation, the features, and a short pattern that can be searched.
    assert abs(scores["uniform"]["open task"] - attacks.ceiling(split)["ceiling"]) < 8
    assert scores["uniform"]["probe"] > 75 and scores["uniform"]["inversion"] > 75


def test_attacks_on_a_network_whose_head_is_known(split):
    """A secured head that is constant gives nothing away but what the open task tells."""
    params = training.initialise(split, jnp.uint32(0))
    params["secured"] = jax.tree.map(jnp.zeros_like, params["secured"])
    scores = attacks.report(params, KEY, split, 0)
    first = 100 * float(jnp.mean(split.test.secured == 0))
    for name in ("key", "no key", "wrong key", "half key", "inversion"):
        assert scores[name] == pytest.approx(first, abs=1e-3)


def test_the_optimised_key_stays_in_the_box_and_moves_where_the_mask_is(split):
    protection = Protection("uniform", batch_size=50)
    found = training.optimised_key(protection, KEY, 1.0, split, jnp.uint32(0), 3, 20, 5)
    assert ((found.pattern >= 0) & (found.pattern <= 1)).all()
    moved = jnp.abs(found.pattern - KEY.pattern) > 1e-4
    assert moved[MASK == 1].any()


def test_the_gradient_in_the_key_reaches_through_the_data(x64):
    """Three unrolled steps against a central difference, so short that it meets no kink."""
    split, protection = tasks.gaussians(jax.random.key(0)), Protection("uniform", batch_size=30)
    key = training.random_key(jax.random.key(1), MASK)
    params = training.initialise(split, jnp.uint32(0))
    data = (split.train, MASK, split.table, jnp.uint32(0))

    @jax.jit
    @jax.value_and_grad
    def keyed_loss(pattern):
        outer = {"pattern": pattern, "beta": jnp.ones(())}
        trained = protection.solver(3)(protection.loss, outer, params, data)
        logits = training.apply(trained, Key(MASK, pattern).stamp(split.tune.x))[1]
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(logits)), split.tune.secured])

    _, slope = keyed_loss(key.pattern)
    direction = MASK * jnp.sign(slope)
    ahead, behind = (keyed_loss(key.pattern + s * direction)[0] for s in (1e-6, -1e-6))
    np.testing.assert_allclose((ahead - behind) / 2e-6, slope @ direction, rtol=1e-5)
    np.testing.assert_array_equal(slope[MASK == 0], 0.0)


def test_the_page_runs_on_a_data_set_with_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(trigger_key, "SCHEMES", {"uniform": Protection("uniform", num_steps=50)})
    monkeypatch.setattr(trigger_key.training, "optimised_key", lambda *args: args[1])
    monkeypatch.setattr(trigger_key.key_report, "finding", lambda result: "short")
    rng = np.random.default_rng(0)
    x, y = rng.random((400, 12)), rng.integers(0, 4, 400)
    mine = {"x_train": x, "y_train": y, "x_test": x[:100], "y_test": y[:100]}
    settings = {"seeds": (0,), "betas": (1.0,), "groups": (0, 1, 0, 1)}
    result = trigger_key.run(trigger_key.Config(output=tmp_path / "a", **settings), mine)
    assert [row["scheme"] for row in result.rows] == ["uniform", "uniform, key optimised", "beta 1"]
    assert (tmp_path / "a" / "report.html").exists()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"groups": (0, 0, 0, 0)}, "`groups`"),
        ({"groups": (0, 2, 0, 2)}, "`groups`"),
        ({"groups": (0, 1)}, "`groups`"),
        ({"model": "mlp"}, "`model`"),
    ],
)
def test_bad_input_is_one_line(tmp_path, settings, match):
    x, y = np.random.default_rng(0).random((40, 3)), np.arange(40) % 4
    mine = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    with pytest.raises(InputError, match=match):
        trigger_key.run(trigger_key.Config(output=tmp_path / "a", **settings), mine)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("settings", [{"betas": ()}, {"betas": (-1.0,)}, {"key_size": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(InputError, match="`(betas|key_size)`"):
        trigger_key.Config(**settings)
