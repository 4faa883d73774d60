"""The settings of the algorithms: one name is one meaning, and one check, in all of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _check
from bilevel._problem import PyTree, check_is_problem

Projection = Callable[[PyTree], PyTree]
Minibatch = Callable[[PyTree, jax.Array], PyTree]
# A number, or a schedule: a function of the int32 step count, as Optax's are.
Number = float | jax.Array | Callable[[Any], Any]


def at(value: Number, count: jax.Array | None) -> jax.Array | float:
    """The value of a number, or of a schedule at this count."""
    return value(count) if callable(value) else value


def below(name: str, value: Any, bound: float) -> None:
    """Raise a ValueError unless `value` is a number in (0, bound)."""
    _check.positive(name, value)
    if _check.is_known(value) and value >= bound:
        raise ValueError(f"`{name}` must lie in (0, {bound:g}), got {value!r}.")


def _seed(name: str, value: Any) -> None:
    # A traced seed, as a `vmap` over seeds has it, has no value to check yet.
    if not (isinstance(value, jax.core.Tracer) and jnp.issubdtype(value.dtype, jnp.integer)):
        _check.seed(name, value)


def _zero_or_more(name: str, value: Any) -> None:
    if not _check.is_integer(value) or value < 0:
        raise ValueError(f"`{name}` must be an integer >= 0, got {value!r}.")


def _several(name: str, value: Any) -> None:
    _check.positive_integer(name, value)
    if value < 2:
        raise ValueError(
            f"`{name}` must be at least 2, got {value}: each is measured against the others."
        )


def _optional(check: Callable[[str, Any], None]) -> Callable[[str, Any], None]:
    return lambda name, value: None if value is None else check(name, value)


def _function(what: str) -> Callable[[str, Any], None]:
    return _optional(lambda name, value: _check.function(name, value, what))


CHECKS: dict[str, Callable[[str, Any], None]] = {
    "problem": lambda _, value: check_is_problem(value),
    "solver": _check.solver,
    "inner_optimizer": _check.optimizer,
    "linear_optimizer": _check.optimizer,
    "outer_optimizer": _check.optimizer,
    "projection": lambda _, value: _check.projection(value),
    "inner_projection": _function("of the inner variable"),
    "minibatch": lambda _, value: _check.minibatch(value),
    "seed": _optional(_seed),
    "num_inner_steps": _check.positive_integer,
    "num_linear_steps": _check.positive_integer,
    "num_terms": _check.positive_integer,
    "num_inner": _check.positive_integer,
    "num_outer": _check.positive_integer,
    "num_kept": _check.positive_integer,
    "order": _check.positive_integer,
    "num_pairs": _check.positive_integer,
    "num_pieces": _check.positive_integer,
    "num_directions": _check.positive_integer,
    "num_samples": _several,
    "num_warm_steps": _zero_or_more,
    "period": _check.positive_integer,
    "probability": _check.fraction,
    "inner_step_size": _check.positive_schedule,
    "linear_step_size": _check.positive,
    "momentum_weight": _check.weight,
    "inner_momentum_weight": _check.weight,
    "outer_momentum_weight": _check.weight,
    "penalty": _check.positive_schedule,
    "implicit_weight": _optional(_check.non_negative),
    "control": lambda name, value: below(name, value, 1.0),
    "damping": _check.non_negative,
    "margin": lambda name, value: below(name, value, 0.5),
    "radius": _check.positive,
    "ridge": _check.positive,
    "sharpness": _check.positive,
    "sigma": _check.positive,
    "smoothing": _check.positive,
    "tolerance": _optional(_check.positive_schedule),
    "prox": _function("`(outer, inner, step_size) -> inner`"),
    "nonsmooth_loss": _function("`(outer, inner) -> scalar`"),
    "start": _function("`(key, inner) -> inner`"),
}


def check_settings(method: Any) -> None:
    """Raise a TypeError or a ValueError that names the first setting which is not as it must be."""
    for field in dataclasses.fields(method):
        if field.name in CHECKS:
            CHECKS[field.name](field.name, getattr(method, field.name))


class Checked:
    """Base of the algorithms: when one is made, its settings are checked by their names."""

    def __post_init__(self) -> None:
        """Check every setting that has a range."""
        check_settings(self)
