"""Settings of sets, proximal operators and discrete choices: shapes, learned ones, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import _check, discrete, projections, proximal, sampling
from bilevel.projections import (
    AffineSet,
    BirkhoffPolytope,
    Box,
    BoxSection,
    CappedSimplex,
    HalfSpace,
    Hyperplane,
    L2Ball,
    L2Sphere,
    Polyhedron,
    Simplex,
    SparseSimplex,
    TransportPolytope,
)

a = jnp.array
KEY = jax.random.key(0)
TREE = {"w": a([[3.0, 4.0], [0.3, 0.4]]), "b": a([2.0, -0.5])}


def close(tree, expected):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.allclose(x, y)), tree, expected)))


SHAPES = {
    "a bound for each leaf": (
        Box({"w": 0.0, "b": -1.0}, 1.0),
        {"w": a([[1.0, 1.0], [0.3, 0.4]]), "b": a([1.0, -0.5])},
    ),
    "a bound for each entry": (
        Box({"w": a([0.0, 0.35]), "b": -9.0}, {"w": a([[2.0], [1.0]]), "b": 9.0}),
        {"w": a([[2.0, 2.0], [0.3, 0.4]]), "b": TREE["b"]},
    ),
    "a strength for each leaf": (
        lambda v: proximal.L1({"w": 1.0, "b": 0.0})(None, v, 0.5),
        {"w": a([[2.5, 3.5], [0.0, 0.0]]), "b": TREE["b"]},
    ),
    "a strength for each row": (
        lambda v: proximal.GroupL2({"w": a([1.0, 0.0]), "b": 0.0})(None, v, 1.0),
        {"w": a([[2.4, 3.2], [0.3, 0.4]]), "b": TREE["b"]},
    ),
    "learned, for each column": (
        lambda v: proximal.NonNegativeL1(lambda x: {"w": x, "b": 9.0})(a([1.0, 2.0]), v, 1.0),
        {"w": a([[2.0, 2.0], [0.0, 0.0]]), "b": jnp.zeros(2)},
    ),
    "the whole tree as one group": (
        lambda v: proximal.TreeL2(100.0)(None, v, 1.0),
        {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)},
    ),
    "a plane through a tree": (
        Hyperplane({"w": 1.0, "b": 0.0}, 0.0),
        {"w": TREE["w"] - 7.7 / 4, "b": TREE["b"]},
    ),
    "weights for each leaf": (
        BoxSection(0.0, -jnp.inf, jnp.inf, {"w": 1.0, "b": 0.0}),
        {"w": TREE["w"] - 7.7 / 4, "b": TREE["b"]},
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_settings_of_every_shape(name):
    fun, expected = SHAPES[name]
    assert close(jax.jit(lambda v: fun(v))(TREE), expected)


def test_the_whole_tree_shrinks_together():
    found = proximal.TreeL2(1.0)(None, {"w": a([[3.0]]), "b": a([4.0])}, 0.5)
    assert close(found, {"w": a([[2.7]]), "b": a([3.6])})


SCALARS = {
    "NumPy": np.float32(2.0),
    "a NumPy integer": np.int64(2),
    "an array": jnp.float32(2.0),
    "an array of integers": jnp.int32(2),
}


@pytest.mark.parametrize("value", SCALARS.values(), ids=SCALARS)
@pytest.mark.parametrize("make", [Simplex, L2Ball, L2Sphere, CappedSimplex, BoxSection])
def test_a_number_may_be_of_any_kind(make, value):
    point = a([0.4, 1.9, -3.0])
    assert close(make(value)(point), make(2.0)(point))
    assert close(jax.jit(lambda t: make(t)(point))(value), make(2.0)(point))


OUT_OF_RANGE = {
    "radius": lambda t: L2Ball(t)(jnp.ones(2)),
    "total": lambda t: Simplex(t)(jnp.ones(2)),
    "capped total": lambda t: CappedSimplex(t)(jnp.ones(2)),
    "crossed bounds": lambda t: Box(0.0, t)(jnp.ones(2)),
    "strength": lambda t: proximal.ElasticNet(0.1, lambda _: t)(None, jnp.ones(2), 1.0),
    "group strength": lambda t: proximal.TreeL2(lambda _: t)(None, jnp.ones(2), 1.0),
    "temperature": lambda t: discrete.relaxed_top_k(KEY, jnp.ones(2), 1, t),
    "scale": lambda t: discrete.smoothed_top_k_sum(KEY, jnp.ones(2), 1, t, 5),
    "probability": lambda t: discrete.bernoulli_masks(KEY, jnp.full(2, t), 5),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_what_turns_out_of_range_when_traced_is_nan(name):
    assert jnp.all(jnp.isnan(jax.jit(OUT_OF_RANGE[name])(-0.5)))


def test_distance():
    away = jnp.array([2.0, 0.0, 0.0])
    assert jnp.isclose(projections.distance(Simplex(), away), jnp.linalg.norm(a([1.0, 0.0, 0.0])))
    assert projections.distance(Simplex(), Simplex()(away)) == 0
    slope = jax.grad(lambda v: projections.distance(L2Ball(), v))
    assert close(slope(away), a([1.0, 0.0, 0.0])) and close(slope(away / 9), jnp.zeros(3))
    assert jnp.isclose(projections.distance(L2Ball(1e-26), a([3e-25, 4e-25])) / 4.9e-25, 1.0)
    assert projections.distance(Box(), {"a": jnp.bfloat16(3.0)}) == 2.0


def test_a_choice_at_every_dtype_with_infinite_scores_and_signed_nan():
    hard = discrete.StraightThrough(discrete.TopK(1))
    scores = a([-jnp.inf, 2.0, 1.0])
    assert hard(scores).tolist() == [0.0, 1.0, 0.0]
    assert jax.grad(lambda s: hard(s) @ a([1.0, 2.0, 3.0]))(scores).tolist() == [0.0, 2.0, 3.0]
    signed = jnp.copysign(jnp.nan, -1.0) * a([0.0, 1.0, 0.0]) + a([1.0, 0.0, 2.0])
    assert jnp.all(jnp.isnan(discrete.TopK(1)(signed)))
    assert jnp.isnan(discrete.smoothed_top_k_sum(KEY, signed, 1, 0.1, 5))
    assert discrete.TopK(1)(a([-0.0, 0.0, -0.0])).tolist() == [1.0, 0.0, 0.0]
    for kind in ("bfloat16", "float16"):
        low = jnp.zeros(300, kind)
        draw = jax.vmap(discrete.gumbel_top_k, in_axes=(0, None, None))
        draws = draw(jax.random.split(KEY, 600), low, 1)
        # Noise in half precision would tie, and the first of equal entries always win.
        assert draws.dtype == kind and float(jnp.sum(draws[:, :30].astype("float32"))) < 100
        rare = discrete.bernoulli_masks(KEY, jnp.full(100, 1e-3, kind), 1000).astype("float32")
        assert 50 < float(jnp.sum(rare)) < 160


def test_a_seed_may_be_traced_where_it_is_an_integer():
    jax.eval_shape(lambda s: _check.seed("seed", s), jnp.int32(3))
    _check.seed("seed", np.int64(3))
    for bad in (-1, 2**31, 1.0, True, None, KEY):
        with pytest.raises(ValueError, match=r"`seed` must be an integer in \[0, 2\^31\), got"):
            _check.seed("seed", bad)
    with pytest.raises(ValueError, match="`seed` must be an integer"):
        jax.eval_shape(lambda s: _check.seed("seed", s), jnp.float32(3.0))


ones = jnp.ones(3)
WRONG = {
    "integers": (lambda: CappedSimplex(2)(jnp.arange(4)), TypeError, "got int32 at `tree`. Cast"),
    "integers in a ball": (lambda: L2Ball()({"a": jnp.arange(4)}), TypeError, r"at `tree\['a'\]`"),
    "integers in a box": (lambda: Box()(3), TypeError, "got int 3 at `tree`"),
    "integers, proximal": (
        lambda: proximal.L1(1.0)(None, jnp.arange(3), 1.0),
        TypeError,
        "`point` must hold floating arrays only",
    ),
    "integer scores": (lambda: discrete.TopK(1)(jnp.arange(3)), TypeError, "`scores` must hold"),
    "no entries": (lambda: Simplex()(jnp.zeros(0)), ValueError, "`tree` must have at least one"),
    "no direction": (lambda: L2Sphere()({}), ValueError, "the norm of none is 0"),
    "k": (lambda: SparseSimplex(0), ValueError, "`k` must be an integer >= 1, got 0"),
    "k too large": (lambda: SparseSimplex(4)(ones), ValueError, "got k=4 for 3"),
    "sparse total": (lambda: SparseSimplex(1, 0.0), ValueError, "`total` must be a finite number"),
    "section total": (lambda: BoxSection(jnp.nan), ValueError, "`total` must be a finite number"),
    "section bounds": (lambda: BoxSection(1.0, 2.0, 1.0), ValueError, "`lower` must not exceed"),
    "offset": (lambda: Hyperplane(ones, jnp.inf), ValueError, "`offset` must be a finite number"),
    "half space": (lambda: HalfSpace(ones, None), ValueError, "`offset` must be a finite number"),
    "sphere": (lambda: L2Sphere(-1.0), ValueError, "`radius` must be a finite number > 0"),
    "arrays that cross": (lambda: Box(a([0.0, 2.0]), 1.0), ValueError, "`lower` must not exceed"),
    "a NaN bound": (lambda: Box(0.0, jnp.nan), ValueError, "`lower` must not exceed"),
    "a text": (lambda: Box("0", 1.0), TypeError, "`lower` must be a number, an array or a pytree"),
    "bounds of a shape": (
        lambda: Box(jnp.zeros(2), 1.0)(ones),
        ValueError,
        r"`lower` must broadcast to shape \(3,\), got shape \(2,\)",
    ),
    "bounds of a structure": (
        lambda: Box({"b": 0.0}, 1.0)({"a": ones}),
        ValueError,
        "`lower` must be a number, an array, or a pytree with one of them for each leaf",
    ),
    "matrix": (lambda: AffineSet(ones, ones), ValueError, r"`matrix` must have shape \[k, n\]"),
    "columns": (lambda: AffineSet(jnp.ones((1, 2)), a([1.0]))(ones), ValueError, "one column for"),
    "polyhedron": (lambda: Polyhedron(ones, ones), ValueError, r"`matrix` must have shape \[k, n"),
    "half of an equality": (
        lambda: Polyhedron(jnp.ones((1, 2)), a([1.0]), jnp.ones((1, 2))),
        ValueError,
        "`equality_matrix` and `equality_rhs` belong together",
    ),
    "totals that differ": (
        lambda: TransportPolytope(a([1.0]), a([2.0])),
        ValueError,
        "must have the same sum, got 1.0 and 2.0",
    ),
    "a negative total": (
        lambda: TransportPolytope(a([1.0, -1.0]), a([0.0])),
        ValueError,
        "`rows` must be at least 0",
    ),
    "a total": (lambda: TransportPolytope(1.0, ones), ValueError, "`rows` must be a vector"),
    "a plan of a shape": (
        lambda: TransportPolytope(ones, ones)(jnp.zeros((3, 2))),
        ValueError,
        r"`tree` must be one array of shape \[3, 3\]",
    ),
    "not square": (lambda: BirkhoffPolytope()(ones), ValueError, "`tree` must be one array"),
    "strength": (lambda: proximal.NonNegativeL1(-1.0), ValueError, "`penalty` must be a finite"),
    "ridge": (lambda: proximal.NonNegativeRidge(-1.0), ValueError, "`penalty` must be a finite"),
    "strengths": (lambda: proximal.L1(-ones), ValueError, "`penalty` must hold numbers >= 0"),
    "tree": (lambda: proximal.TreeL2("1"), TypeError, "`penalty` must be a number, an array"),
    "a class": (lambda: proximal.L1(proximal.L1), TypeError, "got the class `L1` itself"),
    "discretize, a class": (
        lambda: discrete.StraightThrough(discrete.TopK),
        TypeError,
        "got the class `TopK` itself. Make an instance of it",
    ),
    "discretize, a shape": (
        lambda: discrete.StraightThrough(jnp.sum)(ones),
        ValueError,
        "`discretize` must return a pytree with the shapes of its argument",
    ),
    "distance, a class": (
        lambda: projections.distance(Simplex, ones),
        TypeError,
        "got the class `Simplex` itself",
    ),
    "key": (
        lambda: sampling.minibatches(ones, 1, 7),
        TypeError,
        r"`key` must be one random key, got 7: pass `jax.random.key\(7\)`",
    ),
    "keys": (
        lambda: discrete.gumbel_top_k(jax.random.split(KEY, 3), ones, 1),
        TypeError,
        r"got an array key<fry>\[3\]: pass `jax.random.key\(0\)`",
    ),
    "mask key": (lambda: discrete.bernoulli_masks(0, ones, 2), TypeError, "one random key, got 0"),
    "sum key": (
        lambda: discrete.smoothed_top_k_sum(0, ones, 1, 0.1, 2),
        TypeError,
        "one random key, got 0",
    ),
    "no data": (lambda: sampling.minibatches({}, 1, KEY), ValueError, "`data` holds no arrays"),
    "partition": (
        lambda: sampling.partition((jnp.ones(4), jnp.ones(2)), 2),
        ValueError,
        r"common first axis, got first axes \[2, 4\]",
    ),
    "partition of a scalar": (
        lambda: sampling.partition(jnp.float32(1.0), 1),
        ValueError,
        r"got first axes \['none'\]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings(name):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()


def test_old_keys_and_traced_keys_serve():
    for key in (KEY, jax.random.PRNGKey(0)):
        draw = jax.jit(lambda key: sampling.minibatches(ones, 2, key)(0))
        assert draw(key).shape == (2,)
