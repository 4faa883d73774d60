"""The same hypergradients as users of PyTorch's libraries write them; nothing without PyTorch.

Each contestant is a function of no arguments: its tensors were made before, outside of the clock.
"""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

try:
    import torch
except ImportError:
    torch = None

Contestant = Callable[[], np.ndarray]
Loss = Callable[[Any, Any], Any]  # of the outer tensor and a list of inner ones


def _installed(name: str) -> Any:
    """A peer, or None where it, or PyTorch, is not installed."""
    try:
        return importlib.import_module(name) if torch else None
    except ImportError:
        return None


def _losses(logits: Callable[..., Any], x: Any, labels: Any, decay: float) -> tuple[Loss, Loss]:
    """Outer and inner loss: the mean, and the mean with a weight for each example and a decay."""
    entropy = torch.nn.functional.cross_entropy

    def outer_loss(outer: Any, params: Any) -> Any:
        return entropy(logits(params, x), labels)

    def inner_loss(outer: Any, params: Any) -> Any:
        losses = entropy(logits(params, x), labels, reduction="none")
        fit = (torch.sigmoid(outer) * losses).mean()
        return fit + decay * sum((p**2).sum() for p in params) if decay else fit

    return outer_loss, inner_loss


def _linear(params: Any, x: Any) -> Any:
    return torch.nn.functional.linear(x, params[0])


def _network(params: Any, x: Any) -> Any:
    functions = torch.nn.functional
    for kernel in params[:2]:
        x = functions.gelu(functions.conv2d(x, kernel, padding="same"), approximate="tanh")
        x = functions.avg_pool2d(x, 2)
    x = x.permute(0, 2, 3, 1).flatten(1)  # channels last, as the dense layer has its inputs
    x = functions.gelu(functions.linear(x, params[2]), approximate="tanh")
    return functions.linear(x, params[3])


def _tensors(args: Any) -> tuple[Any, list[Any], Any, Any]:
    """Outer tensor, inner tensors, inputs and labels, in PyTorch's order of axes, which is fast."""
    outer, params, (x, labels) = args
    tensor = lambda a: torch.tensor(np.asarray(a))
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}
    kernel = lambda a: tensor(a).permute(axes[a.ndim]).contiguous()
    inner = [kernel(leaf).requires_grad_(True) for leaf in jax.tree.leaves(params)]
    x = tensor(x).permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else tensor(x)
    return tensor(outer).requires_grad_(True), inner, x, tensor(labels).long()


def unrolled(args: Any, step: float, steps: int, decay: float) -> dict[str, Contestant]:
    """Plain gradient steps, every one on the tape: by hand, and by higher and TorchOpt.

    Args:
        args: outer variable, inner variables and data of a problem.
        step: step size.
        steps: number of them.
        decay: weight of the squared inner variable.
    """
    if torch is None:
        return {}
    outer, start, x, labels = _tensors(args)
    logits = _network if x.ndim == 4 else _linear
    outer_loss, inner_loss = _losses(logits, x, labels, decay)
    higher, torchopt = _installed("higher"), _installed("torchopt")

    def finish(params: Any) -> np.ndarray:
        return torch.autograd.grad(outer_loss(outer, params), [outer])[0].numpy()

    def by_hand() -> np.ndarray:
        params = start
        for _ in range(steps):
            grads = torch.autograd.grad(inner_loss(outer, params), params, create_graph=True)
            params = [p - step * g for p, g in zip(params, grads, strict=True)]
        return finish(params)

    def by_higher() -> np.ndarray:
        model = type("Model", (torch.nn.Module,), {})()  # it patches subclasses alone
        for place, p in enumerate(start):
            model.register_parameter(f"p{place}", torch.nn.Parameter(p.detach().clone()))
        optimizer = torch.optim.SGD(model.parameters(), lr=step)
        with higher.innerloop_ctx(model, optimizer) as (functional, differentiable):
            for _ in range(steps):
                differentiable.step(inner_loss(outer, list(functional.parameters())))
            return finish(list(functional.parameters()))

    def by_torchopt() -> np.ndarray:
        method, params = torchopt.sgd(lr=step), tuple(start)
        state = method.init(params)
        for _ in range(steps):
            grads = torch.autograd.grad(inner_loss(outer, params), params, create_graph=True)
            updates, state = method.update(grads, state, params=params, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)
        return finish(params)

    found = {"PyTorch by hand": by_hand}
    found |= {"higher": by_higher} if higher else {}
    return found | ({"TorchOpt": by_torchopt} if torchopt else {})


def series(kind: str, args: Any, step: float, terms: int, decay: float) -> dict[str, Contestant]:
    """As many steps off the tape, then hypertorch's conjugate gradients or fixed-point series.

    Args:
        kind: `CG` or `Neumann`.
        args: as in `unrolled`.
        step: step size.
        terms: steps, and terms.
        decay: weight of the squared inner variable.
    """
    hypertorch = _installed("hypergrad.hypergradients")
    if hypertorch is None:
        return {}
    outer, start, x, labels = _tensors(args)
    outer_loss, inner_loss = _losses(_linear, x, labels, decay)
    rule = hypertorch.CG if kind == "CG" else hypertorch.fixed_point

    def move(params: Any, hparams: Any) -> list[Any]:
        loss = inner_loss(hparams[0], params)
        grads = torch.autograd.grad(loss, params, create_graph=True)
        return [p - step * g for p, g in zip(params, grads, strict=True)]

    def call() -> np.ndarray:
        params = start
        for _ in range(terms):
            params = [p.detach().requires_grad_(True) for p in move(params, [outer])]
        upper = lambda params, hparams: outer_loss(hparams[0], params)
        settings = {"set_grad": False, "tol": 0.0}
        return rule(params, [outer], terms, move, upper, **settings)[0].detach().numpy()

    return {"hypertorch": call}
