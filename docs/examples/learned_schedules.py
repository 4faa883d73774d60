# %% [markdown]
# # Learn the schedules of step size and weight decay
#
# A network is trained for 60 steps. Which step size and weight decay should each step have? Unrolled hypergradients
# answer for all at once. The solver is a plain function, since the numbers to learn enter its optimizer and not the
# loss.
#
# **Found:** the learned schedules cut the test loss from 0.66 to 0.41, and raise the accuracy from 84.9 % to 88.3 %,
# against the best of 49 constant pairs.

# %%
import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy
from sklearn.datasets import load_digits

from bilevel import Batch, BilevelProblem, DoubleLoop, Minimize, run
from bilevel.projections import Box

NUM_STEPS, TRAIN_STEPS, KNOTS = (3, 12, 4) if "--small" in sys.argv else (150, 60, 12)

images, labels = load_digits(return_X_y=True)
order = (rng := np.random.default_rng(0)).permutation(len(labels))
x, y = jnp.asarray(images[order] / 16.0, jnp.float32), labels[order].copy()
wrong = rng.random(200) < 0.2  # a fifth of the training labels are wrong
y[:200] = np.where(wrong, rng.integers(0, 10, 200), y[:200])
parts = (slice(200), slice(200, 600), slice(600, None))
train, valid, test = ((x[rows], jnp.asarray(y[rows])) for rows in parts)

# %% [markdown]
# ## Training as a solver
#
# `Minimize` takes any Optax optimizer, with schedules made of the outer variable. A new network in each outer step,
# from a key, keeps the schedule from being right for one start only.


# %%
def init(key):
    shapes = zip(jax.random.split(key), ((64, 32), (32, 10)), strict=True)
    return [jax.random.normal(k, shape) / shape[0] ** 0.5 for k, shape in shapes]


def network(params, x):
    return jax.nn.relu(x @ params[0]) @ params[1]


def loss(outer, params, data):
    return jnp.mean(cross_entropy(network(params, data[0]), data[1]))


def schedule(knots):
    places = jnp.linspace(0, TRAIN_STEPS - 1, KNOTS)
    return lambda step: jnp.exp(jnp.interp(step, places, knots))


def trained(loss, outer, start, data):
    decay = optax.add_decayed_weights(schedule(outer["decay"]))
    optimizer = optax.chain(decay, optax.sgd(schedule(outer["step_size"]), momentum=0.9))
    return Minimize(optimizer, TRAIN_STEPS)(loss, outer, init(data["key"]), data)


inner_loss = lambda outer, params, data: loss(outer, params, data["train"])
box = Box(jnp.log(1e-4), {"step_size": jnp.log(2.0), "decay": jnp.log(0.3)})
problem = BilevelProblem(loss, inner_loss)
algorithm = DoubleLoop(problem, trained, optax.adam(0.1), projection=box)


# %% Both are chosen on the validation part: 49 pairs by a grid, and the schedules from the best of them
@jax.jit
def judged(outer, key, data):  # loss and accuracy, over sixteen new networks
    def after(key):
        params = trained(inner_loss, outer, None, {"key": key, "train": train})
        right = jnp.argmax(network(params, data[0]), axis=1) == data[1]
        return loss(outer, params, data), jnp.mean(right)

    return jax.tree.map(jnp.mean, jax.vmap(after)(jax.random.split(key, 16)))


fill = lambda number: jnp.full(KNOTS, jnp.log(number))
rates, decays = jnp.geomspace(0.01, 1, 7), jnp.geomspace(1e-4, 0.1, 7)
grid = [{"step_size": fill(a), "decay": fill(b)} for a in rates for b in decays]
best = min(grid, key=lambda outer: judged(outer, jax.random.key(1), valid)[0])


def draw(step):
    return Batch({"key": jax.random.fold_in(jax.random.key(2), step), "train": train}, valid)


state = algorithm.init(best, init(jax.random.key(0)))
state, info = jax.jit(lambda state: run(algorithm, state, draw, NUM_STEPS))(state)
for name, outer in {"best constants": best, "schedules": state.outer}.items():
    value, accuracy = judged(outer, jax.random.key(3), test)
    print(f"{name:>14}: test loss {value:.3f}, test accuracy {accuracy:.1%}")

figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
axes[0].plot(info.value)
axes[0].set(xlabel="outer step", title="validation loss")
for axis, name in zip(axes[1:], best, strict=True):
    for outer, label in ((best, "best constant"), (state.outer, "learned")):
        axis.semilogy(jax.vmap(schedule(outer[name]))(jnp.arange(TRAIN_STEPS)), label=label)
    axis.set(xlabel="training step", title=name.replace("_", " "))
axes[1].legend()
plt.show()

# %% [markdown]
# ## What can go wrong, and how you would see it
#
# - **Training becomes chaotic** at large step sizes, and its derivative huge: `info.hypergrad_norm` jumps by orders of
#   magnitude. The box is the first remedy, `RandomWindow`, `Truncated` or `PES` the next ones.
# - **A rule that drops the steps** has a derivative of zero in a learned step size. `Implicit` around this solver
#   would raise an error that says so.
# - **Short horizons** prefer small steps, and a leap at the end: a schedule for 60 steps is none for 6,000.
