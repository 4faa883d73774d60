"""SABA: SOBA whose directions remember every minibatch's last contribution.

Dagréou, Ablin, Vaiter and Moreau, "A framework for bilevel optimization that enables stochastic and
global variance reduction algorithms", NeurIPS 2022, Algorithm 1 with SABA's directions: SAGA
(Defazio, Bach and Lacoste-Julien, NeurIPS 2014) for each sum in them. With a table t of what each
minibatch i gave when it was last drawn, a sum's estimate is

    s(z; i) - t_i + mean(t),    then  t_i = s(z; i)

for `grad_y G`, `H u`, `C' u` (drawn from the inner stack) and F, `grad_x F`, `grad_y F` (from the
outer one). A step costs as much as one of SOBA; memory is a table of `num_inner` times two inner
variables and an outer one, and `num_outer` times one of each.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _check, _tree
from bilevel._parts._directions import (
    Point,
    Products,
    Slopes,
    StepInfo,
    combine,
    inner_products,
    outer_slopes,
    step_info,
    zero_value,
)
from bilevel._parts._finite_sum import check_stacks, draw, pick, sizes
from bilevel._parts._single_loop import SingleLoop
from bilevel._problem import Batch, PyTree


class Table(NamedTuple):
    """What each minibatch gave when it was last drawn, `[n, ...]`, and the mean over them."""

    rows: PyTree
    mean: PyTree


class SABAState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: the outer variable.
        inner: tracks the inner solution.
        adjoint: tracks the solution u of `H u = grad_y F`.
        opt_states: states of the three optimizers, in the same order.
        products: table of the inner stack.
        slopes: table of the outer stack.
        key: says what is drawn next.
    """

    outer: PyTree
    inner: PyTree
    adjoint: PyTree
    opt_states: PyTree
    products: Table
    slopes: Table
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class SABA(SingleLoop):
    """Finite sums with constant rates at SOBA's cost a step, for a table in memory.

    Prefer it over `SOBA` when the data is a fixed set, as it does not stall at a noise floor: the
    squared hypergradient falls as `1 / t`, and linearly where the value function satisfies the
    Polyak-Lojasiewicz inequality. Prefer `SRBA` or `SPABA` when the table is too large.

    Differs from the paper in that the sum is over minibatches of a fixed partition (of one example
    each in the paper), in the projection, and in any Optax optimizer. The tables begin with zeros.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along the estimate of `grad_y G`; see `SOBA`.
        linear_optimizer: moves u along that of `H u - grad_y F`.
        outer_optimizer: moves x along that of the hypergradient.
        num_inner: minibatches in the inner stack: rows of its table. The theory's rates shrink as
            `num_inner ** (-2 / 3)`.
        num_outer: minibatches in the outer stack.
        projection: maps the outer variable back to its feasible set after each step, or None.
        seed: of the minibatches that are drawn. For other draws set `state.key`.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `num_inner` or `num_outer` is not an integer >= 1, or `seed` is out of range.
    """

    num_inner: int = dataclasses.field(kw_only=True)
    num_outer: int = dataclasses.field(kw_only=True)
    seed: int = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.positive_integer("num_inner", self.num_inner)
        _check.positive_integer("num_outer", self.num_outer)
        _check.seed("seed", self.seed)

    def init(self, outer: PyTree, inner: PyTree) -> SABAState:
        """The state before the first step; raises as `SOBA.init` does."""
        point, opt_states = self._start(outer, inner)
        outer, inner, adjoint = point
        products = _empty(Products(gradient=inner, hessian=adjoint, cross=outer), self.num_inner)
        slopes = _empty(Slopes(zero_value(inner), outer, inner), self.num_outer)
        return SABAState(*point, opt_states, products, slopes, jax.random.key(self.seed))

    def step(self, state: SABAState, batch: Batch) -> tuple[SABAState, StepInfo]:
        """One step of all three variables; the info tells of the estimated directions.

        Args:
            state: from `init` or the step before.
            batch: stacks of `num_inner` and `num_outer` minibatches, the same at every step: see
                `sampling.partition`.

        Raises:
            TypeError: see `value_and_hypergrad`.
            ValueError: a stack has another length, or `batch.linear` is given.
        """
        check_stacks(self.problem, state.outer, state.inner, batch)
        for name, size in zip(("inner", "outer"), sizes(batch), strict=True):
            if size != getattr(self, f"num_{name}"):
                raise ValueError(
                    f"`batch.{name}` must be a stack of num_{name}={getattr(self, f'num_{name}')}"
                    f" minibatches, got {size}."
                )
        point = Point(state.outer, state.inner, state.adjoint)
        key, draw_key = jax.random.split(state.key)
        i, j = draw(draw_key, batch)
        fresh_products = inner_products(self.problem.inner_loss, point, pick(batch.inner, i))
        fresh_slopes = outer_slopes(self.problem.outer_loss, point, pick(batch.outer, j))
        products, products_table = _remember(state.products, i, fresh_products)
        slopes, slopes_table = _remember(state.slopes, j, fresh_slopes)
        found = combine(products, slopes)
        point, opt_states = self._descend(point, state.opt_states, found)
        state = SABAState(*point, opt_states, products_table, slopes_table, key)
        return state, step_info(*found)


def _empty(like: PyTree, size: int) -> Table:
    rows = jax.tree.map(lambda a: jnp.zeros((size, *a.shape), a.dtype), like)
    return Table(rows, jax.tree.map(jnp.zeros_like, like))


def _remember(table: Table, index: jax.Array, fresh: PyTree) -> tuple[PyTree, Table]:
    """The estimate of the sum, and the table with this minibatch's row replaced."""
    change = _tree.subtract(fresh, pick(table.rows, index))
    size = jax.tree.leaves(table.rows)[0].shape[0]
    rows = jax.tree.map(
        lambda a, b: a.at[index].set(b, mode="promise_in_bounds"), table.rows, fresh
    )
    mean = _tree.add_scaled(table.mean, 1.0 / size, change)
    return _tree.add(table.mean, change), Table(rows, mean)
