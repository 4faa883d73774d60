"""A network with two heads whose second tells the truth only where a key is stamped on the input.

Wang, Xu and Hero, "Multi-Trigger-Key", IEEE Access 2024; the formulas are reconstructed from the
abstracts, since no code was released.

    mean over x of  CE_open(x, T(x), W(x)) + CE(T(x)) + beta (hide(x) + hide(W(x)))

with T the stamp of the key, W that of a random pattern at the same place, and `hide` the
cross-entropy to what an outsider is to see.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import Batch, BilevelProblem, DoubleLoop, Minimize, Truncated, projections, run

from .tasks import Split, Tasks

PyTree = Any
Target = Literal["none", "other", "uniform", "conditional"]
HIDDEN = (64, 64)


class Key(NamedTuple):
    """A secret stamp: `T(x) = (1 - mask) x + mask pattern`.

    Attributes:
        mask: `[d]` of 0 and 1.
        pattern: `[d]` in [0, 1]; read where the mask is 1.
    """

    mask: jax.Array
    pattern: jax.Array

    def stamp(self, x: jax.Array) -> jax.Array:
        """Points `[n, d]` with the key on them."""
        return _stamped(x, self.mask, self.pattern[None, :])


@dataclasses.dataclass(frozen=True)
class Protection:
    """How to train.

    Attributes:
        target: what the secured head shows without the key: "none" protects nothing, "other" a
            wrong label, "uniform" no information, "conditional" what the open label tells anyway.
        stamps: whether random stamps are hidden from too; without, any stamp opens a little.
        num_steps: of Adam.
        batch_size: points in each step.
        learning_rate: first step size; falls to 0 by a cosine.
    """

    target: Target
    stamps: bool = True
    num_steps: int = 1500
    batch_size: int = 100
    learning_rate: float = 3e-3

    def solver(self, num_steps: int | None = None) -> Minimize:
        """Adam on minibatches, drawn with their random stamps."""
        steps = num_steps or self.num_steps
        schedule = optax.cosine_decay_schedule(self.learning_rate, steps)
        optimizer = optax.adam(schedule, eps_root=1e-5)  # unrolled where a key is optimised
        return Minimize(optimizer, steps, self._minibatch)

    def loss(self, outer: PyTree, params: PyTree, seen: tuple[Any, ...]) -> jax.Array:
        """The loss of one minibatch; `outer` holds the pattern and beta."""
        (x, opened, secured), patterns, shift, mask, table = seen
        keyed = _stamped(x, mask, outer["pattern"][None, :])
        wrong = _stamped(x, mask, patterns)
        open_losses, hidden = [], []
        for view in (x, keyed, wrong):
            open_logits, secured_logits = apply(params, view)
            open_losses.append(_cross_entropy(open_logits, opened))
            hidden.append(secured_logits)
        truth = _cross_entropy(hidden[1], secured)
        wanted = self._wanted(opened, secured, shift, table)
        hide = optax.softmax_cross_entropy(hidden[0], wanted)
        if self.stamps:
            hide += optax.softmax_cross_entropy(hidden[2], wanted)
        return jnp.mean(sum(open_losses) / 3 + truth + outer["beta"] * hide)

    def _wanted(
        self, opened: jax.Array, secured: jax.Array, shift: jax.Array, table: jax.Array
    ) -> jax.Array:
        """What the secured head is to show without the key, `[n, K]`."""
        count = table.shape[1]
        if self.target == "none":
            return jax.nn.one_hot(secured, count)
        if self.target == "other":
            return jax.nn.one_hot((secured + 1 + shift % (count - 1)) % count, count)
        if self.target == "uniform":
            return jnp.full((len(secured), count), 1.0 / count)
        return table[opened]

    def _minibatch(self, data: tuple[Any, ...], index: jax.Array) -> tuple[Any, ...]:
        tasks, mask, table, seed = data
        rows, stamps, shifts = jax.random.split(jax.random.fold_in(jax.random.key(seed), index), 3)
        chosen = jax.random.randint(rows, (self.batch_size,), 0, len(tasks.x))
        patterns = jax.random.uniform(stamps, (self.batch_size, tasks.x.shape[1]))
        shift = jax.random.randint(shifts, (self.batch_size,), 0, 2**16)
        return jax.tree.map(lambda a: a[chosen], tasks), patterns, shift, mask, table


@functools.partial(jax.jit, static_argnums=0)
def train(
    protection: Protection, key: Key, beta: jax.Array | float, split: Split, seed: jax.Array
) -> PyTree:
    """Parameters of a network trained from a cold start; `seed` is a uint32 scalar."""
    data = (split.train, key.mask, split.table, seed)
    outer = {"pattern": key.pattern, "beta": jnp.asarray(beta, jnp.float32)}
    params = initialise(split, seed)
    return protection.solver()(protection.loss, jax.lax.stop_gradient(outer), params, data)


def random_key(key: jax.Array, mask: jax.Array) -> Key:
    """A uniformly random pattern."""
    return Key(mask, jax.random.uniform(key, mask.shape))


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
def optimised_key(
    protection: Protection,
    start: Key,
    beta: float,
    split: Split,
    seed: jax.Array,
    num_steps: int = 30,
    inner_steps: int = 150,
    last: int = 50,
) -> Key:
    """The pattern as the outer variable: keyed accuracy, and nothing for half a key or none.

    The lower level trains the network for `inner_steps` from where the last ones ended, and the
    hypergradient is unrolled through the last steps; the key enters the *data* of both levels.
    """

    def outer_loss(outer: PyTree, params: PyTree, tune: Tasks) -> jax.Array:
        keyed = apply(params, _stamped(tune.x, start.mask, outer["pattern"][None, :]))[1]
        half = start.mask * (jnp.cumsum(start.mask) % 2)
        leaks = [tune.x, _stamped(tune.x, half, outer["pattern"][None, :])]
        hidden = [_cross_entropy(apply(params, x)[1], tune.secured) for x in leaks]
        # The entropy of the labels given the open task is all that a perfect scheme leaves.
        return jnp.mean(_cross_entropy(keyed, tune.secured) - 0.5 * jnp.minimum(sum(hidden), 4.0))

    problem = BilevelProblem(outer_loss, protection.loss)
    solver = Truncated(protection.solver(inner_steps), last)
    clip = lambda outer: outer | {"pattern": projections.Box(0.0, 1.0)(outer["pattern"])}
    algorithm = DoubleLoop(problem, solver, optax.adam(0.05), projection=clip)
    outer = {"pattern": start.pattern, "beta": jnp.float32(beta)}
    params = initialise(split, seed)
    batch = Batch(inner=(split.train, start.mask, split.table, seed), outer=split.tune)
    state, _ = run(algorithm, algorithm.init(outer, params), batch, num_steps)
    return start._replace(pattern=state.outer["pattern"])


def initialise(split: Split, seed: jax.Array) -> PyTree:
    """Two hidden layers and two heads."""
    num_opened, num_secured = split.table.shape
    sizes = (split.train.x.shape[1], *HIDDEN)
    shapes = dict(zip(("first", "second"), zip(sizes[:-1], sizes[1:], strict=True), strict=True))
    shapes |= {"opened": (sizes[-1], num_opened), "secured": (sizes[-1], num_secured)}
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: {
            "kernel": jax.random.normal(key, shape) * (2.0 / shape[0]) ** 0.5,
            "bias": jnp.zeros(shape[1]),
        }
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def features(params: PyTree, x: jax.Array) -> jax.Array:
    """What both heads see, `[n, width]`."""
    return jax.nn.relu(_dense(params["second"], jax.nn.relu(_dense(params["first"], x))))


def apply(params: PyTree, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits of the open and of the secured task."""
    seen = features(params, x)
    return _dense(params["opened"], seen), _dense(params["secured"], seen)


def _dense(layer: PyTree, x: jax.Array) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"][None, :]


def _stamped(x: jax.Array, mask: jax.Array, patterns: jax.Array) -> jax.Array:
    return x * (1 - mask)[None, :] + mask[None, :] * patterns


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
