"""Where the gradient of an objective is taken, so that what was forgotten stays forgotten.

Each is `(loss, relearn, params, key) -> gradient`: `loss(params)` is the objective on this step's
texts, and `relearn(params)` the loss that somebody descends on who wants them back.
(SAM, random smoothing and gradient penalty: Fan et al., "Towards LLM Unlearning Resilient to
Relearning Attacks", ICML 2025.)
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import optax

import bilevel
from bilevel import linear

from ..components.settings import numbers_as_data

Params = Any
Scalar = Callable[[Params], jax.Array]


class Smoothing(Protocol):
    """See the module. `passes` counts gradients, or their like, of one step."""

    @property
    def passes(self) -> int:
        """Gradients, or their like, of one step."""
        ...

    def __call__(self, loss: Scalar, relearn: Scalar, params: Params, key: jax.Array) -> Params:
        """The gradient."""
        ...


@numbers_as_data()
@dataclasses.dataclass(frozen=True)
class Plain:
    """The gradient as it is."""

    passes = 1

    def __call__(self, loss: Scalar, relearn: Scalar, params: Params, key: jax.Array) -> Params:
        """The gradient of `loss`."""
        del relearn, key
        return jax.grad(loss)(params)


@numbers_as_data("radius")
@dataclasses.dataclass(frozen=True)
class SAM:
    """Sharpness-aware: the gradient at the worst point of a ball, to first order.

    `grad L(theta + rho grad L / ||grad L||)`, one norm over all parameters; how the worst point
    moves with theta is ignored.

    Attributes:
        radius: rho > 0.
    """

    radius: float | jax.Array = 0.1

    passes = 2

    def __call__(self, loss: Scalar, relearn: Scalar, params: Params, key: jax.Array) -> Params:
        """The gradient of `loss` at the perturbed point."""
        del relearn, key
        worst = optax.tree.add_scale(params, self.radius, direction(jax.grad(loss)(params)))
        return jax.grad(loss)(worst)


@numbers_as_data("deviation")
@dataclasses.dataclass(frozen=True)
class RandomSmoothing:
    """The mean gradient over normal perturbations of the parameters.

    Attributes:
        deviation: of each entry.
        draws: perturbations in each step.
    """

    deviation: float | jax.Array = 0.01
    draws: int = 3

    @property
    def passes(self) -> int:
        """One for each perturbation."""
        return self.draws

    def __call__(self, loss: Scalar, relearn: Scalar, params: Params, key: jax.Array) -> Params:
        """The mean of the gradients."""
        del relearn

        def one(total: Params, key: jax.Array) -> tuple[Params, None]:
            noise = optax.tree.random_like(key, params)
            moved = optax.tree.add_scale(params, self.deviation, noise)
            return optax.tree.add_scale(total, 1 / self.draws, jax.grad(loss)(moved)), None

        start = optax.tree.zeros_like(params)
        return jax.lax.scan(one, start, jax.random.split(key, self.draws))[0]


@numbers_as_data("weight")
@dataclasses.dataclass(frozen=True)
class GradientPenalty:
    """`grad (L + w ||grad L||)`, one Hessian product; the released code drops the second gradient.

    Attributes:
        weight: of the norm.
    """

    weight: float | jax.Array = 0.1

    passes = 3

    def __call__(self, loss: Scalar, relearn: Scalar, params: Params, key: jax.Array) -> Params:
        """The gradient of the penalised loss."""
        del relearn, key
        slope = jax.grad(loss)
        grads = slope(params)
        curved = jax.jvp(slope, (params,), (direction(grads),))[1]
        return optax.tree.add_scale(grads, self.weight, curved)


@numbers_as_data("rate", "pull")
@dataclasses.dataclass(frozen=True)
class AttackerAware:
    """Bi-level: the objective is judged after an attacker has relearned, and differentiated there.

    The lower level moves the parameters by d to relearn, at a price for going far:

        d*(theta) = argmin_d  R(theta + d) + pull / 2 ||d||^2          (k gradient steps from 0)
        min_theta  L(theta + d*(theta))

    `unrolled` differentiates the k steps; `implicit` the minimiser, by `(H + pull I)^-1`; and
    `one_step` the last step alone. SAM is the one-step attacker whose step has a fixed length and
    no derivative.

    Attributes:
        rate: of the attacker's steps.
        num_steps: k.
        pull: price of distance.
        rule: how the hypergradient is taken.
    """

    rate: float | jax.Array = 1.0
    num_steps: int = 2
    pull: float | jax.Array = 0.1
    rule: Literal["unrolled", "implicit", "one_step"] = "unrolled"

    SYSTEM_STEPS = 4

    @property
    def passes(self) -> int:
        """A Hessian product counts two."""
        extra = {"unrolled": 2 * self.num_steps, "implicit": 2 * (self.SYSTEM_STEPS + 2)}
        return self.num_steps + 1 + extra.get(self.rule, 2)

    def solver(self) -> bilevel.Solver:
        """The attacker, wrapped by the rule."""
        attacker = bilevel.Minimize(optax.sgd(self.rate), self.num_steps)
        if self.rule == "unrolled":
            return attacker
        if self.rule == "one_step":
            return bilevel.OneStep(attacker, bilevel.Minimize(optax.sgd(self.rate), 1))
        # A few steps only: the attacker is not at its minimum, and where H is not positive the
        # steps of CG after that say nothing.
        return bilevel.Implicit(attacker, linear.CG(max_steps=self.SYSTEM_STEPS, tolerance=1e-2))

    def __call__(self, loss: Scalar, relearn: Scalar, params: Params, key: jax.Array) -> Params:
        """The hypergradient, by the library."""
        del key

        def attack(outer: Params, moved: Params, data: Any) -> jax.Array:
            del data
            near = optax.tree.norm(moved, squared=True)
            return relearn(optax.tree.add(outer, moved)) + self.pull / 2 * near

        def judge(outer: Params, moved: Params, data: Any) -> jax.Array:
            del data
            return loss(optax.tree.add(outer, moved))

        problem = bilevel.BilevelProblem(outer_loss=judge, inner_loss=attack)
        start = optax.tree.zeros_like(params)
        batch = bilevel.Batch(inner=(), outer=())
        # Without the evidence of `bilevel.hypergradient`, which nobody looks at here and which
        # takes longer to compile than the rest.
        return bilevel.value_and_hypergrad(problem, self.solver())(params, start, batch)[1]


def direction(grads: Params) -> Params:
    """Of length one over all leaves; zero stays zero."""
    norm = optax.tree.norm(grads)
    return optax.tree.scale(1 / jnp.where(norm > 0, norm, 1.0), grads)
