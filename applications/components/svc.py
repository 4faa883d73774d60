"""A support vector classifier with an RBF kernel, in time linear in the number of points.

The kernel of a few bounded numbers has a small rank to within rounding: pivoted Cholesky finds it,
and an interior-point method solves the dual with systems of that size (Fine and Scheinberg, JMLR
2001). scikit-learn's solver takes minutes on the 20,000 points of a membership attack.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

RANK_TOLERANCE = 1e-11  # of what the kernel's diagonal, which is 1, may lose
MAX_RANK = 400
MAX_STEPS = 80


class SVC(NamedTuple):
    """A fitted classifier.

    Attributes:
        pivots: `[r, d]`, the points that span the features of all.
        factor: `[r, r]`, the lower Cholesky factor of the kernel of the pivots.
        weight: `[r]`, of the features.
        bias: added to their product.
        gamma: of the kernel `exp(-gamma |x - x'|^2)`.
    """

    pivots: np.ndarray
    factor: np.ndarray
    weight: np.ndarray
    bias: float
    gamma: float

    def decide(self, x: np.ndarray) -> np.ndarray:
        """`[n]` for points `[n, d]`: above 0 for the first class."""
        kernel = _kernel(self.pivots, x, self.gamma)
        features = scipy.linalg.solve_triangular(self.factor, kernel, lower=True)
        return self.weight @ features + self.bias


def fit(x: np.ndarray, is_first: np.ndarray, cost: float, gamma: float) -> SVC:
    """Fit the classifier of two classes.

    Args:
        x: `[n, d]`.
        is_first: `[n]` bool, the class of each; both must be there.
        cost: C, the weight of a point on the wrong side of its margin.
        gamma: of the kernel.
    """
    x = np.asarray(x, np.float64)
    features, pivots = _features(x, gamma)
    sign = np.where(is_first, 1.0, -1.0)
    alpha, bias = _dual(sign[:, None] * features, sign, cost)
    return SVC(x[pivots], features[pivots], (sign * alpha) @ features, bias, gamma)


def _kernel(a: np.ndarray, b: np.ndarray, gamma: float) -> np.ndarray:
    square = np.sum(a**2, 1)[:, None] + np.sum(b**2, 1) - 2 * a @ b.T
    return np.exp(-gamma * np.maximum(square, 0.0))


def _features(x: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """`[n, r]` with the kernel as their products, and the rows that were the pivots."""
    left = np.ones(len(x))
    columns, pivots = np.zeros((len(x), 0)), list[int]()
    while left.max() > RANK_TOLERANCE and len(pivots) < min(MAX_RANK, len(x)):
        pivot = int(left.argmax())
        column = _kernel(x, x[pivot : pivot + 1], gamma)[:, 0] - columns @ columns[pivot]
        column /= np.sqrt(left[pivot])
        column[pivots] = 0.0
        columns = np.column_stack([columns, column])
        left = np.maximum(left - column**2, 0.0)
        left[pivot] = 0.0
        pivots.append(pivot)
    return columns, np.array(pivots)


def _dual(signed: np.ndarray, sign: np.ndarray, cost: float) -> tuple[np.ndarray, float]:
    """Minimise `|signed' a|^2 / 2 - sum a` over `0 <= a <= cost`, `sign' a = 0`: a, multiplier.

    Mehrotra's predictor and corrector; z and s are the multipliers of the two bounds.
    """
    alpha = np.full(len(sign), cost / 2)
    z, s, bias = np.ones(len(sign)), np.ones(len(sign)), 0.0
    for _ in range(MAX_STEPS):
        dual = signed @ (signed.T @ alpha) - 1 + sign * bias - z + s
        primal, mu = sign @ alpha, (alpha @ z + (cost - alpha) @ s) / (2 * len(sign))
        if mu < 1e-9 and np.abs(dual).max() < 1e-8:
            break
        scale = 1 / (z / alpha + s / (cost - alpha))
        scaled = scale[:, None] * signed
        small = scipy.linalg.cho_factor(np.eye(signed.shape[1]) + signed.T @ scaled)
        solve = functools.partial(_solve, scale, scaled, small)
        own = solve(sign)
        target_z, target_s = -alpha * z, -(cost - alpha) * s
        for corrected in (False, True):
            rhs = solve(target_z / alpha - target_s / (cost - alpha) - dual)
            d_bias = (sign @ rhs + primal) / (sign @ own)
            d_alpha = rhs - own * d_bias
            d_z = (target_z - z * d_alpha) / alpha
            d_s = (target_s + s * d_alpha) / (cost - alpha)
            step = min(_step(alpha, d_alpha), _step(cost - alpha, -d_alpha))
            step = min(step, _step(z, d_z), _step(s, d_s))
            if not corrected:
                after = (alpha + step * d_alpha) @ (z + step * d_z)
                after += (cost - alpha - step * d_alpha) @ (s + step * d_s)
                centre = mu * (after / (2 * len(sign) * mu)) ** 3
                target_z = target_z + centre - d_alpha * d_z
                target_s = target_s + centre + d_alpha * d_s
        step *= 0.995
        alpha, bias = alpha + step * d_alpha, bias + step * d_bias
        z, s = z + step * d_z, s + step * d_s
    return alpha, float(bias)


def _solve(scale: np.ndarray, scaled: np.ndarray, small: Any, rhs: np.ndarray) -> np.ndarray:
    """Woodbury: the inverse of `diag(1 / scale) + signed signed'` on a vector."""
    return scale * rhs - scaled @ scipy.linalg.cho_solve(small, scaled.T @ rhs)


def _step(value: np.ndarray, change: np.ndarray) -> float:
    """How far one may go before an entry meets 0, at most 1."""
    falls = change < 0
    return float(min(1.0, np.min(-value[falls] / change[falls], initial=1.0)))
