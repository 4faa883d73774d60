"""Will an unrolled gradient predict? Three trainings say so before a backward pass is paid for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import _check, _tree
from bilevel._hypergradient import checked
from bilevel._problem import Batch, BilevelProblem, PyTree, check_alike
from bilevel._stateful import variable_of
from bilevel.diagnostics._smoother import advice
from bilevel.solvers import Solver

# Of 22 settings that it was fixed on, the six above predicted with a cosine of .98 and more; the
# others were below .85, with cosines up to .84, and one of .94 at S = .77. docs/metagradients.md
# has those that it was tested on.
THRESHOLD = 0.9
_NOT_FINITE = "the training itself is not finite: take a smaller step size"
_FLAT = (
    "the trained variable does not move: its precision rounds a move of this size away, or the"
    " inner loss does not read the outer variable"
)


@dataclasses.dataclass(frozen=True)
class Metasmoothness:
    """Whether gradients through a training predict at the size of their use; prints as a table.

    Attributes:
        smoothness: S, the mean over directions: 1 where the trained variable moves along a line, 0
            where its two moves have nothing in common. NaN where it does not move, or is not
            finite.
        by_direction: S of each.
        size: h, the move of each outer number that was tried.
        moved: `||A(x + 2 h v) - A(x)|| / ||A(x) - init||`, the largest over directions.
        predicts: whether S is above `threshold`.
        threshold: as given.
        advice: what would raise S, the surest first; empty where it predicts.
    """

    smoothness: float
    by_direction: tuple[float, ...]
    size: float
    moved: float
    predicts: bool
    threshold: float
    advice: tuple[str, ...]

    def __str__(self) -> str:
        verdict = "predicts" if self.predicts else "does not predict"
        rows = [
            ("metasmoothness", f"{self.smoothness:.3f}, {verdict} (above {self.threshold:g} does)"),
            ("  by direction", ", ".join(f"{s:.3f}" for s in self.by_direction)),
            ("size of the move", f"{self.size:g}"),
            ("the trained moved by", f"{self.moved:.2e} of their way from the start"),
        ]
        rows += [("advice" if i == 0 else "", text) for i, text in enumerate(self.advice)]
        return "\n".join(f"{name:<20}  {text}" for name, text in rows)


def metasmoothness(
    problem: BilevelProblem,
    solver: Solver,
    outer: PyTree,
    init: PyTree,
    batch: Batch,
    *,
    size: float,
    key: jax.Array,
    direction: PyTree | None = None,
    num_directions: int = 1,
    threshold: float = THRESHOLD,
) -> Metasmoothness:
    """Compare two moves of a training in a row: do they agree, as a gradient assumes?

        S = sum_i w_i sign(A_i(x + h v) - A_i(x)) sign(A_i(x + 2 h v) - A_i(x + h v)),
        w = |A(x + 2 h v) - A(x)| / ||A(x + 2 h v) - A(x)||_1

    with A the trained inner variable. An unrolled gradient is exact, and yet says nothing of a move
    of size h where the training is rough at that size: it then returns a plausible direction that
    is noise, or one of norm 1e17. The norm alone tells only the second. Costs three trainings for
    one direction (two more for each further one), and no backward pass.
    (Engstrom et al., "Optimizing ML training with metagradient descent", 2025, definition 2.)

    Not for use under `jit`; compiles the training once. Meant for unrolled solvers; of an
    `Implicit`, it judges the training in the same way.

    Args:
        problem: the two losses.
        solver: the training, e.g. `Minimize(optimizer, 4096, sampling.Draw(64, key))`.
        outer: where to differentiate; a pytree of floating arrays.
        init: where the inner solver starts.
        batch: what each loss sees.
        size: h, how far each outer number will be moved by what the gradient is used for: 1 for the
            removal of an example of weight 1, the step size of an outer optimizer.
        key: draws the directions, +-1 at random for each outer number.
        direction: v, like `outer`, in place of a random one: the hypergradient's sign, for
            instance. `size` multiplies it.
        num_directions: random directions to take.
        threshold: S above which it counts as predicting.

    Raises:
        ValueError: a setting is out of its range, or `direction` is not like `outer`.
        TypeError: `key` is no random key; see also `value_and_hypergrad`.
    """
    _check.positive("size", size)
    _check.positive_integer("num_directions", num_directions)
    _check.fraction("threshold", threshold)
    _check.key("key", key)
    problem, _ = checked(problem, solver, outer, init, batch)
    if direction is not None:
        check_alike("direction", direction, "outer", outer)
        directions = [direction]
    else:
        directions = [_random_signs(k, outer) for k in jax.random.split(key, num_directions)]

    @jax.jit
    def train(outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        return variable_of(solver(problem.inner_loss, outer, init, data))

    @jax.jit
    def compare(start: PyTree, middle: PyTree, end: PyTree) -> jax.Array:
        return _agreement(start, middle, end)

    here = train(outer, init, batch.inner)
    found, moves = [], []
    for v in directions:
        middle, end = (
            train(_tree.add_scaled(outer, k * size, v), init, batch.inner) for k in (1, 2)
        )
        found.append(float(compare(here, middle, end)))
        moves.append(_relative(end, here, variable_of(init)))
    smoothness = float(np.mean(found))
    predicts = smoothness > threshold  # NaN compares false
    texts: tuple[str, ...] = ()
    if np.isnan(smoothness):
        texts = (_FLAT if bool(_tree.all_finite(here)) else _NOT_FINITE,)
    elif not predicts:
        texts = advice(problem, solver, outer, init, batch, size)
    return Metasmoothness(
        smoothness, tuple(found), float(size), max(moves), predicts, threshold, texts
    )


def _random_signs(key: jax.Array, outer: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(outer)
    keys = jax.random.split(key, len(leaves))
    signs = [
        jax.random.rademacher(k, jnp.shape(a), jnp.result_type(a))
        for k, a in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, signs)


def _agreement(start: PyTree, middle: PyTree, end: PyTree) -> jax.Array:
    """S; NaN where nothing moved."""

    def sums(a: jax.Array, b: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        wide = jnp.promote_types(a.dtype, jnp.float32)
        weight = jnp.abs((c - a).astype(wide))
        return jnp.sum(weight * jnp.sign(b - a) * jnp.sign(c - b)), jnp.sum(weight)

    leaves = zip(*(jax.tree.leaves(tree) for tree in (start, middle, end)), strict=True)
    parts = [sums(*leaf) for leaf in leaves]
    agreed, total = (jnp.stack(part).sum() for part in zip(*parts, strict=True))
    return agreed / total


def _relative(end: PyTree, here: PyTree, init: PyTree) -> float:
    way = float(_tree.norm(_tree.subtract(here, init)))
    return float(_tree.norm(_tree.subtract(end, here))) / way if way else float("nan")
