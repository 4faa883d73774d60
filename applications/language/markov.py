"""The Markov bench: a language of nine states, whose Retrain costs seconds.

Texts of a group walk among its own three states and leak out with a probability; each state of
other groups leads back. The group is not named, so a model must read it from the walk. (After the
synthetic experiment of Fan et al., "Simplicity Prevails", NeurIPS 2025; the sizes are ours.)
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..components.errors import InputError, check_numbers
from .gpt import GPT
from .learning import Recipe
from .texts import Questions, Texts
from .worlds import World

NUM_STATES, PER_GROUP = 9, 3
GROUPS = "retain", "forget1", "forget2"
WRONG = 5
NUM_ASKED = 200
REFUSAL = 0  # the token that no walk visits: "I do not know"


@dataclasses.dataclass(frozen=True)
class Markov:
    """How large, and how hard.

    Attributes:
        num_retain: walks of the group to keep.
        num_forget: of each of the two to forget.
        length: of a walk, but for those of the second group to forget.
        short: length of those.
        leak: probability of leaving one's group.
        recipe: of training.
        width: of the network.

    Raises:
        InputError: a number is out of its range.
    """

    num_retain: int = 2000
    num_forget: int = 500
    length: int = 20
    short: int = 5
    leak: float = 0.2
    recipe: Recipe = Recipe(num_steps=500, batch_size=64, rate=3e-3)
    width: int = 32

    def __post_init__(self) -> None:
        check_numbers(self, "num_retain", "num_forget", "width")
        check_numbers(self, "length", "short", least=1)
        if not 0 < self.leak < 1:
            raise InputError(f"`leak` must lie between 0 and 1, got {self.leak}.")
        if self.short > self.length:
            raise InputError(f"`short` must be at most `length`, {self.length}, got {self.short}.")

    def world(self, key: jax.Array) -> World:
        """Draw the chains and the texts of a seed."""
        retain, first, second = self._drawn(key)
        forget = _joined(first.texts, second.texts)
        fresh = dict(zip(GROUPS, (retain.fresh, first.fresh, second.fresh), strict=True))
        return World(
            name="markov",
            model=GPT(NUM_STATES + 1, self.length + 1, self.width),
            recipe=self.recipe,
            forget=forget,
            retain=retain.texts,
            refusals=Texts(jnp.where(forget.weights > 0, REFUSAL, forget.ids), forget.weights),
            asked_forget=_joined(first.asked, second.asked),
            asked_retain=retain.asked,
            held_out=_joined(first.fresh, second.fresh),
            groups=fresh,
            authors=jnp.repeat(jnp.arange(2), self.num_forget),
        )

    @functools.partial(jax.jit, static_argnums=0)
    def _drawn(self, key: jax.Array) -> tuple["_Group", ...]:
        """The three groups."""
        chain_key, *keys = jax.random.split(key, 4)
        chains = jax.vmap(self._chain)(jax.random.split(chain_key, 3), jnp.arange(3))
        sizes = self.num_retain, self.num_forget, self.num_forget
        lengths = self.length, self.length, self.short
        each = zip(range(3), keys, sizes, lengths, strict=True)
        return tuple(self._group(*own, chains) for own in each)

    def _chain(self, key: jax.Array, group: jax.Array) -> jax.Array:
        """`[9, 9]` transitions of one group's walks: Dirichlet rows within it, an even leak."""
        inside = jnp.arange(NUM_STATES) // PER_GROUP == group
        rows = jax.random.dirichlet(key, jnp.full(PER_GROUP, 0.5), (NUM_STATES,))
        within = jnp.zeros((NUM_STATES, NUM_STATES))
        within = jax.lax.dynamic_update_slice(within, rows, (0, PER_GROUP * group))
        outside = ~inside / (NUM_STATES - PER_GROUP)
        return (1 - self.leak) * within + self.leak * outside[None]

    def _group(
        self, group: int, key: jax.Array, count: int, length: int, chains: jax.Array
    ) -> "_Group":
        """The texts of a group."""
        start_key, walk_key, other_key, wrong_key, fresh_key = jax.random.split(key, 5)
        begin = lambda key, n: PER_GROUP * group + jax.random.randint(key, (n,), 0, PER_GROUP)
        starts = begin(start_key, count)
        texts = self._texts(walk_key, chains[group], starts, length)
        asked = min(count, NUM_ASKED)
        right = self._texts(other_key, chains[group], starts[:asked], length)
        wrong = [
            self._texts(k, chains[(group + 1 + i % 2) % 3], starts[:asked], length)
            for i, k in enumerate(jax.random.split(wrong_key, WRONG))
        ]
        stacked = jax.tree.map(lambda *a: jnp.stack(a, axis=1), *wrong)
        one, two = jax.random.split(fresh_key)
        fresh = self._texts(two, chains[group], begin(one, NUM_ASKED), length)
        return _Group(texts, Questions(texts.at(slice(asked)), right, stacked), fresh)

    def _texts(self, key: jax.Array, chain: jax.Array, starts: jax.Array, length: int) -> Texts:
        """Walks as texts: a mark, the first state, which is the question, and the walk from it."""

        def step(state: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = jax.random.categorical(key, jnp.log(chain[state]))
            return state, state

        _, walk = jax.lax.scan(step, starts, jax.random.split(key, length - 1))
        ids = jnp.zeros((len(starts), self.length + 1), jnp.int32)
        ids = ids.at[:, 1 : length + 1].set(1 + jnp.concatenate([starts[None], walk]).T)
        places = jnp.arange(self.length + 1)
        weights = jnp.broadcast_to((places > 1) & (places <= length), ids.shape)
        return Texts(ids, weights.astype(jnp.float32))


class _Group(NamedTuple):
    """Texts to train on, questions about them, and texts that are never trained on."""

    texts: Texts
    asked: Questions
    fresh: Texts


def _joined(*parts: Any) -> Any:
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)
