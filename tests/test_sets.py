"""Every set and proximal operator: NaN, scales, dtypes, derivatives, transformations, settings."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.exact_sets import CASES, largest_error
from bilevel import proximal
from bilevel.projections import (
    AffineSet,
    BirkhoffPolytope,
    Box,
    BoxSection,
    CappedBox,
    CappedSimplex,
    HalfSpace,
    Hyperplane,
    L1Ball,
    L2Ball,
    L2Sphere,
    NonNegative,
    Polyhedron,
    Simplex,
    SparseSimplex,
    TransportPolytope,
)

pytestmark = pytest.mark.slow

NORMAL = jnp.array([1.0, -2.0, 0.5, 3.0, -1.0, 1.5])
prox = lambda operator: lambda v: operator(None, v, 0.5)
of_matrix = lambda project, shape: lambda v: project(v.reshape(shape)).ravel()
a = jnp.array

# A map of a vector of six, and of the one setting that it has, at a scale s.
MAPS = {
    "box": lambda t, s: Box(-t, t),
    "simplex": lambda t, s: Simplex(t),
    "sparse simplex": lambda t, s: SparseSimplex(3, t),
    "box section": lambda t, s: BoxSection(t, -2 * s, 3 * s, NORMAL),
    "l1 ball": lambda t, s: L1Ball(t),
    "l2 ball": lambda t, s: L2Ball(t),
    "l2 sphere": lambda t, s: L2Sphere(t),
    "hyperplane": lambda t, s: Hyperplane(NORMAL, t),
    "half space": lambda t, s: HalfSpace(NORMAL, t),
    "affine set": lambda t, s: AffineSet(jnp.stack([NORMAL, NORMAL**2]), t * jnp.array([1.0, 3.0])),
    "polyhedron": lambda t, s: Polyhedron(
        jnp.stack([NORMAL, NORMAL**2]), t * a([1.0, 0.3]), jnp.ones((1, 6)), jnp.reshape(t, 1)
    ),
    "transport polytope": lambda t, s: of_matrix(
        TransportPolytope(t * a([0.3, 0.7]), t * a([0.2, 0.5, 0.3])), (2, 3)
    ),
    "L1": lambda t, s: prox(proximal.L1(lambda _: t)),
    "ElasticNet": lambda t, s: prox(proximal.ElasticNet(lambda _: t, 0.7)),
    "NonNegativeL1": lambda t, s: prox(proximal.NonNegativeL1(lambda _: t)),
    "GroupL2": lambda t, s: prox(proximal.GroupL2(lambda _: t)),
    "TreeL2": lambda t, s: prox(proximal.TreeL2(lambda _: t)),
}
# These have a size of their own, 1 or none, which does not grow with the point.
SIZED = {
    "capped simplex": lambda t, s: CappedSimplex(t),
    "capped box": lambda t, s: CappedBox(t),
    "non-negative": lambda t, s: NonNegative(),
    "NonNegativeRidge": lambda t, s: prox(proximal.NonNegativeRidge(lambda _: t)),
}
ALL = MAPS | SIZED
POINT = jnp.array([0.9, -0.4, 2.1, 0.3, -1.7, 0.6])
# One NaN spoils what it is coupled with; entry by entry it stays alone.
ENTRYWISE = ("box", "non-negative", "L1", "ElasticNet", "NonNegativeL1", "NonNegativeRidge")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_exact_to_rounding(name, precision):
    assert largest_error(CASES[name], 100, precision) < 4


@pytest.mark.parametrize("name", ALL)
def test_nan_stays(name):
    point = POINT.at[2].set(jnp.nan)
    found = jax.jit(ALL[name](1.3, 1.0))(point)
    expected = jnp.isnan(point) if name in ENTRYWISE else jnp.ones(6, bool)
    chex.assert_trees_all_equal(jnp.isnan(found), expected)
    if name != "non-negative":
        assert jnp.all(jnp.isnan(jax.jit(lambda t: ALL[name](t, 1.0)(POINT))(jnp.nan)))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_scale_does_not_matter(name, scale):
    """Of the value, and of the derivatives in the point and in the setting."""

    def everything(scale):
        fun = lambda v, t: MAPS[name](t, scale)(v)
        tangent = jax.jvp(fun, (scale * POINT, scale * 1.3), (jnp.cos(POINT), jnp.float32(0.7)))[1]
        pulled = jax.vjp(fun, scale * POINT, scale * 1.3)[1](jnp.sin(POINT))
        return fun(scale * POINT, scale * 1.3) / scale, tangent, pulled

    compute = jax.jit(everything)
    found, expected = compute(jnp.float32(scale)), compute(jnp.float32(1.0))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32", "float64"])
def test_every_floating_dtype(name, kind):
    """The result is that of float32 at least, rounded once."""
    with jax.enable_x64(kind == "float64"), jax.numpy_dtype_promotion("strict"):
        point = jnp.asarray(POINT, kind)
        found = jax.jit(ALL[name](1.5, 1.0))(point)
        assert found.dtype == point.dtype
        wide = ALL[name](1.5, 1.0)(point.astype("float32"))
        difference = np.abs(np.asarray(found, np.float64) - np.asarray(wide, np.float64))
        assert difference.max() <= 4 * max(float(jnp.finfo(kind).eps), 1.2e-7)


@pytest.mark.parametrize("name", ALL)
def test_derivatives_match_finite_differences(name, x64):
    """In the point and in the setting, forward and backward, and under `vmap`."""
    fun = lambda v, t: ALL[name](t, 1.0)(v)
    args = jnp.asarray(POINT, "float64"), jnp.asarray(1.4, "float64")
    tangents = jnp.cos(3 * args[0]), jnp.asarray(0.7, "float64")
    along = lambda e: fun(args[0] + e * tangents[0], args[1] + e * tangents[1])
    slope = jax.jit(lambda: jax.jvp(fun, args, tangents)[1])()
    chex.assert_trees_all_close(slope, (along(1e-6) - along(-1e-6)) / 2e-6, atol=1e-8)
    pulled = jax.vjp(fun, *args)[1](jnp.sin(args[0]))
    back = pulled[0] @ tangents[0] + pulled[1] * tangents[1]
    assert jnp.isclose(back, jnp.sin(args[0]) @ slope)
    sweep = jnp.array([0.9, 1.4])
    many = jax.jit(jax.vmap(fun, in_axes=(None, 0)))(args[0], sweep)
    chex.assert_trees_all_close(many, jnp.stack([fun(args[0], t) for t in sweep]), atol=1e-14)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("point", [jnp.zeros(6), jnp.ones(6), jnp.arange(6.0)], ids=str)
def test_derivatives_at_kinks_are_finite(name, point):
    """Also under the strictest checks, where a NaN on the way raises."""
    with jax.debug_nans(True), jax.checking_leaks():
        fun = lambda v, t: jnp.sum(jnp.sin(ALL[name](t, 1.0)(v)))
        grads = jax.grad(fun, argnums=(0, 1))(point, jnp.float32(2.0))
        again = jax.jit(jax.grad(lambda v: jnp.sum(jax.grad(fun)(v, 2.0) ** 2)))(point)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in (*grads, again))


jacobian = lambda fun, *args: jax.jacobian(fun)(*[jnp.asarray(a, "float32") for a in args])
KINKS = {
    "an entry on a bound stays": (lambda v: Box(0.0, 1.0)(v), [0.0, 0.5, 1.0], np.diag([0, 1, 0])),
    "of L1, is removed": (prox(proximal.L1(1.0)), [0.5, 0.0, 2.0], np.diag([0, 0, 1])),
    "no strength, identity": (prox(proximal.L1(0.0)), [0.5, 0.0, 2.0], np.eye(3)),
    "no strength, one group": (prox(proximal.GroupL2(0.0)), [0.0, 0.0, 0.0], np.eye(3)),
    "a group at its threshold": (prox(proximal.GroupL2(2.0)), [0.0, 1.0, 0.0], np.zeros((3, 3))),
    "on the l2 ball": (L2Ball(1.0), [0.0, 1.0, 0.0], np.eye(3)),
    "on the l1 ball": (L1Ball(1.0), [0.5, -0.5, 0.0], np.eye(3)),
    "the middle of a sphere": (L2Sphere(1.0), [0.0, 0.0, 0.0], np.zeros((3, 3))),
    "the border of a polyhedron": (
        Polyhedron(jnp.ones((1, 3)), jnp.zeros(1)),
        [1.0, -1.0, 0.0],
        np.eye(3),
    ),
    "a permutation": (
        of_matrix(BirkhoffPolytope(), (2, 2)),
        [3.0, 0.0, 0.0, 3.0],
        np.zeros((4, 4)),
    ),
    "the border of a half space": (HalfSpace(jnp.ones(3)), [1.0, -1.0, 0.0], np.eye(3)),
    "ties of a simplex": (Simplex(1.0), [1.0, 0.0, -1.0], np.diag([0, 0, 0])),
    "a whole choice, in the total": (
        lambda t: CappedSimplex(t)(jnp.array([5.0, 3.0, 1.0])),
        1.0,
        [0, 1, 0],
    ),
    "all chosen, in the total": (
        lambda t: CappedSimplex(t)(jnp.array([5.0, 3.0, 1.0])),
        3.0,
        [0, 0, 1],
    ),
    "nothing chosen, in the total": (
        lambda t: CappedSimplex(t)(jnp.array([5.0, 5.0, 1.0])),
        0.0,
        [0.5, 0.5, 0],
    ),
}


@pytest.mark.parametrize("name", KINKS)
def test_the_derivative_at_a_kink_is_the_documented_one(name):
    fun, point, expected = KINKS[name]
    chex.assert_trees_all_close(jacobian(fun, point), jnp.asarray(expected, "float32"), atol=1e-6)


VALUES = {
    "a row of 5e-25": (prox(proximal.GroupL2(2e-26)), a([3e-25, 4e-25]), a([2.94e-25, 3.92e-25])),
    "a row of 5e20": (prox(proximal.GroupL2(2e20)), a([3e20, 4e20]), a([2.4e20, 3.2e20])),
    "a huge point, a small ball": (L2Ball(1e-26), a([3e25, 4e25]), a([6e-27, 8e-27])),
    "infinite entries go to bounds": (
        CappedSimplex(2),
        a([jnp.inf, 0, -jnp.inf, 0]),
        a([1, 0.5, 0, 0.5]),
    ),
    "more infinite ones than the total": (
        CappedSimplex(1),
        a([jnp.inf, jnp.inf]),
        a([jnp.nan] * 2),
    ),
    "minus infinity on a simplex": (Simplex(), a([-jnp.inf, 2.0, 2.0]), a([0, 0.5, 0.5])),
    "infinity on a simplex": (Simplex(), a([jnp.inf, 2.0]), a([jnp.nan, jnp.nan])),
    "infinity in a ball": (L2Ball(), a([jnp.inf, 2.0]), a([jnp.nan, jnp.nan])),
    "one entry, simplex": (Simplex(3.0), a([-9.0]), a([3.0])),
    "one entry, l1": (L1Ball(3.0), a([-9.0]), a([-3.0])),
    "one entry, l2": (L2Ball(3.0), a([-9.0]), a([-3.0])),
    "zero on a sphere": (L2Sphere(2.0), jnp.zeros(4), jnp.ones(4)),
    "an empty l1 ball": (L1Ball(), jnp.zeros(0), jnp.zeros(0)),
    "an empty l2 ball": (L2Ball(), jnp.zeros(0), jnp.zeros(0)),
    "an empty box": (CappedBox(2), jnp.zeros(0), jnp.zeros(0)),
    "the first of ties": (SparseSimplex(1), a([-0.0, 0.0, -0.0]), a([1, 0, 0])),
    "no choice": (CappedSimplex(0), a([3.0, 1.0]), a([0, 0])),
    "a full choice": (CappedSimplex(2), a([3e30, -1e30]), a([1, 1])),
    "an empty section": (BoxSection(9.0), jnp.zeros(3), a([jnp.nan] * 3)),
    "a section with no upper bound": (
        BoxSection(1.0, 0.0, jnp.inf, a([1.0, 2.0])),
        a([1, 2]),
        a([0.2, 0.4]),
    ),
    "a weight of 0": (BoxSection(1.0, 0.0, 1.0, a([1.0, 0.0])), a([3.0, 0.3]), a([1, 0.3])),
    "no bounds at all": (BoxSection(2.0, -jnp.inf, jnp.inf), a([1.0, 3.0]), a([0, 2])),
    "repeated rows": (AffineSet(jnp.ones((2, 2)), a([2.0, 2.0])), a([1.0, 3.0]), a([0, 2])),
    "an empty polyhedron": (Polyhedron(a([[1.0], [-1.0]]), a([-1.0, -1.0])), a([0]), a([jnp.nan])),
    "inside a polyhedron": (Polyhedron(jnp.eye(2), jnp.ones(2)), a([0.3, -7]), a([0.3, -7])),
    "a row of a plan that carries nothing": (
        of_matrix(TransportPolytope(a([0.0, 1.0]), a([0.5, 0.5])), (2, 2)),
        a([9, 9, 0, 0]),
        a([0, 0, 0.5, 0.5]),
    ),
    "doubly stochastic": (
        of_matrix(BirkhoffPolytope(), (2, 2)),
        a([1, 0.5, 0, 0]),
        a([0.625, 0.375, 0.375, 0.625]),
    ),
    "rows that contradict": (
        AffineSet(jnp.ones((2, 2)), a([2.0, 3.0])),
        a([1, 3]),
        a([jnp.nan] * 2),
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_values(name):
    fun, point, expected = VALUES[name]
    expected = expected.astype("float32")
    size = float(jnp.nanmax(jnp.abs(expected), initial=0.0))
    found = jax.jit(fun)(point.astype("float32"))
    chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-6 * size)
