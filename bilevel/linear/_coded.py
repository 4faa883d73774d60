"""Products with a sum of Hessians that are exact although some of its workers do not answer.

A simulation of coded aggregation, for a front end that can lose answers (remote calls, a parameter
server). It is no fault tolerance of SPMD JAX, where a lost rank hangs every collective, and no
secrecy: nothing here hides data.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import _check, _tree
from bilevel.linear._info import LinearSolver, MatVec, PyTree

KINDS = ("repetition", "reed_solomon")
# How far decoding may magnify rounding errors: nine digits stay in float64, four in float32.
LIMITS = {8: 1e6, 4: 1e3}
# Beyond this many straggler sets the worst one is looked for among random and contiguous ones.
MAX_SETS = 20_000


@dataclasses.dataclass(frozen=True)
class GradientCode:
    """Who computes what, so that a sum over n blocks survives s lost answers of n workers.

    Worker j answers with `sum_i encoding[j, i] H_i v` over the s + 1 blocks that it stores; any
    n - s answers give `sum_i H_i v`. The price is s + 1 times the work of the uncoded sum.

    "repetition": groups of s + 1 workers store the same s + 1 blocks, and one answer of each group
    is enough. Decoding only adds, which costs no digits: prefer it. "reed_solomon": each answer is
    the value, at the worker's own point, of a polynomial whose leading coefficient is the sum. It
    suits every n and s, and loses the digits that `amplification` tells. The points are Chebyshev
    nodes; block i is the monic polynomial that vanishes at the workers without it, and every worker
    stores as many blocks as every other. Sources: Tandon, Lei, Dimakis and Karampatziakis, ICML
    2017 (gradient coding); Halbawi, Azizan, Salehi and Hassibi, ISIT 2018 (Reed-Solomon codes for
    it); Charalambides, Pilanci and Hero, IEEE JSAIT 2023 (coded inversion), from which it differs
    in that all points are real.

    Attributes:
        num_workers: n, workers and blocks, at least 1.
        num_stragglers: s, answers that may be missing, from 0 to n - 1.
        kind: "repetition" or "reed_solomon".

    Raises:
        ValueError: a setting is out of its range; s + 1 does not divide n ("repetition"); the worst
            straggler set magnifies rounding errors by more than 1e6 ("reed_solomon").
    """

    num_workers: int
    num_stragglers: int
    kind: str = "repetition"

    def __post_init__(self) -> None:
        _check.positive_integer("num_workers", self.num_workers)
        n, s = self.num_workers, self.num_stragglers
        if not (_check.is_integer(s) and 0 <= s < n):
            raise ValueError(
                f"`num_stragglers` must be an integer from 0 to num_workers - 1 = {n - 1}, got {s}."
            )
        if self.kind not in KINDS:
            raise ValueError(f"`kind` must be one of {KINDS}, got {self.kind!r}.")
        if self.kind == "repetition" and n % (s + 1):
            above = n + (s + 1) - n % (s + 1)
            raise ValueError(
                f"`num_workers` must be a multiple of num_stragglers + 1 = {s + 1} for"
                f' kind="repetition", got {n}. The nearest are {max(above - s - 1, s + 1)} and'
                f' {above}; or pass kind="reed_solomon".'
            )
        self._check_digits(8)

    def _check_digits(self, itemsize: int) -> None:
        limit = LIMITS.get(itemsize, LIMITS[4])
        if not self.amplification <= limit:
            raise ValueError(
                f"{self} magnifies rounding errors by {self.amplification:.1e}, more than"
                f' {limit:.0e}, the limit for floats of {itemsize} bytes. Pass kind="repetition",'
                " whose decoding only adds, a smaller code, or floats of twice the precision."
            )

    @functools.cached_property
    def encoding(self) -> np.ndarray:
        """`[num_workers, num_workers]` float64: row j holds the weights of worker j's blocks."""
        n, s = self.num_workers, self.num_stragglers
        if self.kind == "repetition":
            return np.kron(np.eye(n // (s + 1)), np.ones((s + 1, s + 1)))
        stored = (np.arange(n)[:, None] - np.arange(n)) % n <= s  # block i: workers i to i + s
        differences = self._points[:, None] - self._points
        # Block i: prod (x - x_m) over the workers m without it, monic of degree n - s - 1.
        vanishing = np.array([differences[:, ~stored[:, i]].prod(axis=1) for i in range(n)]).T
        return np.where(stored, vanishing, 0.0)

    @functools.cached_property
    def amplification(self) -> float:
        """The largest factor by which decoding magnifies rounding errors: 1 for "repetition".

        `max_i sum_j |weight_j encoding[j, i]|` over straggler sets: all of them where there are at
        most 20,000, otherwise as many random ones and all contiguous ones.
        """
        if self.kind == "repetition":
            return 1.0
        n, k = self.num_workers, self.num_workers - self.num_stragglers
        alive = np.zeros((len(sets := _straggler_sets(n, k)), n), bool)
        np.put_along_axis(alive, sets, True, axis=1)
        weights = _leading_weights(self._points, alive, np)
        return float((np.abs(weights) @ np.abs(self.encoding)).max())

    def decode(self, answers: PyTree, alive: jax.Array) -> PyTree:
        """The sum over all blocks, from the answers that came.

        Args:
            answers: pytree of arrays with a first axis `num_workers`; what a lost worker's rows
                hold is not read.
            alive: `[num_workers]` bool; an array argument, so that a new pattern compiles nothing.

        Returns:
            A pytree like one answer; NaN where the pattern cannot be decoded and is traced.

        Raises:
            ValueError: too few answers came and `alive` is known; the code's `amplification` is
                above 1e3 and the answers are float32 or shorter.
        """
        n, s = self.num_workers, self.num_stragglers
        alive = jnp.asarray(alive, bool)
        if self.kind == "repetition":
            groups = alive.reshape(-1, s + 1)
            decodable = groups.any(axis=1).all()
            # One answer of each group is picked, not weighted: all copies give the same bits.
            chosen = jnp.argmax(groups, axis=1) + (s + 1) * jnp.arange(n // (s + 1))
            combine = lambda a: a[chosen].sum(axis=0)
        else:
            dtype = _tree.widest(*jax.tree.leaves(answers))
            self._check_digits(dtype.itemsize)
            decodable = alive.sum() >= n - s
            used = alive & (jnp.cumsum(alive) <= n - s)
            weights = _leading_weights(jnp.asarray(self._points, dtype), used, jnp)

            def combine(a: jax.Array) -> jax.Array:
                seen = jnp.where(used.reshape(-1, *[1] * (a.ndim - 1)), a, 0)  # 0 * NaN is NaN
                return jnp.tensordot(weights, seen.astype(dtype), axes=1).astype(a.dtype)

        if not isinstance(decodable, jax.core.Tracer) and not decodable:
            raise ValueError(
                f"`alive` must leave {self} enough answers (one of each {s + 1} neighbours for"
                f" repetition, any {n - s} for reed_solomon), got"
                f" {np.asarray(alive).astype(int).tolist()}. Survive more by a larger"
                " `num_stragglers`."
            )
        return jax.tree.map(lambda a: jnp.where(decodable, combine(a), jnp.nan), answers)

    @property
    def _points(self) -> np.ndarray:
        """Chebyshev nodes in an order that keeps the workers of one block far apart."""
        n = self.num_workers
        stride = next(m for m in range(round(0.618 * n) or 1, 2 * n) if math.gcd(m, n) == 1)
        return np.cos((2 * (np.arange(n) * stride % n) + 1) * np.pi / (2 * n))


def coded_hvp(
    block_hvp: Callable[[jax.Array, PyTree], PyTree], code: GradientCode, alive: jax.Array
) -> MatVec:
    """`v -> sum_i H_i v` from the answers of the workers that are alive: a `matvec` for any solver.

    Args:
        block_hvp: `(i, v) -> H_i v`, traceable in the int32 scalar i; v and the result are pytrees
            like the right-hand side. All copies of a block must see the same data and key.
        code: who computes what.
        alive: `[num_workers]` bool, see `GradientCode.decode`.
    """
    encoding = jnp.asarray(code.encoding)

    def matvec(vector: PyTree) -> PyTree:
        blocks = jax.vmap(block_hvp, in_axes=(0, None))(jnp.arange(code.num_workers), vector)
        encode = lambda a: jnp.tensordot(encoding.astype(a.dtype), a, axes=1)
        return code.decode(jax.tree.map(encode, blocks), alive)

    return matvec


def coded_inverse(
    matvec: MatVec,
    example: jax.Array,
    num_workers: int,
    alive: jax.Array,
    num_blocks: int,
    linear_solver: LinearSolver,
) -> jax.Array:
    """`H^-1` as a matrix, from any `num_blocks` of `num_workers` answers.

    The columns of the identity are cut into blocks; each worker solves for one *combination* of
    them, which costs a block's work whatever the number of stragglers, and the combinations are
    undone at the end. Many right-hand sides at once: influence of every point, many deletion
    requests, a small dense inverse. (Charalambides, Pilanci and Hero, IEEE JSAIT 2023; the code
    here is dense, on Chebyshev polynomials.)

    Args:
        matvec: the product with a symmetric H.
        example: `[d]` array; its dtype and length are those of a column.
        num_workers: n.
        alive: `[n]` bool; the first `num_blocks` answers that came are used.
        num_blocks: k, from 1 to n, a divisor of d; n - k answers may be missing.
        linear_solver: solves for each column, e.g. `linear.CG()`.

    Returns:
        `[d, d]`; NaN where fewer than k answers came.

    Raises:
        ValueError: `num_blocks` is out of its range or no divisor of d.
    """
    size = example.shape[0]
    if not 1 <= num_blocks <= num_workers or size % num_blocks:
        raise ValueError(
            f"`num_blocks` must lie between 1 and num_workers = {num_workers} and divide the"
            f" dimension {size}, got {num_blocks}."
        )
    nodes = (2 * np.arange(num_workers) + 1) * np.pi / (2 * num_workers)
    generator = jnp.asarray(np.cos(nodes[:, None] * np.arange(num_blocks)), example.dtype)
    columns = jnp.eye(size, dtype=example.dtype).reshape(num_blocks, -1, size)
    alive = jnp.asarray(alive, bool)

    solve_row = lambda column: linear_solver(matvec, column).value
    answers = jax.vmap(jax.vmap(solve_row))(jnp.tensordot(generator, columns, axes=1))
    used = jnp.argsort(~alive, stable=True)[:num_blocks]
    blocks = jnp.linalg.solve(generator[used], answers[used].reshape(num_blocks, -1))
    # Rows are columns of the inverse, which is symmetric as H is.
    inverse = blocks.reshape(size, size).T
    return jnp.where(alive.sum() >= num_blocks, inverse, jnp.nan)


def _leading_weights(points, used, numpy):  # type: ignore[no-untyped-def]
    """Weights that read the leading coefficient off a polynomial's values at the used points.

    The divided difference `sum_j p(x_j) / prod_{m != j} (x_j - x_m)`, in `numpy` or `jax.numpy`.

    Args:
        points: `[n]`.
        used: `[..., n]` bool, with as many points as the polynomial has coefficients.
        numpy: the module to compute with.
    """
    differences = points[:, None] - points[None, :]
    apart = ~numpy.eye(len(points), dtype=bool)
    factors = numpy.where(used[..., None, :], numpy.where(apart, differences, 1.0), 1.0)
    return numpy.where(used, 1.0 / factors.prod(axis=-1), 0.0)


def _straggler_sets(num_workers: int, size: int) -> np.ndarray:
    """`[sets, size]`: the workers that are alive in each set."""
    if math.comb(num_workers, size) <= MAX_SETS:
        return np.array(list(itertools.combinations(range(num_workers), size)))
    rng = np.random.default_rng(0)
    drawn = rng.random((MAX_SETS, num_workers)).argsort(axis=1)[:, :size]
    contiguous = (np.arange(num_workers)[:, None] + np.arange(size)) % num_workers
    return np.concatenate([drawn, contiguous])
