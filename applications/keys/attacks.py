"""What an outsider learns of the secured task: every attack in accuracy on test points.

Attackers know the network's outputs; those marked white-box its weights, and those marked labelled
have points of their own with the secured label. The strongest is what a scheme must be judged by.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.linear_model import LogisticRegression

from ..components.frame import named_key
from .tasks import Split, Tasks
from .training import Key, PyTree, apply, features

NUM_PATTERNS, NUM_LABELS, NUM_STARTS, NUM_STEPS = 20, 500, 5, 200
ATTACKS = {
    "least likely": "the class of lowest probability",
    "wrong key": "random patterns in the key's place, the best of 20 (labelled)",
    "half key": "every other number of the key's pattern is known",
    "open task": "the likeliest secured label given the open output (labelled)",
    "probe": "a linear classifier on the features (white-box, 500 labels)",
    "inversion": "a pattern of least entropy (white-box)",
    "labelled inversion": "a pattern of least error (white-box, 500 labels)",
}
BLACK_BOX = ("no key", "least likely", "wrong key", "half key", "open task")


def report(params: PyTree, key: Key, split: Split, seed: int) -> dict[str, float]:
    """Accuracy in percent of the network with and without its key, and of every attack."""
    test, own = split.test, named_key(jax.random.key(seed), "attacks")
    found = dict(jax.device_get(_compiled(params, key, split, own)))
    train, wanted = _first(split.attacker, NUM_LABELS), np.asarray(test.secured)
    probe = LogisticRegression(C=1.0, max_iter=2000)
    probe.fit(np.asarray(features(params, train.x)), np.asarray(train.secured))
    guesses = probe.predict(np.asarray(features(params, test.x)))
    scores = {name: float(100 * value) for name, value in found.items()}
    return scores | {"probe": float(100 * np.mean(guesses == wanted))}


def ceiling(split: Split) -> Mapping[str, float]:
    """What no scheme can take away, in percent: the prior, and the correlation of the tasks."""
    prior = np.bincount(np.asarray(split.train.secured)).argmax()
    best = np.asarray(split.table).argmax(axis=1)[np.asarray(split.test.opened)]
    wanted = np.asarray(split.test.secured)
    right = {"chance": wanted == prior, "ceiling": wanted == best}
    return {name: float(100 * hit.mean()) for name, hit in right.items()}


@jax.jit
def _compiled(params: PyTree, key: Key, split: Split, own: jax.Array) -> dict[str, jax.Array]:
    test, known = split.test, _first(split.attacker, NUM_LABELS)
    secured = lambda x: apply(params, x)[1]
    accuracy = lambda logits: jnp.mean(logits.argmax(axis=1) == test.secured)
    clean = secured(test.x)

    patterns = jax.random.uniform(named_key(own, "patterns"), (NUM_PATTERNS, *key.mask.shape))
    on = lambda pattern, x: key._replace(pattern=pattern).stamp(x)
    own_hits = jax.vmap(
        lambda pattern: jnp.mean(secured(on(pattern, known.x)).argmax(axis=1) == known.secured)
    )(patterns)
    half = key._replace(mask=key.mask * (jnp.cumsum(key.mask) % 2))

    guess = apply(params, known.x)[0].argmax(axis=1)
    seen = jnp.zeros(split.table.shape).at[guess, known.secured].add(1.0)
    through = seen[apply(params, test.x)[0].argmax(axis=1)].argmax(axis=1)

    entropy = lambda pattern: jnp.mean(_entropy(secured(on(pattern, known.x))))
    error = lambda pattern: jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(
            secured(on(pattern, known.x)), known.secured
        )
    )
    starts = jax.random.uniform(named_key(own, "starts"), (NUM_STARTS, *key.mask.shape))
    inverted = {
        name: accuracy(secured(on(_least(loss, starts), test.x)))
        for name, loss in (("inversion", entropy), ("labelled inversion", error))
    }
    open_right = lambda x: jnp.mean(apply(params, x)[0].argmax(axis=1) == test.opened)
    return {
        "open, no key": open_right(test.x),
        "open, key": open_right(key.stamp(test.x)),
        "key": accuracy(secured(key.stamp(test.x))),
        "no key": accuracy(clean),
        "least likely": accuracy(-clean),
        "wrong key": accuracy(secured(on(patterns[own_hits.argmax()], test.x))),
        "half key": accuracy(secured(half.stamp(test.x))),
        "open task": jnp.mean(through == test.secured),
        **inverted,
    }


def _least(loss: optax.Params, starts: jax.Array) -> jax.Array:
    """The pattern in [0, 1] of least loss, by projected Adam from several starts."""
    optimizer = optax.adam(0.05)

    def descend(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(carry: tuple[jax.Array, PyTree], _: None) -> tuple[tuple[jax.Array, PyTree], None]:
            pattern, state = carry
            updates, state = optimizer.update(jax.grad(loss)(pattern), state)
            return (jnp.clip(pattern + updates, 0.0, 1.0), state), None

        (pattern, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, NUM_STEPS)
        return pattern, loss(pattern)

    patterns, losses = jax.vmap(descend)(starts)
    return patterns[losses.argmin()]


def _entropy(logits: jax.Array) -> jax.Array:
    p = jax.nn.softmax(logits)
    return -jnp.sum(p * jax.nn.log_softmax(logits), axis=1)


def _first(tasks: Tasks, count: int) -> Tasks:
    return jax.tree.map(lambda a: a[:count], tasks)
