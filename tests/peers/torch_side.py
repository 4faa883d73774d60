"""The problems of this folder in PyTorch, and a comparison of a hypergradient with ours."""

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import Batch, BilevelProblem, value_and_hypergrad
from tests.peers import problems

OUTER = np.array([-2.0, -1.5, -1.0, -2.5, -0.5])
TRAIN, HELD_OUT = problems.regression(0), problems.regression(1)


def fit(kind, weights, data):
    design, targets = data
    if kind == "ridge":
        return 0.5 * jnp.mean((design @ weights - targets) ** 2)
    return jnp.mean(jnp.logaddexp(0.0, -(design @ weights) * jnp.sign(targets)))


def ours(kind, solver):
    """Inner solution and hypergradient of a held-out loss in one log-penalty for each weight."""
    problem = BilevelProblem(
        outer_loss=lambda x, weights, data: fit("ridge", weights, data),
        inner_loss=lambda x, weights, data: (
            fit(kind, weights, data) + 0.5 * jnp.sum(jnp.exp(x) * weights**2)
        ),
    )
    batch = Batch(*(tuple(map(jnp.asarray, data)) for data in (TRAIN, HELD_OUT)))
    compute = jax.jit(value_and_hypergrad(problem, solver))
    (_, inner), hypergrad = compute(jnp.asarray(OUTER), jnp.zeros(5), batch)
    return np.asarray(inner), np.asarray(hypergrad)


class Theirs:
    """The same two losses of lists of tensors, as these libraries take them."""

    def __init__(self, torch, kind):
        self.torch, self.kind = torch, kind
        as_tensor = lambda a: torch.tensor(a, dtype=torch.float64)
        self.train, self.held_out = (tuple(map(as_tensor, data)) for data in (TRAIN, HELD_OUT))
        self.outer = as_tensor(OUTER).requires_grad_(True)
        self.start = torch.zeros(5, dtype=torch.float64, requires_grad=True)

    def fit(self, kind, weights, data):
        design, targets = data
        if kind == "ridge":
            return 0.5 * ((design @ weights - targets) ** 2).mean()
        margins = (design @ weights) * targets.sign()
        return self.torch.nn.functional.softplus(-margins, threshold=1e9).mean()

    def inner_loss(self, params, hparams):
        penalty = 0.5 * (hparams[0].exp() * params[0] ** 2).sum()
        return self.fit(self.kind, params[0], self.train) + penalty

    def outer_loss(self, params, hparams):
        return self.fit("ridge", params[0], self.held_out)

    def descent(self, rate):
        """One gradient step, differentiable in both arguments."""

        def step(params, hparams):
            loss = self.inner_loss(params, hparams)
            grads = self.torch.autograd.grad(loss, params, create_graph=True)
            return [w - rate * g for w, g in zip(params, grads, strict=True)]

        return step


def assert_close(found, weights, hypergrad):
    inner, own = found
    theirs = np.asarray(hypergrad.detach())
    assert np.abs(inner - np.asarray(weights.detach())).max() < 1e-6
    assert np.abs(own - theirs).max() < 1e-6 * max(1.0, np.abs(theirs).max())
