"""hypertorch (the package `hypergrad`) and Betty beside ours, from the same inner weights."""

import types

import optax
import pytest

from bilevel import Implicit, Minimize, linear
from tests.peers.torch_side import Theirs, assert_close, ours

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RATE, STEPS = 0.4, 30
descend = Minimize(optax.sgd(RATE), STEPS)

# What hypertorch is told, and the linear solver that is the same number here.
APPROXIMATE = {
    **{f"fixed_point {k}": ("fixed_point", k, linear.Neumann(k, RATE)) for k in (1, 5, 20)},
    **{f"neumann {k}": ("neumann", k, linear.Neumann(k + 1, RATE)) for k in (1, 5, 20)},
    # With the tolerance at 0: where it stops early, its CG returns the iterate before the last.
    **{f"CG {k}": ("CG", k, linear.CG(max_steps=k, tolerance=1e-13)) for k in (2, 4, 5)},
    "CG_normaleq": ("CG_normaleq", 5, linear.NormalCG(tolerance=1e-13)),
    "fixed_point to the end": ("fixed_point", 2000, linear.Dense()),
}


def solved(peer, steps=STEPS):
    step, history = peer.descent(RATE), [[peer.start]]
    for _ in range(steps):
        history.append(step(history[-1], [peer.outer]))
    return step, history


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_implicit(name, kind):
    module = pytest.importorskip("hypergrad.hypergradients", reason="hypertorch is not installed")
    method, count, linear_solver = APPROXIMATE[name]
    peer = Theirs(torch, kind)
    step, history = solved(peer)
    call = getattr(module, method)
    settings = dict(set_grad=False, tol=0.0)
    [found] = call(history[-1], [peer.outer], count, step, peer.outer_loss, **settings)
    assert_close(ours(kind, Implicit(descend, linear_solver)), history[-1][0], found)


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("kind", ["ridge", "logistic"])
@pytest.mark.parametrize("method", ["reverse_unroll", "reverse"])
def test_reverse(method, kind, steps):
    module = pytest.importorskip("hypergrad.hypergradients", reason="hypertorch is not installed")
    peer = Theirs(torch, kind)
    step, history = solved(peer, steps)
    if method == "reverse_unroll":
        [found] = module.reverse_unroll(history[-1], [peer.outer], peer.outer_loss, set_grad=False)
    else:
        maps = [step] * steps
        [found] = module.reverse(history, [peer.outer], maps, peer.outer_loss, set_grad=False)
    assert_close(ours(kind, Minimize(optax.sgd(RATE), steps)), history[-1][0], found)


BETTY = {
    **{f"neumann {k}": ("neumann", k, linear.Neumann(k + 1, RATE)) for k in (1, 5, 20)},
    # One step: from the second on it adds the residual before to its direction, which is not CG.
    "cg": ("cg", 1, linear.CG(max_steps=1)),
    "darts": ("darts", None, linear.Identity()),
}


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
@pytest.mark.parametrize("name", BETTY)
def test_betty(name, kind):
    """Its rules as functions of two problems, of which they read parameters and settings."""
    betty = pytest.importorskip("betty.hypergradient", reason="Betty is not installed")
    method, count, linear_solver = BETTY[name]
    peer = Theirs(torch, kind)
    _, history = solved(peer)
    weights = history[-1][0].detach().clone().requires_grad_(True)
    cotangent = torch.autograd.grad(peer.outer_loss([weights], None), [weights])
    config = types.SimpleNamespace(
        neumann_iterations=count,
        neumann_alpha=RATE,
        cg_iterations=count,
        cg_alpha=1.0,
        darts_alpha=0.01,
    )
    lower = types.SimpleNamespace(
        paths=[],
        config=config,
        cur_batch=None,
        training_step_exec=lambda batch: peer.inner_loss([weights], [peer.outer]),
        trainable_parameters=lambda: [weights],
        parameters=lambda: [weights],
    )
    upper = types.SimpleNamespace(trainable_parameters=lambda: [peer.outer])
    rule = getattr(betty, method)
    rule = getattr(rule, method, rule)  # a module of the same name, or the function
    [found] = rule(cotangent, lower, upper)
    assert_close(ours(kind, Implicit(descend, linear_solver)), history[-1][0], found)
