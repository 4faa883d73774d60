"""SABA: SOBA whose directions remember every minibatch's last contribution.

Dagréou, Ablin, Vaiter and Moreau, "A framework for bilevel optimization that enables stochastic and
global variance reduction algorithms", NeurIPS 2022, Algorithm 1 with SABA's directions: SAGA
(Defazio, Bach and Lacoste-Julien, NeurIPS 2014) for each sum in them. With a table t of what each
minibatch i gave when it was last drawn, a sum's estimate is

    s(z; i) - t_i + mean(t),    then  t_i = s(z; i)

for `grad_y G`, `H u`, `C' u` (drawn from the inner stack) and F, `grad_x F`, `grad_y F` (from the
outer one). A step costs as much as one of SOBA; memory is a table of `num_inner` times two inner
variables and an outer one, and `num_outer` times one of each.

A mean that only ever changes by `(s - t_i) / n` keeps for ever what was rounded away while a row
was huge, so each is computed from its table again every n steps: one row a step on average.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _tree
from bilevel._describe import settings
from bilevel._directions import (
    Point,
    Products,
    Slopes,
    StepInfo,
    combine,
    inner_products,
    move,
    outer_slopes,
    start_point,
    step_info,
    zero_value,
)
from bilevel._finite_sum import check_stacks, draw, pick, sizes
from bilevel._problem import Batch, BilevelProblem, PyTree
from bilevel._settings import Checked, Projection


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
        opt_states: states of the optimizers of these three.
        products: table of the inner stack.
        slopes: table of the outer stack.
        step_count: int32, steps taken.
        key: says what is drawn next.
    """

    outer: PyTree
    inner: PyTree
    adjoint: PyTree
    opt_states: Point
    products: Table
    slopes: Table
    step_count: jax.Array
    key: jax.Array


@settings
class SABA(Checked):
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

    problem: BilevelProblem
    inner_optimizer: optax.GradientTransformation
    linear_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    num_inner: int
    num_outer: int
    projection: Projection | None = None
    seed: int = 0

    def init(self, outer: PyTree, inner: PyTree) -> SABAState:
        """The state before the first step; `outer` is projected first, the adjoint is zero.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        point, opt_states = start_point(self, outer, inner)
        outer, inner, adjoint = point
        like = Products(value=None, gradient=inner, hessian=adjoint, cross=outer)
        products = _empty(like, self.num_inner)
        slopes = _empty(Slopes(zero_value(inner), outer, inner), self.num_outer)
        key = jax.random.key(self.seed)
        return SABAState(*point, opt_states, products, slopes, jnp.int32(0), key)

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
        level, fresh_products = fresh_products.value, fresh_products._replace(value=None)
        step_count = state.step_count + 1
        products, products_table = _remember(state.products, i, fresh_products, step_count)
        slopes, slopes_table = _remember(state.slopes, j, fresh_slopes, step_count)
        found = combine(products, slopes)._replace(level=level)
        point, opt_states = move(self, point, state.opt_states, found)
        state = SABAState(*point, opt_states, products_table, slopes_table, step_count, key)
        return state, step_info(found)


def _empty(like: PyTree, size: int) -> Table:
    rows = jax.tree.map(lambda a: jnp.zeros((size, *a.shape), a.dtype), like)
    return Table(rows, jax.tree.map(jnp.zeros_like, like))


def _remember(
    table: Table, index: jax.Array, fresh: PyTree, step_count: jax.Array
) -> tuple[PyTree, Table]:
    """The estimate of the sum, and the table with this minibatch's row replaced."""
    change = _tree.subtract(fresh, pick(table.rows, index))
    size = jax.tree.leaves(table.rows)[0].shape[0]
    rows = jax.tree.map(
        lambda a, b: a.at[index].set(b, mode="promise_in_bounds"), table.rows, fresh
    )
    mean = jax.lax.cond(
        step_count % size == 0,
        lambda: jax.tree.map(lambda a: jnp.mean(a, axis=0), rows),
        lambda: _tree.add_scaled(table.mean, 1.0 / size, change),
    )
    return _tree.add(table.mean, change), Table(rows, mean)
