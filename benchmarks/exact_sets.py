"""Errors of projections and proximal operators against bisection in extended precision.

    python -m benchmarks.exact_sets --vectors 10000

Each row is the largest error over random vectors with ties, offsets and scales from 1e-30 to 1e30,
in units of rounding: machine epsilon times the size of the set (or of the point, where the set has
no size of its own).
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import projections, proximal

SIZE = 24
SCALES = (1e-30, 1e-12, 1.0, 1e12, 1e30)


class Case(NamedTuple):
    """A map of a point and one setting, its reference, and what its error is measured by."""

    ours: Callable[[jax.Array, jax.Array], jax.Array]
    reference: Callable[[np.ndarray, np.ndarray], np.ndarray]
    unit: Callable[[np.ndarray, np.ndarray], np.ndarray]
    scaled: bool = True  # whether the setting grows with the point


WEIGHTS = np.linspace(-2.0, 3.0, SIZE)
setting_size = lambda v, t: np.abs(t)


def section(values: np.ndarray, weights: Any, lower: Any, upper: Any, total: Any) -> np.ndarray:
    """`clip(v - mu w, lower, upper)` with `<w, .> = total`, by bisection on mu; rows are points."""
    v, w = np.asarray(values, np.longdouble), np.asarray(weights, np.longdouble)
    total = np.asarray(total, np.longdouble)
    reach = 4 * (np.max(np.abs(v), axis=1, keepdims=True) + np.abs(total) + np.abs(np.max(lower)))
    low, high = -reach / np.min(np.abs(w)), reach / np.min(np.abs(w))
    at = lambda mu: np.clip(v - mu * w, lower, upper)
    for _ in range(150):
        middle = (low + high) / 2
        above = np.sum(w * at(middle), axis=1, keepdims=True) >= total
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return at(high)


def simplex(v: np.ndarray, total: np.ndarray) -> np.ndarray:
    # Counted from the largest entry, which is exact, or offsets would cost the reference digits.
    gaps = np.asarray(v, np.longdouble) - np.max(v, axis=1, keepdims=True)
    return section(gaps, np.ones(v.shape[1]), np.longdouble(0), np.inf, total)


def sparse_simplex(v: np.ndarray, total: np.ndarray) -> np.ndarray:
    kept = np.argsort(-v, axis=1, kind="stable")[:, :3]
    x = np.zeros(v.shape, np.longdouble)
    np.put_along_axis(x, kept, simplex(np.take_along_axis(v, kept, 1), total), 1)
    return x


def capped_box(v: np.ndarray, total: np.ndarray) -> np.ndarray:
    clipped = np.clip(np.asarray(v, np.longdouble), 0, 1)
    cut = section(v, np.ones(SIZE), np.longdouble(0), np.longdouble(1), total)
    return np.where(np.sum(clipped, axis=1, keepdims=True) <= total, clipped, cut)


def l1_ball(v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    inside = np.sum(np.abs(v), axis=1, keepdims=True) <= radius
    return np.where(inside, v, np.sign(v) * simplex(np.abs(v), radius))


def length(v: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(np.asarray(v, np.longdouble) ** 2, axis=1, keepdims=True))


def shrink(v: np.ndarray, t: np.ndarray) -> np.ndarray:
    return np.sign(v) * np.maximum(np.abs(np.asarray(v, np.longdouble)) - t, 0)


def shorten(v: np.ndarray, t: np.ndarray) -> np.ndarray:
    size = length(v)
    return np.where(size <= t, 0, v * (1 - t / np.where(size == 0, 1, size)))


def onto_plane(v: np.ndarray, offset: np.ndarray) -> np.ndarray:
    w = np.asarray(WEIGHTS, np.longdouble)
    return v - w * ((v @ w)[:, None] - offset) / (w @ w)


def onto_half_space(v: np.ndarray, offset: np.ndarray) -> np.ndarray:
    return np.where(
        (v @ WEIGHTS.astype(np.longdouble))[:, None] <= offset, v, onto_plane(v, offset)
    )


def onto_sphere(v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    size = length(v)
    unit = np.where(size == 0, SIZE ** np.longdouble(-0.5), v / np.where(size == 0, 1, size))
    return unit * radius


def of_point(make: Callable[[Any], Any]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return lambda v, t: make(t)(v)


def prox_of(make: Callable[[Any], Any]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return lambda v, t: make(t)(None, v, 1.0)


weights = lambda v: jnp.asarray(WEIGHTS, v.dtype)
larger = lambda v, t: np.maximum(np.max(np.abs(v), axis=1, keepdims=True), np.abs(t))

CASES = {
    "Simplex": Case(of_point(projections.Simplex), simplex, setting_size),
    "SparseSimplex": Case(
        lambda v, t: projections.SparseSimplex(3, t)(v), sparse_simplex, setting_size
    ),
    "CappedSimplex": Case(
        of_point(projections.CappedSimplex),
        lambda v, t: section(v, np.ones(SIZE), np.longdouble(0), np.longdouble(1), t),
        lambda v, t: np.ones_like(t),
        scaled=False,
    ),
    "CappedBox": Case(
        of_point(projections.CappedBox), capped_box, lambda v, t: np.ones_like(t), scaled=False
    ),
    "BoxSection": Case(
        lambda v, t: projections.BoxSection(0.0, -2 * t, t, weights(v))(v),
        lambda v, t: section(v, WEIGHTS, -2 * np.asarray(t, np.longdouble), t, 0 * t),
        larger,
    ),
    "L1Ball": Case(of_point(projections.L1Ball), l1_ball, setting_size),
    "L2Ball": Case(
        of_point(projections.L2Ball),
        lambda v, t: np.where(length(v) <= t, v, onto_sphere(v, t)),
        setting_size,
    ),
    "L2Sphere": Case(of_point(projections.L2Sphere), onto_sphere, setting_size),
    "Hyperplane": Case(lambda v, t: projections.Hyperplane(weights(v), t)(v), onto_plane, larger),
    "HalfSpace": Case(
        lambda v, t: projections.HalfSpace(weights(v), t)(v), onto_half_space, larger
    ),
    "AffineSet": Case(
        lambda v, t: projections.AffineSet(weights(v)[None], t[None])(v), onto_plane, larger
    ),
    "L1": Case(prox_of(lambda t: proximal.L1(lambda _: t)), shrink, larger),
    "ElasticNet": Case(
        prox_of(lambda t: proximal.ElasticNet(lambda _: t, 0.5)),
        lambda v, t: shrink(v, t) / np.longdouble(1.5),
        larger,
    ),
    "NonNegativeL1": Case(
        prox_of(lambda t: proximal.NonNegativeL1(lambda _: t)),
        lambda v, t: np.maximum(np.asarray(v, np.longdouble) - t, 0),
        larger,
    ),
    "NonNegativeRidge": Case(
        prox_of(lambda t: proximal.NonNegativeRidge(lambda _: t)),
        lambda v, t: np.maximum(v, 0) / (1 + np.asarray(t, np.longdouble)),
        larger,
        scaled=False,
    ),
    "GroupL2": Case(prox_of(lambda t: proximal.GroupL2(lambda _: t)), shorten, larger),
    "TreeL2": Case(prox_of(lambda t: proximal.TreeL2(lambda _: t)), shorten, larger),
}


def draw(count: int, dtype: Any, scaled: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points `[count, SIZE]`, a third of them full of ties and half of them off 0; settings."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, SIZE)) * 10.0 ** rng.integers(-2, 3, (count, 1))
    points = np.where(rng.random((count, 1)) < 1 / 3, np.round(points * 2) / 2, points)
    points += np.where(rng.random((count, 1)) < 0.5, rng.choice([-7.0, 1e3], (count, 1)), 0.0)
    settings = rng.uniform(0.05, 6.0, (count, 1))
    if scaled:
        scale = rng.choice(SCALES, (count, 1))
        points, settings = points * scale, settings * scale
    points[points == 0] = 0.0
    return points.astype(dtype), settings.astype(dtype)


def largest_error(case: Case, count: int, dtype: Any) -> float:
    """In units of rounding."""
    with jax.enable_x64(dtype == np.float64):
        points, settings = draw(count, dtype, case.scaled)
        ours = jax.jit(jax.vmap(case.ours))(jnp.asarray(points), jnp.asarray(settings[:, 0]))
        ours = np.asarray(ours, np.longdouble)
    points, settings = points.astype(np.longdouble), settings.astype(np.longdouble)
    error = np.abs(ours - case.reference(points, settings)) / case.unit(points, settings)
    return float(np.max(error) / np.finfo(dtype).eps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=10_000)
    count = parser.parse_args().vectors
    print(f"largest error of {count} vectors, in epsilons\n{'':18}float32  float64")
    for name, case in CASES.items():
        errors = [largest_error(case, count, dtype) for dtype in (np.float32, np.float64)]
        print(f"{name:18}{errors[0]:7.2f}  {errors[1]:7.2f}")


if __name__ == "__main__":
    main()
