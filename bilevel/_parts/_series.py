"""Hypergradients whose adjoint is a truncated Neumann series, sampled term by term.

With an independent sample `H_i` of the Hessian for each product, at a step size s,

    series         u = s sum_{k < K} (I - s H_k) ... (I - s H_1) v          (K - 1 products)
    random power   u = K s (I - s H_p) ... (I - s H_1) v,  p uniform below K   (p products)

have the same expectation, `s sum_{k < K} (I - s H)^k v`, which misses `(I - s H)^K H^-1 v`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from bilevel import _check, _tree
from bilevel._parts._directions import Directions, Point, combine, inner_products, outer_slopes
from bilevel._parts._single_loop import descend, start
from bilevel._problem import Batch, BilevelProblem, Loss, PyTree, check_is_problem, check_problem

Product = Callable[[jax.Array, PyTree], PyTree]
Minibatch = Callable[[PyTree, jax.Array], PyTree]


def series(
    product: Product, rhs: PyTree, num_terms: int, step_size: float
) -> tuple[PyTree, PyTree]:
    """The series of `num_terms`, and its last power: the residual of the term before it."""

    def extend(
        carry: tuple[PyTree, PyTree], index: jax.Array
    ) -> tuple[tuple[PyTree, PyTree], None]:
        power, total = carry
        power = _tree.add_scaled(power, -step_size, product(index, power))
        return (power, _tree.add(total, power)), None

    (power, total), _ = jax.lax.scan(extend, (rhs, rhs), jnp.arange(num_terms - 1))
    return _tree.scale(step_size, total), power


def random_power(
    product: Product, rhs: PyTree, num_terms: int, step_size: float, key: jax.Array
) -> PyTree:
    """One power of the series, at random, weighted so that the expectation is the series."""
    last = jax.random.randint(key, (), 0, num_terms)
    multiply = lambda i, power: _tree.add_scaled(power, -step_size, product(i, power))
    return _tree.scale(num_terms * step_size, jax.lax.fori_loop(0, last, multiply, rhs))


def products(
    loss: Loss, outer: PyTree, inner: PyTree, data: PyTree, minibatch: Minibatch | None
) -> Product:
    """`(i, v) -> H_i v`; without a `minibatch` every H is that of all `data`, linearised once."""
    gradient = jax.grad(loss, argnums=1)
    if minibatch is None:
        _, hvp = jax.linearize(lambda y: gradient(outer, y, data), inner)
        return lambda index, vector: hvp(vector)

    def product(index: jax.Array, vector: PyTree) -> PyTree:
        part = minibatch(data, index)
        return jax.jvp(lambda y: gradient(outer, y, part), (inner,), (vector,))[1]

    return product


def seen(data: PyTree, minibatch: Minibatch | None, index: int | jax.Array) -> PyTree:
    """What one of several steps or products sees: its minibatch of `data`, or all of it."""
    return data if minibatch is None else minibatch(data, jnp.asarray(index))


def check_minibatches(
    problem: BilevelProblem, minibatch: Minibatch | None, outer: PyTree, inner: PyTree, batch: Batch
) -> None:
    """`check_problem` of what the inner loss sees at one step."""
    if isinstance(batch, Batch) and minibatch is not None:
        batch = batch._replace(inner=jax.eval_shape(minibatch, batch.inner, jnp.int32(0)))
    check_problem(problem, outer, inner, batch)


@dataclasses.dataclass(frozen=True)
class SeriesMethod:
    """Abstract: the settings and the estimates of methods whose adjoint is a sampled series."""

    problem: BilevelProblem
    inner_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    num_terms: int = dataclasses.field(kw_only=True)
    linear_step: float = dataclasses.field(kw_only=True)
    projection: Callable[[PyTree], PyTree] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_is_problem(self.problem)
        _check.optimizer("inner_optimizer", self.inner_optimizer)
        _check.optimizer("outer_optimizer", self.outer_optimizer)
        _check.positive_integer("num_terms", self.num_terms)
        _check.positive("linear_step", self.linear_step)
        _check.projection(self.projection)

    def _start(self, outer: PyTree, inner: PyTree) -> tuple[PyTree, PyTree, tuple[PyTree, PyTree]]:
        outer, inner = start(outer, inner, self.projection)
        opt_states = (self.outer_optimizer.init(outer), self.inner_optimizer.init(inner))
        return outer, inner, _tree.strengthen(opt_states)

    def _first_key(self) -> jax.Array | None:
        """Of the state: None where nothing is drawn."""
        return None

    def _invert(
        self, product: Product, rhs: PyTree, key: jax.Array | None
    ) -> tuple[PyTree, PyTree | None]:
        """The adjoint, and what is left of `rhs` where it is known for free."""
        return series(product, rhs, self.num_terms, self.linear_step)

    def _directions(
        self,
        problem: BilevelProblem,
        outer: PyTree,
        inner: PyTree,
        batch: Batch,
        minibatch: Minibatch | None,
        key: jax.Array | None = None,
    ) -> Directions:
        """The directions at the series' adjoint: `outer` is the hypergradient's estimate."""
        loss, data = problem.inner_loss, batch.inner if batch.linear is None else batch.linear
        slopes = outer_slopes(problem.outer_loss, Point(outer, inner, None), batch.outer)
        product = products(loss, outer, inner, data, minibatch)
        adjoint, residual = self._invert(product, slopes.inner, key)
        last = seen(data, minibatch, self.num_terms - 1)
        found = combine(inner_products(loss, Point(outer, inner, adjoint), last), slopes)
        return found if residual is None else found._replace(adjoint=residual)


@dataclasses.dataclass(frozen=True)
class RandomPowerMethod(SeriesMethod):
    """Abstract: a `SeriesMethod` that computes one power of the series, at random."""

    seed: int = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.seed("seed", self.seed)

    def _first_key(self) -> jax.Array | None:
        return jax.random.key(self.seed)

    def _invert(
        self, product: Product, rhs: PyTree, key: jax.Array | None
    ) -> tuple[PyTree, PyTree | None]:
        assert key is not None
        return random_power(product, rhs, self.num_terms, self.linear_step, key), None


def inner_descent(
    problem: BilevelProblem,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    minibatch: Minibatch | None,
    outer: PyTree,
    inner: PyTree,
    opt_state: PyTree,
    data: PyTree,
) -> tuple[PyTree, PyTree, PyTree]:
    """`num_steps` inner steps: the inner variable, the optimizer's state, the last gradient."""

    def step(carry: tuple[PyTree, PyTree, PyTree], index: jax.Array) -> tuple[PyTree, None]:
        inner, opt_state, _ = carry
        part = seen(data, minibatch, index)
        gradient = jax.grad(problem.inner_loss, argnums=1)(outer, inner, part)
        return (*descend(optimizer, gradient, opt_state, inner), gradient), None

    if num_steps == 1:
        return step((inner, opt_state, None), jnp.int32(0))[0]
    zero = jax.tree.map(jnp.zeros_like, inner)
    return jax.lax.scan(step, (inner, opt_state, zero), jnp.arange(num_steps))[0]
