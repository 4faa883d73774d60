"""Wrong input: an error before any computing that names the argument, its value and the fix."""

import jax
import jax.numpy as jnp
import optax
import pytest

from bilevel import (
    Batch,
    BilevelProblem,
    DoubleLoop,
    Implicit,
    Minimize,
    OneStep,
    SignUnrolled,
    Truncated,
    hypergradient,
    linear,
    run,
    value_and_hypergrad,
)

SUM = lambda outer, inner, batch: jnp.sum(inner["w"] ** 2) + jnp.sum(outer**2)
GOOD = BilevelProblem(SUM, SUM)
SOLVER = Minimize(optax.sgd(0.1), 4)
INIT = {"w": jnp.zeros(3)}
ADJOINT = {"w": jnp.zeros(4)}
DOUBLE_LOOP = DoubleLoop(GOOD, SOLVER, optax.sgd(0.1))
STATE = DOUBLE_LOOP.init(jnp.zeros(2), INIT)


def evaluate(problem=GOOD, solver=SOLVER, outer=None, init=INIT, batch=None, adjoint=None):
    outer = jnp.zeros(2) if outer is None else outer
    return hypergradient(problem, solver, outer, init, batch or Batch(), adjoint)


INPUTS = {
    "inner loss not scalar": (
        lambda: evaluate(BilevelProblem(SUM, lambda x, y, b: y["w"])),
        r"`inner_loss` must return one floating scalar, got float32\[3\]. Take a mean or a sum",
    ),
    "outer loss not scalar": (
        lambda: evaluate(BilevelProblem(lambda x, y, b: x, SUM)),
        r"`outer_loss` must return one floating scalar, got float32\[2\]",
    ),
    "outer loss with auxiliary output": (
        lambda: evaluate(BilevelProblem(lambda x, y, b: (jnp.sum(x), y), SUM)),
        r"`outer_loss` must return a scalar or `\(scalar, Aux\)`, got a tuple",
    ),
    "integer loss": (
        lambda: evaluate(BilevelProblem(lambda x, y, b: jnp.int32(1), SUM)),
        r"`outer_loss` must return one floating scalar, got int32\[\]",
    ),
    "integer leaf in inner": (
        lambda: evaluate(init={"w": jnp.zeros(3), "count": {"n": jnp.arange(2)}}),
        r"`inner` must hold floating arrays only, got int32\[2\] at `inner\['count'\]\['n'\]`",
    ),
    "integer outer": (
        lambda: evaluate(outer=jnp.arange(3)),
        r"`outer` must hold floating arrays only, got int32\[3\] at `outer`",
    ),
    "Python integer": (
        lambda: evaluate(outer=3),
        "`outer` must hold floating arrays only, got int 3 at `outer`",
    ),
    "empty inner": (lambda: evaluate(init={}), "`inner` has no array leaves"),
    "batch of another type": (
        lambda: evaluate(batch=(1, 2)),
        "`batch` must be a `bilevel.Batch`, got tuple. Write `Batch",
    ),
    "loss not callable": (lambda: BilevelProblem(SUM, 3.0), "`inner_loss` must be a function"),
    "optimizer not Optax": (
        lambda: Minimize(0.1, 10),
        r"`optimizer` must be an Optax transformation such as `optax.sgd\(0.1\)`, got 0.1",
    ),
    "solver not callable": (lambda: Implicit(3), "`solver` must be a function such as `Minimize"),
    "linear solver not callable": (
        lambda: Implicit(SOLVER, "cg"),
        r"`linear_solver` must be a function such as `linear.CG\(\)`, got 'cg'",
    ),
    "solver class": (
        lambda: Implicit(Minimize),
        r"`solver` must be a function .*, got the class `Minimize` itself. Make an instance",
    ),
    "linear solver class": (lambda: Implicit(SOLVER, linear.CG), "got the class `CG` itself"),
    "step class": (lambda: OneStep(SOLVER, Minimize), "got the class `Minimize` itself"),
    "loss class": (lambda: BilevelProblem(SUM, Minimize), "got the class `Minimize` itself"),
    "truncating a rule": (
        lambda: Truncated(Implicit(SOLVER), 2),
        "`solver` must be a `Minimize`, whose steps can be cut",
    ),
    "one step of a number": (
        lambda: OneStep(SOLVER, 0.1),
        "`step` must be a function such as",
    ),
    "problem of another type": (
        lambda: DoubleLoop(SUM, SOLVER, optax.sgd(0.1)),
        "`problem` must be a `BilevelProblem`",
    ),
    "double loop, solver": (
        lambda: DoubleLoop(GOOD, 0.1, optax.sgd(0.1)),
        "`solver` must be a function such as",
    ),
    "double loop, optimizer": (
        lambda: DoubleLoop(GOOD, SOLVER, 0.1),
        "`outer_optimizer` must be an Optax transformation",
    ),
    "double loop, projection": (
        lambda: DoubleLoop(GOOD, SOLVER, optax.sgd(0.1), projection=1.0),
        r"`projection` must be a function of the outer variable.*got 1.0",
    ),
    "run with swapped arguments": (
        lambda: run(STATE, DOUBLE_LOOP, Batch(), 1),
        r"`algorithm` must have `init` and `step`, got a DoubleLoopState. The order is `run\(alg",
    ),
    "run of a class": (
        lambda: run(DoubleLoop, STATE, Batch(), 1),
        r"`algorithm` must be an instance, got the class `DoubleLoop` itself. Make one of it: `Dou",
    ),
    "run without init": (
        lambda: run(DOUBLE_LOOP, (jnp.zeros(2), INIT), Batch(), 1),
        r"`state` must have fields `outer` and `inner`.* got a tuple. Write `run\(algorithm, algor",
    ),
    "run of a dictionary": (
        lambda: run(DOUBLE_LOOP, {"outer": jnp.zeros(2), "inner": INIT}, Batch(), 1),
        "`state` must have fields `outer` and `inner`.* got a dict. Write",
    ),
    "run over a list of batches": (
        lambda: run(DOUBLE_LOOP, STATE, [Batch(), Batch()], 2),
        "`batch` must be a `Batch` or a function of the step's index, got list. Stack the batches",
    ),
    "run over an iterator": (
        lambda: run(DOUBLE_LOOP, STATE, iter([Batch()]), 1),
        r"got a Python iterator \(list_iterator\). Compiled code cannot consume it. Loop over",
    ),
    "run on bare data": (
        lambda: run(DOUBLE_LOOP, STATE, jnp.ones(3), 1),
        r"`batch` must be .* got ArrayImpl. Write `Batch\(inner=..., outer=...\)`",
    ),
    "run on the class of batches": (
        lambda: run(DOUBLE_LOOP, STATE, Batch, 1),
        r"`batch` must be .* got the class `Batch`. Write `Batch\(inner=",
    ),
}

VALUES = {
    "adjoint of another shape": (
        lambda: evaluate(solver=Implicit(SOLVER), adjoint=ADJOINT),
        r"`adjoint` must have the structure, shapes and dtypes of `init`; at `adjoint\['w'\]`"
        r" got float32\[4\], expected float32\[3\]",
    ),
    "solver returns another structure": (
        lambda: evaluate(solver=lambda loss, outer, init, data: {"v": init["w"]}),
        r"`the solver's result` must have .* at `the solver's result\['w'\]` got nothing,"
        r" expected float32\[3\]",
    ),
    "no steps": (lambda: Minimize(optax.sgd(0.1), 0), "`num_steps` must be an integer >= 1, got 0"),
    "fractional steps": (lambda: Minimize(optax.sgd(0.1), 2.5), "`num_steps` must be an integer"),
    "remat of another name": (
        lambda: Minimize(optax.sgd(0.1), 4, remat="all"),
        '`remat` must be "none", "step", an integer, a tuple of integers or "binomial", got ',
    ),
    "remat that does not fall": (
        lambda: Minimize(optax.sgd(0.1), 10, remat=(4, 4)),
        r"`remat` as a tuple must hold lengths of segments that fall, such as \(256, 16\), got",
    ),
    "remat of nothing": (lambda: Minimize(optax.sgd(0.1), 10, remat=()), r"that fall.*got \(\)"),
    "remat tuple of zero": (
        lambda: Minimize(optax.sgd(0.1), 10, remat=(4, 0)),
        "`remat` must be an integer >= 1, got 0",
    ),
    "remat zero": (
        lambda: Minimize(optax.sgd(0.1), 10, remat=0),
        "`remat` must be an integer >= 1, got 0",
    ),
    "truncating more than all": (
        lambda: Truncated(SOLVER, 5),
        "`last` must be at most the solver's `num_steps`, got last=5 and num_steps=4",
    ),
    "truncating all": (lambda: Truncated(SOLVER, 0), "`last` must be an integer >= 1, got 0"),
    "sign step": (lambda: SignUnrolled(-0.1, 4), "`step_size` must be > 0 or a schedule, got -0.1"),
    "negative run": (
        lambda: run(DoubleLoop(GOOD, SOLVER, optax.sgd(0.1)), None, Batch(), -1),
        "`num_steps` must be an integer >= 0, got -1",
    ),
}


@pytest.mark.parametrize("name", INPUTS)
def test_wrong_type(name):
    call, message = INPUTS[name]
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("name", VALUES)
def test_wrong_value(name):
    call, message = VALUES[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("path", ["value_and_hypergrad", "step"])
def test_errors_come_before_computing(path):
    """The losses are only ever traced, never run, when the input is wrong."""
    ran = []

    def watched(x, y, b):
        jax.debug.callback(lambda: ran.append(1))
        return y["w"]

    problem = BilevelProblem(SUM, watched)
    with pytest.raises(TypeError, match="`inner_loss` must return one floating scalar"):
        if path == "step":
            algorithm = DoubleLoop(problem, SOLVER, optax.sgd(0.1))
            algorithm.step(algorithm.init(jnp.zeros(2), INIT), Batch())
        else:
            value_and_hypergrad(problem, SOLVER)(jnp.zeros(2), INIT, Batch())
    jax.effects_barrier()
    assert not ran


def test_settings_print():
    text = repr(Implicit(SOLVER, linear.CG(max_steps=7)))
    assert "max_steps=7" in text and "num_steps=4" in text
