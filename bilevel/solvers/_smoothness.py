"""Refuse to differentiate what has no derivative: some optimizers, and some gradients."""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import optax

from bilevel import _tree
from bilevel._carried import carried
from bilevel._problem import PyTree

# Enough for what acts at every n-th step only, such as `optax.MultiSteps`.
_STEPS = 16
_SAFE = (
    "wrap the solver in `Implicit`, which takes no derivative of its steps, or unroll"
    " `optax.sgd(..., momentum=0.9)`."
)
_REFUSALS = {
    "zero": (
        "its update has no finite derivative where a gradient entry is zero, so one dead input"
        " would make every hypergradient NaN. Give it an `eps_root`, such as"
        " `optax.adam(..., eps_root={eps_root})` (`adamw`, `nadam`, `lamb` take one as well), or"
        f" {_SAFE}"
    ),
    "everywhere": (
        "its update has no finite derivative, whatever the gradient, so every hypergradient would"
        f" be NaN. No setting of it mends that: {_SAFE}"
    ),
    "flat": (
        "its update follows the sign of the gradient, whose derivative is zero by construction, so"
        " no hypergradient would flow through it. Say so by `SignUnrolled`, which is made for"
        f" such steps, {_SAFE}"
    ),
    "loop": (
        "its update runs a loop of unknown length (a line search), which cannot be differentiated"
        f" in reverse: {_SAFE}"
    ),
}

# Smooth wherever they are finite. Not among them: a comparison, which can make a jump.
_POLYNOMIAL = {"add", "add_any", "broadcast_in_dim", "concatenate", "copy", "dot_general", "mul"}
_POLYNOMIAL |= {"neg", "reduce_sum", "reshape", "select_n", "slice", "squeeze", "sub", "transpose"}

# By the update function: an optimizer has no other identity, and holds no tracer here.
_judged: weakref.WeakKeyDictionary[Any, dict[Any, str | None]] = weakref.WeakKeyDictionary()


def watched(grads: PyTree, optimizer: optax.GradientTransformation, mode: str = "mixed") -> PyTree:
    """`grads`, that raise a ValueError when they are differentiated and `optimizer` cannot be.

    `optax.adam` with `eps_root=0` divides by `sqrt(v)`, of infinite slope at v = 0: a weight that
    no input reaches has a gradient of exactly zero, and one such weight turns every hypergradient
    into NaN. Nothing happens where no derivative is taken (`Implicit`, `SignUnrolled`).

    Args:
        grads: pytree of floating arrays, on its way to `optimizer`.
        optimizer: an Optax transformation.
        mode: "mixed" is differentiated in reverse only, so that a loop of unknown length is
            refused; "reverse" may be pushed forward as well.
    """

    def rule(grads: PyTree, _: PyTree, moved: list[jax.Array]) -> PyTree:
        flaw = _flaw(optimizer, grads)
        if flaw is not None and (flaw != "loop" or mode == "mixed"):
            reason = _REFUSALS[flaw].format(eps_root=_eps_root(grads))
            raise ValueError(f"`optimizer` is differentiated by unrolling, but {reason}")
        return moved

    return carried(rule, grads, grads, again=False)


def differentiable_once(tree: PyTree, rule: str) -> PyTree:
    """`tree`, a first derivative by `rule`, that raises a ValueError when it is differentiated."""

    def refuse(*_: PyTree) -> PyTree:
        raise ValueError(
            f"`{rule}` gives a first derivative only, and what it computed is being differentiated"
            " again. For second derivatives unroll (`Minimize` alone) or wrap the solver in"
            " `Implicit`, whose gradients can be differentiated in reverse mode again and again."
        )

    return carried(refuse, tree, tree, again=False)


def _eps_root(grads: PyTree) -> str:
    """Small, and yet of a slope that is finite in the precision of `grads` and does not explode.

    1e-8 fails at both: float16 rounds it to zero, and over hundreds of steps its slope of up to
    5,000 makes a gradient that predicts nothing.
    """
    half = any(a.dtype == jnp.float16 for a in jax.tree.leaves(grads))
    return "1e-4" if half else "1e-5"


def _flaw(optimizer: optax.GradientTransformation, grads: PyTree) -> str | None:
    """A key of `_REFUSALS`, or None; tried once for each optimizer and structure of `grads`."""
    leaves, structure = jax.tree.flatten(grads)
    key = (structure, tuple((jnp.shape(a), a.dtype) for a in leaves))
    known = _judged.setdefault(optimizer.update, {})
    if key not in known:
        known[key] = _verdict(optimizer, grads)
    return known[key]


def _verdict(optimizer: optax.GradientTransformation, grads: PyTree) -> str | None:
    full = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), a.dtype), grads)
    small = jax.tree.map(lambda a: jax.ShapeDtypeStruct(_small(a.shape), a.dtype), full)
    # An optimizer that knows its leaves by their shapes takes no other ones.
    for like in (small, full):
        try:
            traced = jax.make_jaxpr(lambda grads: _moved(optimizer, like, grads))(_pattern(like))  # noqa: B023
        except Exception:  # whatever an optimizer raises at leaves that it does not know
            continue
        return None if _polynomial(traced.jaxpr) else _tried(optimizer, like)
    return None  # it does not run at all, and will say so itself


def _small(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of the same kind (a wide matrix stays wide), with one entry to be zero and one not to be."""
    if not shape:
        return (2,)
    return (*(min(size, 3) for size in shape[:-1]), min(max(shape[-1], 2), 4))


def _polynomial(jaxpr: Any) -> bool:
    """Whether floats meet only operations that are smooth everywhere, as in SGD with momentum.

    Then a look at the equations replaces the trial. What is computed from integers alone (rates
    by a schedule) is no matter: it has no derivative.
    """
    varying: set[Any] = set(jaxpr.invars) | set(jaxpr.constvars)
    for equation in jaxpr.eqns:
        varies = [v for v in equation.invars if not isinstance(v, jex.core.Literal)]
        varies = [v for v in varies if v in varying and jnp.issubdtype(v.aval.dtype, jnp.inexact)]
        if not varies:
            continue
        inside = equation.params.get("jaxpr")
        if equation.primitive.name in ("jit", "pjit", "scan"):
            if not _polynomial(inside.jaxpr):
                return False
        elif equation.primitive.name not in _POLYNOMIAL:
            return False
        varying.update(equation.outvars)
    return True


class _Trial(NamedTuple):
    """What an optimizer did in `_STEPS` steps from fixed gradients; scalar bools."""

    finite: jax.Array  # its derivative, where no entry of the gradient is zero
    finite_at_zero: jax.Array  # and where some are
    flat: jax.Array  # the derivative of some leaf is zero, though its sign makes a difference


def _tried(optimizer: optax.GradientTransformation, like: PyTree) -> str | None:
    """The verdict of a trial, in one compiled program."""
    try:
        pure, consts = _tree.hoist(lambda: _trial(optimizer, like))
    except ValueError:  # it runs, but not backwards
        return "loop"
    # Settings that are traced (a learned rate) have no value yet; one half is a fair rate, decay
    # rate or epsilon.
    given = tuple(_typical(a) if isinstance(a, jax.core.Tracer) else a for a in consts)
    # With XLA's own options: its `xla_backend_optimization_level` 0 makes NaN of some programs.
    program = jax.jit(pure).lower(given).compile()
    trial = jax.device_get(program(given))
    if trial.flat:
        return "flat"
    if trial.finite_at_zero:
        return None
    return "zero" if trial.finite else "everywhere"


def _typical(setting: Any) -> np.ndarray:
    half = 0.5 if jnp.issubdtype(setting.dtype, jnp.inexact) else 1
    return np.full(setting.shape, half, setting.dtype)


def _trial(optimizer: optax.GradientTransformation, like: PyTree) -> _Trial:
    """Three runs side by side: gradients, the same with zero entries, and minus those."""

    def runs(a: np.ndarray) -> np.ndarray:
        with_zeros = a.copy()
        for axis in range(1, a.ndim):  # axis 0 counts the steps; a dead input, a dead unit
            if a.shape[axis] > 1:
                np.moveaxis(with_zeros, axis, 0)[0] = 0
        return np.stack([a, with_zeros, -with_zeros])

    grads = jax.tree.map(runs, _pattern(like))
    moved, pull = jax.vjp(jax.vmap(lambda grads: _moved(optimizer, like, grads)), grads)
    slopes = pull(jax.tree.map(lambda a, g: g[:, 0].astype(a.dtype), moved, grads))[0]
    finite, finite_at_zero, _ = jax.vmap(_tree.all_finite)(slopes)
    # Judged at zero entries, where clipping by value lets a derivative through.
    flat = jax.tree.map(lambda s, a: jnp.all(s[1] == 0) & jnp.any(a[1] != a[2]), slopes, moved)
    return _Trial(finite, finite_at_zero, jnp.any(jnp.stack(jax.tree.leaves(flat))))


def _moved(optimizer: optax.GradientTransformation, like: PyTree, grads: PyTree) -> PyTree:
    """The parameters after one step for each gradient of the stacks `grads`."""
    update = optax.with_extra_args_support(optimizer).update
    square: Callable[[PyTree], jax.Array] = lambda p: 0.5 * _tree.vdot(p, p)

    def step(state: tuple[PyTree, PyTree], grads: PyTree) -> tuple[tuple[PyTree, PyTree], None]:
        params, opt_state = state
        updates, opt_state = update(
            grads, opt_state, params, value=square(params), grad=grads, value_fn=square
        )
        return (optax.apply_updates(params, updates), opt_state), None

    params = jax.tree.map(lambda a: jnp.asarray(a[0]), _pattern(like))
    state = _tree.strengthen(optimizer.init(params))
    return jax.lax.scan(step, (params, state), grads)[0][0]


def _pattern(like: PyTree) -> PyTree:
    """`_STEPS` fixed arrays like each leaf of `like`, of sizes .03 to 1 and of both signs."""

    def leaf(a: Any) -> np.ndarray:
        entries = 1.0 + 0.5 * np.cos(1.0 + np.arange(_STEPS * int(np.prod(a.shape))))
        sizes = (-1.0) ** (np.arange(_STEPS) // 3) * 10.0 ** (-0.5 * (np.arange(_STEPS) % 4))
        return (
            (entries.reshape(_STEPS, -1) * sizes[:, None]).reshape(_STEPS, *a.shape).astype(a.dtype)
        )

    return jax.tree.map(leaf, like)
