# %% [markdown]
# # A regulariser for every weight
#
# A linear classifier of digits has 640 weights and, here, 150 images to learn them from. How strongly should each
# weight be pulled to zero? One number for all can be found by a grid; one for each pixel, or for each weight, cannot.
# With hypergradients only the shape of the outer variable changes.
#
# **Found:** with one regulariser a weight the test accuracy rises from 92.6 % to 94.8 %, at the step that a third part
# of the data picks; one a pixel gains nothing over one for all.

# %%
import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

from bilevel import Aux, Batch, BilevelProblem, DoubleLoop, Implicit, Minimize, linear, run
from bilevel.projections import Box

NUM_STEPS = 5 if "--small" in sys.argv else 60

images, labels = load_digits(return_X_y=True)
images, order = images / 16.0, np.random.default_rng(0).permutation(len(labels))
train, valid, third, test = (
    (jnp.asarray(images[rows], jnp.float32), jnp.asarray(labels[rows]))
    for rows in np.split(order, [150, 450, 750])
)

# %% [markdown]
# ## The problem
#
# `log_reg` is the outer variable: a number, a column `[64, 1]` or a matrix `[64, 10]`. Everything broadcasts. A third
# part and the test part ride along as metrics, which no gradient sees.


# %%
def cross_entropy(weights, data):
    x, y = data
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(x @ weights, y))


def accuracy(weights, data):
    return jnp.mean(jnp.argmax(data[0] @ weights, axis=1) == data[1])


def outer_loss(log_reg, weights, data):
    names = ("validation", "third", "test")
    metrics = {n: accuracy(weights, part) for n, part in zip(names, data, strict=True)}
    return cross_entropy(weights, data[0]), Aux(metrics=metrics)


def inner_loss(log_reg, weights, data):
    return cross_entropy(weights, data) + jnp.sum(jnp.exp(log_reg) * weights**2)


algorithm = DoubleLoop(
    BilevelProblem(outer_loss, inner_loss),
    Implicit(Minimize(optax.sgd(0.3, momentum=0.9, nesterov=True), 100), linear.CG(100)),
    optax.adam(0.1),
    projection=Box(-9.0, 0.0),  # exp(0) = 1: the steepest that the inner steps bear
)

# %% [markdown]
# ## Three shapes, one run each
#
# The inner problem is strongly convex: `Implicit` is exact at its solution, and `info` says how near we are.


# %%
@jax.jit
def tune(log_reg, batch):
    state = algorithm.init(log_reg, jnp.zeros((64, 10)))
    return run(algorithm, state, batch, NUM_STEPS)


found = {}
for name, shape in {"one for all": (), "one a pixel": (64, 1), "one a weight": (64, 10)}.items():
    state, info = tune(jnp.full(shape, -6.0), Batch(inner=train, outer=(valid, third, test)))
    parts = info.metrics.outer
    best = int(jnp.argmax(parts["third"]))
    text = ", ".join(f"{part} {parts[part][best]:.1%}" for part in ("validation", "test"))
    print(f"{name:>12}, best step {best:>2} by the third part: {text}")
    print(f"{'':>12}  last step: validation {parts['validation'][-1]:.1%}, {parts['test'][-1]:.1%}")
    found[name] = state, info
print(info)

# %%
figure, axes = plt.subplots(1, 4, figsize=(13, 3), layout="constrained")
for name, (_, info) in found.items():
    axes[0].plot(info.value, label=name)
    axes[1].plot(info.metrics.outer["test"], label=name)
axes[0].set(xlabel="outer step", title="validation loss")
axes[1].set(xlabel="outer step", title="test accuracy")
axes[1].legend()
pixels = found["one a pixel"][0].outer.reshape(8, 8)
mean = images[order[:450]].mean(axis=0).reshape(8, 8)
for axis, picture in zip(axes[2:], (pixels, mean), strict=True):
    figure.colorbar(axis.imshow(picture), ax=axis)
    axis.set(xticks=[], yticks=[])
axes[2].set(title="log of the regulariser")
axes[3].set(title="mean image")
plt.show()

# %% [markdown]
# ## What can go wrong, and how you would see it
#
# - **The validation set is fitted.** 640 numbers chosen on 300 images are parameters too: validation loss falls for
#   ever, test accuracy does not. Stop by a third part.
# - **The inner steps diverge** where a regulariser outgrows their step size: `info.inner_grad_norm` grows, then
#   `info.finite` is False. The box is there for that reason.
# - **The linear solve stops early** where regularisers vanish: `linear.status` says NOT_CONVERGED and `residual_norm`
#   by how much. Raise the lower end of the box, or take more steps.
