"""higher and TorchOpt beside ours: unrolled optimizers, and TorchOpt's implicit rule."""

import optax
import pytest

from bilevel import Implicit, Minimize, linear
from tests.peers.torch_side import Theirs, assert_close, ours

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

# What is constructed there, and here.
HIGHER = {
    "SGD": (lambda p: torch.optim.SGD(p, lr=0.3), optax.sgd(0.3)),
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9)),
    "nesterov": (
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        optax.sgd(0.1, momentum=0.9, nesterov=True),
    ),
    "Adam": (
        lambda p: torch.optim.Adam(p, lr=0.05, eps=1e-12),
        optax.adam(0.05, eps=1e-12, eps_root=1e-18),
    ),
}


class Linear(torch.nn.Module):
    def __init__(self, start):
        super().__init__()
        self.weights = torch.nn.Parameter(start.detach().clone())


@pytest.mark.parametrize("steps", [1, 5, 15])
@pytest.mark.parametrize("kind", ["ridge", "logistic"])
@pytest.mark.parametrize("name", HIGHER)
def test_higher(name, kind, steps):
    higher = pytest.importorskip("higher", reason="higher is not installed")
    make, optimizer = HIGHER[name]
    peer = Theirs(torch, kind)
    model = Linear(peer.start)
    with higher.innerloop_ctx(model, make(model.parameters())) as (functional, differentiable):
        for _ in range(steps):
            differentiable.step(peer.inner_loss([functional.weights], [peer.outer]))
        loss = peer.outer_loss([functional.weights], None)
        [found] = torch.autograd.grad(loss, [peer.outer])
        assert_close(ours(kind, Minimize(optimizer, steps)), functional.weights, found)


TORCHOPT = {
    "sgd": (lambda t: t.sgd(lr=0.3), optax.sgd(0.3)),
    "momentum": (lambda t: t.sgd(lr=0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9)),
    # It corrects the bias in float32, which is exact for the powers of these two.
    "adam": (
        lambda t: t.adam(lr=0.05, betas=(0.5, 0.75), eps=1e-4, eps_root=1e-12),
        optax.adam(0.05, b1=0.5, b2=0.75, eps=1e-4, eps_root=1e-12),
    ),
    "adamw": (
        lambda t: t.adamw(lr=0.05, betas=(0.5, 0.75), eps=1e-4, eps_root=1e-12, weight_decay=0.1),
        optax.adamw(0.05, b1=0.5, b2=0.75, eps=1e-4, eps_root=1e-12, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("steps", [1, 5, 15])
@pytest.mark.parametrize("kind", ["ridge", "logistic"])
@pytest.mark.parametrize("name", TORCHOPT)
def test_torchopt_unrolled(name, kind, steps):
    torchopt = pytest.importorskip("torchopt", reason="TorchOpt is not installed")
    make, optimizer = TORCHOPT[name]
    peer = Theirs(torch, kind)
    method, params = make(torchopt), (peer.start,)
    state = method.init(params)
    for _ in range(steps):
        loss = peer.inner_loss(params, [peer.outer])
        grads = torch.autograd.grad(loss, params, create_graph=True)
        updates, state = method.update(grads, state, params=params, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
    [found] = torch.autograd.grad(peer.outer_loss(params, None), [peer.outer])
    assert_close(ours(kind, Minimize(optimizer, steps)), params[0], found)


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
@pytest.mark.parametrize("name", ["cg", "normal_cg", "inv"])
def test_torchopt_implicit(name, kind):
    torchopt = pytest.importorskip("torchopt", reason="TorchOpt is not installed")
    peer = Theirs(torch, kind)
    kwargs = {} if name == "inv" else {"maxiter": 50, "atol": 0.0, "rtol": 1e-13}
    if name == "inv":
        kwargs = {"ns": False}
    solve = getattr(torchopt.linear_solve, f"solve_{name}")(**kwargs)
    optimality = lambda weights, outer: torch.func.grad(
        lambda weights: peer.inner_loss([weights], [outer])
    )(weights)

    @torchopt.diff.implicit.custom_root(optimality, argnums=1, solve=solve)
    def minimise(weights, outer):
        weights = weights.detach()
        for _ in range(300):
            weights = weights - 0.4 * optimality(weights, outer.detach())
        return weights

    weights = minimise(peer.start, peer.outer)
    [found] = torch.autograd.grad(peer.outer_loss([weights], None), [peer.outer])
    rule = Implicit(Minimize(optax.sgd(0.4), 300), linear.CG(tolerance=1e-13))
    assert_close(ours(kind, rule), weights, found)
