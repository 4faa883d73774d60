"""The checks of the lifelong page: rules against the exact one, frozen against moving attacks."""

import jax.numpy as jnp
import numpy as np
import pytest

from applications import lifelong_checks
from applications.components.errors import InputError
from applications.components.models import Model
from applications.components.pixel_ball import Ball
from applications.components.points import Points
from applications.lifelong_checks import Config, run
from applications.rehearsal import gradient_checks
from applications.rehearsal.bilevel_coreset import Pool

pytestmark = pytest.mark.slow


def small_pool():
    """A linear head on random features."""
    rng, count = np.random.default_rng(0), 60
    task = np.arange(count) < count - 3
    return Pool(
        jnp.asarray(rng.normal(size=(count, 4)) / 2),
        jnp.asarray(rng.integers(0, 3, count)),
        jnp.asarray(task, float),
        jnp.asarray(~task, float),
        jnp.asarray(10.0),
        jnp.zeros((1, 3)),
    )


def test_a_converged_rule_is_the_exact_one_and_a_biased_rule_is_not(x64):
    found = gradient_checks.rules(small_pool(), 10)
    cosine, shared = zip(*found.values(), strict=True)
    assert found["CG, 50 steps"] == pytest.approx((1.0, 1.0), abs=1e-6)
    assert all(0 < c <= 1 + 1e-9 for c in cosine) and all(0 <= s <= 1 for s in shared)
    assert found["Hessian-free"][0] < found["CG, 5 steps"][0]


def linear_problem():
    """A linear head on pixels, far from the border of the range."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(0.4, 0.6, (12, 3, 3, 1)))
    ball = Ball(jnp.asarray(0.1), jnp.zeros((1, 1, 1, 1)), jnp.ones((1, 1, 1, 1)))
    head = jnp.asarray(rng.normal(size=(9, 2)))
    apply = lambda variables, x: x.reshape(len(x), -1) @ variables["params"]["head"]
    model = Model("linear", 2, ("head",), lambda key, x: {"params": {"head": head}}, apply)
    return model, {"params": {"head": head}}, ball, Points(x, jnp.arange(12) % 2)


def test_steps_along_signs_have_no_derivative(x64):
    cosine, ratio = gradient_checks.frozen_attacks(*linear_problem(), 3, signed=True)
    assert cosine == pytest.approx(1) and ratio == pytest.approx(1)


def test_steps_along_gradients_move_with_the_head(x64):
    cosine, ratio = gradient_checks.frozen_attacks(*linear_problem(), 1, signed=False)
    assert 0 < cosine < 1 - 1e-6 and ratio != pytest.approx(1)


def test_in_the_corner_of_the_ball_the_attack_is_still(x64):
    """Steps along gradients that are nowhere small end where nothing moves (Danskin)."""
    model, variables, ball, points = linear_problem()
    slopes = jnp.sign(variables["params"]["head"][:, 0])
    still = {"params": {"head": jnp.stack([jnp.zeros(9), slopes], axis=1)}}
    cosine, ratio = gradient_checks.frozen_attacks(model, still, ball, points, 8, signed=False)
    assert cosine == pytest.approx(1) and ratio == pytest.approx(1)


def test_the_page(tmp_path, monkeypatch):
    free = gradient_checks.RULES["Hessian-free"]
    monkeypatch.setattr(gradient_checks, "RULES", {"Hessian-free": free})
    monkeypatch.setattr(lifelong_checks, "FROZEN_STEPS", (1,))
    one_step = {n: lifelong_checks.ONE_STEP[n] for n in ("Fast-AT", "Fast-BAT")}
    monkeypatch.setattr(lifelong_checks, "ONE_STEP", one_step)
    config = Config(output=tmp_path / "out", num_train=200, steps=3, num_test=30, seeds=(0,))
    result = run(config)
    assert -1 <= result.rules["Hessian-free"]["cosine"][0] <= 1
    assert result.frozen["1 steps along signs"]["cosine"] == pytest.approx([1.0], abs=1e-4)
    assert set(result.one_step) == set(one_step)
    assert all(0 <= row["RA"][0] <= row["SA"][0] for row in result.one_step.values())
    assert (tmp_path / "out" / "report.html").exists()


def test_numbers_out_of_range():
    with pytest.raises(InputError, match="`one_step_eps` must be a number > 0, got -1"):
        Config(one_step_eps=-1.0)


def test_classes_that_make_no_pairs(tmp_path):
    rng = np.random.default_rng(0)
    data = {"x_train": rng.uniform(size=(60, 4, 4)), "y_train": np.arange(60) % 3}
    with pytest.raises(InputError, match="must divide the 3 classes"):
        run(Config(output=tmp_path / "out", seeds=(0,)), dataset=data)
    assert not (tmp_path / "out").exists()


def test_cosine():
    assert gradient_checks.cosine(jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0])) == pytest.approx(
        np.sqrt(0.5)
    )
