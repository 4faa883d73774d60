"""Every unlearning method by the property that defines it, on two blobs of 40 points."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bilevel
from applications.components import curvature, models, networks
from applications.components.data import from_arrays
from applications.components.errors import InputError
from applications.components.points import Points
from applications.components.training import Recipe, cross_entropy, logits
from applications.unlearning import sparse
from applications.unlearning.ascent import SCRUB, GradientAscent, NegGradPlus, divergence
from applications.unlearning.batches import cycled
from applications.unlearning.influence import (
    FisherForgetting,
    Influence,
    WoodFisher,
    removal_gradient,
    woodbury_solve,
)
from applications.unlearning.layers import CFk, EUk
from applications.unlearning.methods import FineTune, Task, retained, unlearn
from applications.unlearning.relabel import (
    BoundaryExpand,
    BoundaryShrink,
    RandomLabels,
    SalUn,
    largest_share,
)
from applications.unlearning.sparse import L1Sparse, magnitude_mask, sparsity_of
from applications.unlearning.zoo import DEFAULTS, NAMES, all_methods

RECIPE = Recipe(4, batch_size=10, learning_rate=0.05, schedule="constant")
KEY = jax.random.key(7)
METHODS = all_methods(RECIPE)


@functools.cache
def task():
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    x = rng.normal(size=(40, 2, 2, 1)) + 1.5 * y[:, None, None, None]
    points = Points(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32))
    forget = np.array([0, 3, 5, 8, 11, 20], np.int32)
    dataset = from_arrays(np.asarray(points.x), y, np.asarray(points.x), y)
    dense = Task(models.make(networks.MLP(2, (4,)), dataset), RECIPE, RECIPE, points)
    original = dense.fit(dense.every, jax.random.key(0))
    # A mask of ones, so that the tests of pruned models share the compiled programs.
    mask = jax.tree.map(jnp.ones_like, original)
    return dense.replace(original=original, mask=mask).forgetting(forget)


def linear_task():
    """The same points, and a model without hidden layers."""
    dataset = from_arrays(*map(np.asarray, task().points), *map(np.asarray, task().points))
    return task().replace(model=models.make(networks.MLP(2, ()), dataset))


def run(method, **changes):
    return unlearn(method, task().replace(**changes), KEY)


@jax.jit
def losses(params, rows):
    points = task().points
    return cross_entropy(logits(task().model, params, points.x[rows]), points.y[rows])


def vector(params):
    return ravel_pytree(params)[0]


def equal(a, b):
    return bool(jnp.all(vector(a) == vector(b)))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_structure_and_pruned_weights_at_zero(name):
    mask = magnitude_mask(task().original, 0.5)
    original = jax.tree.map(jnp.multiply, task().original, mask)
    params = run(METHODS[name], original=original, mask=mask)
    assert jax.tree.structure(params) == jax.tree.structure(original)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(
        lambda a: (a.shape, a.dtype), original
    )
    assert bool(jnp.all(jnp.isfinite(vector(params))))
    assert equal(params, original) == (name == "none")
    assert float(jnp.max(jnp.abs(vector(params) * (1 - vector(mask))))) == 0.0


def test_ascent_raises_the_loss_of_the_forget_set():
    before = jnp.mean(losses(task().original, task().forget))
    for method in (GradientAscent(RECIPE), NegGradPlus(RECIPE, 0.5)):
        assert jnp.mean(losses(run(method), task().forget)) > before + 0.01, method


def test_scrub_leaves_its_teacher_on_the_forget_set():
    x = task().points.x[task().forget]
    teacher, *students = (
        logits(task().model, params, x)
        for params in (task().original, run(SCRUB(RECIPE, 0)), run(SCRUB(RECIPE, 4)))
    )
    follows, leaves = (float(jnp.mean(divergence(teacher, s))) for s in students)
    assert leaves > 1.5 * follows


def test_what_ascent_is_without_ascent():
    """Both limits descend on the points to retain alone: poisoned points change nothing."""
    poisoned = task().points._replace(x=task().points.x.at[task().forget].set(1e3))
    for method in (NegGradPlus(RECIPE, 1.0), SCRUB(RECIPE, num_max=0)):
        assert equal(run(method), run(method, points=poisoned))
        after, before = (losses(p, task().retain) for p in (run(method), task().original))
        assert jnp.mean(after) < jnp.mean(before)


def test_divergence_is_that_of_softmaxes():
    teacher, student = jax.random.normal(KEY, (2, 5, 3))
    assert float(jnp.max(jnp.abs(divergence(teacher, teacher, 4.0)))) < 1e-5
    p, q = (np.asarray(jax.nn.softmax(a / 2)) for a in (teacher, student))
    np.testing.assert_allclose(
        divergence(teacher, student, 2.0), 4 * np.sum(p * np.log(p / q), axis=1), rtol=1e-4
    )


def test_cycled_batches_hold_every_row_equally_often():
    counts = np.bincount(np.asarray(cycled(KEY, jnp.arange(6), 5, 4)).ravel())
    assert counts.sum() == 20 and counts.min() == 3 and counts.max() == 4


def test_random_labels_are_drawn_for_the_forget_set_alone():
    """With the forget set's labels poisoned, nothing changes: they are never looked at."""
    labels = task().points.y.at[task().forget].set(1 - task().points.y[task().forget])
    changed = task().points._replace(y=labels)
    assert equal(run(RandomLabels(RECIPE)), run(RandomLabels(RECIPE), points=changed))


def test_salun_moves_the_salient_half_and_is_random_labels_at_one():
    method = SalUn(RECIPE, 0.5)
    saliency = vector(method.saliency(task()))
    moved = vector(run(method)) != vector(task().original)
    assert int(jnp.sum(moved)) == moved.size // 2
    assert float(jnp.min(saliency[moved])) >= float(jnp.max(saliency[~moved]))
    assert equal(run(SalUn(RECIPE, 1.0)), run(RandomLabels(RECIPE)))


def test_boundary_shrink_finds_another_class_and_moves_towards_it():
    linear = linear_task()
    x, y = task().points.x[task().forget], task().points.y[task().forget]
    params = linear.model.init(KEY, x)
    far, near = (BoundaryShrink(RECIPE, bound) for bound in (50.0, 0.0))
    assert far.nearest_class(linear.model, params, x, y).tolist() == (1 - y).tolist()
    own = jnp.argmax(logits(linear.model, params, x), axis=-1)
    assert near.nearest_class(linear.model, params, x, y).tolist() == own.tolist()
    method = BoundaryShrink(RECIPE)
    labels = method.nearest_class(task().model, task().original, x, y)
    before, after = (
        jnp.mean(cross_entropy(logits(task().model, p, x), labels))
        for p in (task().original, run(method))
    )
    assert jnp.any(labels != y) and after < before


def test_boundary_expand_takes_the_new_class_away_again():
    """Points that go to the new class lose their own: the true class gets less probable."""
    params = run(BoundaryExpand(dataclasses.replace(RECIPE, num_epochs=40)))
    assert params["params"]["Dense_1"]["kernel"].shape == (4, 2)
    before, after = (losses(p, task().forget) for p in (task().original, params))
    assert jnp.mean(after) > jnp.mean(before)


def test_last_layers_alone_move_and_all_layers_are_the_full_method():
    for method in (EUk(RECIPE), CFk(RECIPE)):
        params = run(method)["params"]
        assert equal(params["Dense_0"], task().original["params"]["Dense_0"])
        assert not equal(params["Dense_1"], task().original["params"]["Dense_1"])
    # Re-initialised once, not in every epoch: then this would not be Retrain.
    again = task().fit(task().retain, KEY)
    assert equal(run(EUk(RECIPE, 2)), again)
    assert equal(run(CFk(RECIPE, 2)), run(FineTune(RECIPE)))
    with pytest.raises(InputError, match="`num_layers` must not exceed the 2 layers"):
        run(CFk(RECIPE, 3))


def test_l1_shrinks_and_soft_thresholds_leave_zeros():
    norms = [float(sparse.l1_norm(run(L1Sparse(RECIPE, a)))) for a in (0.0, 0.03, 0.1)]
    assert norms[0] > norms[1] > norms[2]
    assert sparsity_of(run(L1Sparse(RECIPE, 0.1))) == 0.0
    assert sparsity_of(run(L1Sparse(RECIPE, 3.0, proximal=True))) > 0.1
    tree = {"a": jnp.array([-0.5, 0.1, 2.0])}
    np.testing.assert_allclose(
        sparse.soft_threshold(tree, jnp.float32(0.2))["a"], [-0.3, 0.0, 1.8], rtol=1e-6
    )


def test_magnitude_pruning_keeps_the_largest_weights_and_all_biases():
    params, mask = sparse.prune_and_fit(task().replace(mask=None), KEY, 0.75)
    kept = [m for m in jax.tree.leaves(mask) if m.ndim > 1]
    assert sum(int(jnp.sum(m)) for m in kept) == 6  # of 24
    assert all(bool(jnp.all(m == 1)) for m in jax.tree.leaves(mask) if m.ndim == 1)
    assert sparsity_of(params) == 0.75
    tree = {"w": jnp.array([[3.0, -1.0], [0.5, -2.0]]), "b": jnp.zeros(2)}
    assert magnitude_mask(tree, 0.5)["w"].tolist() == [[1, 0], [0, 1]]
    assert largest_share([jnp.array([1.0, 5.0, 2.0])], 1 / 3)[0].tolist() == [0, 1, 0]


@functools.partial(jax.jit, static_argnames="model")
def trained_to_the_end(model, params, points, weight, ridge):
    """The minimiser of `sum_i weight_i l_i + ridge / 2 ||theta||^2`, by Newton's method."""
    start, unravel = ravel_pytree(params)

    def objective(flat):
        values = cross_entropy(logits(model, unravel(flat), points.x), points.y)
        return weight @ values + ridge / 2 * flat @ flat

    step = lambda flat, _: (
        flat - jnp.linalg.solve(jax.hessian(objective)(flat), jax.grad(objective)(flat)),
        None,
    )
    return unravel(jax.lax.scan(step, start * 0, None, 30)[0])


def test_influence_is_retraining_to_first_order(x64):
    """On a regularised softmax regression the error falls with the square of the set's size."""
    model, ridge, rng = networks.MLP(3, (), jnp.float64), 0.05, np.random.default_rng(1)
    points = Points(jnp.asarray(rng.normal(size=(60, 2, 1, 1))), jnp.arange(60) % 3)
    params = jax.tree.map(lambda a: a.astype(jnp.float64), model.init(KEY, points.x[:1]))
    original = trained_to_the_end(model, params, points, jnp.full(60, 1 / 60), ridge)
    errors = []
    method = Influence(ridge, tolerance=1e-10, chunk=7)
    for size in (3, 12):
        # Of one class only, so that the sets pull in one direction and sizes can be compared.
        forget = np.arange(0, 3 * size, 3).astype(np.int32)
        retain = retained(forget, 60)
        weight = jnp.zeros(60).at[retain].set(1 / len(retain))
        exact = vector(trained_to_the_end(model, params, points, weight, ridge))
        case = Task(model, RECIPE, RECIPE, points, original).forgetting(forget)
        solution = jax.jit(method.solve)(case, KEY)
        assert bool(solution.info.converged)
        errors.append(jnp.linalg.norm(vector(original) + vector(solution.value) - exact))
        assert errors[-1] < 0.5 * jnp.linalg.norm(exact - vector(original))
    assert 8 < errors[1] / errors[0] < 32  # 16 at second order


def test_influence_of_some_points_solves_with_their_curvature():
    method = Influence(0.3, tolerance=1e-5, num_points=10)
    rows = jax.random.permutation(KEY, 40)[:10]
    some = Points(task().points.x[rows], task().points.y[rows])

    @jax.jit
    def both_sides():
        value = method.solve(task(), KEY).value
        weight = jnp.full(10, 0.1)
        image = curvature.gauss_newton_product(task().model, task().original, some, weight, value)
        return vector(image) + 0.3 * vector(value), vector(removal_gradient(task()))

    found, expected = both_sides()
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(jnp.linalg.norm(expected)))


def test_curvature_products():
    """Chunks do not matter; where the logits are linear, Gauss-Newton is the Hessian."""
    model, points = networks.MLP(2, ()), task().points
    params = model.init(KEY, points.x)
    weight = jax.random.uniform(KEY, (40,))
    direction = jax.tree.map(jnp.cos, params)
    example = lambda p, z: cross_entropy(logits(model, p, z[0][None]), z[1][None])[0]

    def gradient(params):
        objective = lambda p: weight @ cross_entropy(logits(model, p, points.x), points.y)
        return vector(jax.grad(objective)(params))

    def everything():
        args = model, params, points
        hvp = jax.jvp(gradient, (params,), (direction,))[1]
        return {
            "gradient": (gradient(params), weight @ curvature.example_gradients(*args)),
            "gauss-newton": (
                hvp,
                vector(curvature.gauss_newton_product(*args, weight, direction, chunk=16)),
            ),
            "hessian": (
                hvp,
                vector(curvature.hessian_product(*args, weight, direction, chunk=16)),
            ),
            "fisher": (
                vector(bilevel.linear.fisher_diagonal(example, params, points)),
                vector(curvature.squared_gradients(*args, chunk=16)),
            ),
        }

    for name, (expected, found) in jax.jit(everything)().items():
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_woodbury_is_the_recursion_of_wood_fisher():
    rng = np.random.default_rng(0)
    gradients, rhs, ridge = rng.normal(size=(6, 9)), rng.normal(size=9), 0.3
    inverse = np.eye(9) / ridge
    for g in gradients:  # Singh and Alistarh, equation 13
        image = inverse @ g
        inverse -= np.outer(image, image) / (6 + g @ image)
    found = woodbury_solve(jnp.asarray(gradients), jnp.asarray(rhs), ridge)
    np.testing.assert_allclose(found, inverse @ rhs, rtol=1e-4, atol=1e-5)


def test_removal_gradient_is_that_of_the_change_of_weights():
    mean = jax.jit(jax.grad(lambda p, rows: jnp.mean(losses(p, rows))))
    mean = functools.partial(mean, task().original)
    every = vector(mean(jnp.arange(40)))
    change = every - vector(mean(task().retain))  # mean over all, minus mean over those to retain
    found = vector(jax.jit(removal_gradient, static_argnums=1)(task(), 7))
    np.testing.assert_allclose(found, change, rtol=1e-4, atol=1e-6)


def test_fisher_noise_is_capped_and_larger_in_the_last_layer():
    method = FisherForgetting(alpha=1e-8, largest=1e-3)
    deviation = method.deviation(task())["params"]
    fisher = curvature.squared_gradients(
        task().model,
        task().original,
        Points(task().points.x[task().retain], task().points.y[task().retain]),
    )["params"]
    for layer, factor in (("Dense_0", 1.0), ("Dense_1", 10.0)):
        expected = factor * np.minimum(np.sqrt(1e-8 / vector(fisher[layer])), 1e-3)
        np.testing.assert_allclose(vector(deviation[layer]), expected, rtol=1e-5)
    more = vector(FisherForgetting(alpha=1e-6, largest=1.0).deviation(task()))
    assert bool(jnp.all(more >= vector(deviation)))


def test_every_method_but_retrain_and_none_has_a_strength():
    assert NAMES[0] == "Retrain" and NAMES[-1] == "none"
    assert {*DEFAULTS.values} == {*NAMES} - {"Retrain", "Retrain again", "none"}
    for name, value in DEFAULTS.values.items():
        stronger = DEFAULTS.changed([f"{name}={3 * value}"])
        assert all_methods(RECIPE, stronger)[name] != METHODS[name]


BAD = {
    "retain share": (lambda: NegGradPlus(RECIPE, 1.5), r"`retain_share` must lie in \[0, 1\]"),
    "climbing epochs": (lambda: SCRUB(RECIPE, num_max=9), "`num_max` must lie between 0 and"),
    "share": (lambda: SalUn(RECIPE, 0.0), r"`share` must lie in \(0, 1\], got 0.0"),
    "layers": (lambda: EUk(RECIPE, 0), "`num_layers` must be an integer >= 1, got 0"),
    "alpha": (lambda: L1Sparse(RECIPE, -1.0), "`alpha` must be a number >= 0, got -1.0"),
    "sparsity": (lambda: magnitude_mask({}, 1.0), r"`sparsity` must lie in \[0, 1\), got 1.0"),
    "curvature": (lambda: Influence(curvature="fisher"), "`curvature` must be 'gauss_newton'"),
    "ridge": (lambda: Influence(ridge=-1.0), "`ridge` must be a number >= 0, got -1.0"),
    "points": (lambda: Influence(num_points=0), "`num_points` must be an integer >= 1, got 0"),
    "no ridge": (lambda: WoodFisher(ridge=0.0), "`ridge` must be a number > 0, got 0.0"),
    "samples": (lambda: WoodFisher(num_samples=0), "`num_samples` must be an integer >= 1"),
    "noise": (lambda: FisherForgetting(alpha=0.0), "`alpha` must be a number > 0, got 0.0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings(name):
    make, message = BAD[name]
    with pytest.raises(InputError, match=message):
        make()


class Normed(nn.Module):
    """A model with statistics."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(4)(x.reshape(len(x), -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(2, name="a_head")(x)


@pytest.mark.parametrize("method", [Influence(), WoodFisher()], ids=["influence", "wood-fisher"])
def test_a_newton_step_leaves_statistics_as_they_are(method):
    """They are no parameters: the derivative by them is zero, and so is the step."""
    points = task().points
    dataset = from_arrays(*map(np.asarray, points), *map(np.asarray, points))
    normed = Task(models.make(Normed(), dataset), RECIPE, RECIPE, points)
    normed = normed.replace(original=normed.fit(normed.every, KEY)).forgetting(np.arange(3))
    params = unlearn(method, normed, KEY)
    assert equal(params["batch_stats"], normed.original["batch_stats"])
    assert not equal(params["params"], normed.original["params"])
    assert bool(jnp.all(jnp.isfinite(vector(params))))
