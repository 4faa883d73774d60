"""A Llama-type network in plain JAX: what a pretrained model's weights are put to work in."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from ..components.errors import InputError, check_numbers
from .texts import Texts

Params = dict[str, Any]
Pair = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Llama:
    """Grouped heads, rotary places, RMS norms, SwiGLU layers, tied embeddings, no biases.

    Every leaf of `blocks` has a leading axis, that of the layers, so a program holds one layer
    whatever their number. Rotary pairs are neighbours, (0, 1), (2, 3), ...: GGUF files have the
    rows of queries and keys in that order, and the other one, halves, gives no error but nonsense.

    Attributes:
        num_tokens: of the vocabulary.
        width: of the residual stream.
        num_layers: blocks.
        num_heads: of queries; must divide the width.
        num_groups: of heads that share keys and values; must divide the heads.
        inner_width: of the layer between.
        rope_base: of the rotary places.
        norm_eps: of the norms.
        bfloat16: products of dense layers in bfloat16; parameters, the residual stream, attention
            and logits are float32 in any case.

    Raises:
        InputError: a number is out of its range or does not divide.
    """

    num_tokens: int
    width: int = 576
    num_layers: int = 30
    num_heads: int = 9
    num_groups: int = 3
    inner_width: int = 1536
    rope_base: float = 1e5
    norm_eps: float = 1e-5
    bfloat16: bool = False

    def __post_init__(self) -> None:
        names = [field.name for field in dataclasses.fields(self) if field.name != "bfloat16"]
        check_numbers(self, *names)
        for whole, part in (("width", "num_heads"), ("num_heads", "num_groups")):
            if getattr(self, whole) % getattr(self, part):
                raise InputError(
                    f"`{part}` must divide `{whole}`, got {part}={getattr(self, part)} and"
                    f" {whole}={getattr(self, whole)}."
                )
        if self.head_width % 2:
            raise InputError(
                f"`width` / `num_heads` must be even, as places turn pairs of entries, got"
                f" {self.width} / {self.num_heads}."
            )

    @property
    def head_width(self) -> int:
        """Entries of a head."""
        return self.width // self.num_heads

    @property
    def shapes(self) -> Params:
        """Of the parameters."""
        few, inner, layers = self.num_groups * self.head_width, self.inner_width, self.num_layers
        blocks = {
            "attend": (self.width,),
            "query": (self.width, self.width),
            "key": (self.width, few),
            "value": (self.width, few),
            "out": (self.width, self.width),
            "think": (self.width,),
            "gate": (self.width, inner),
            "up": (self.width, inner),
            "down": (inner, self.width),
        }
        return {
            "tokens": (self.num_tokens, self.width),
            "blocks": {name: (layers, *shape) for name, shape in blocks.items()},
            "last": (self.width,),
        }

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters: normal ones of deviation .02, norms of 1."""
        shapes = self.shapes
        norms = {"attend", "think"}
        tokens_key, *keys = jax.random.split(key, 1 + len(shapes["blocks"]))
        normal = lambda key, shape: 0.02 * jax.random.normal(key, shape)
        blocks = {
            name: jnp.ones(shape) if name in norms else normal(own, shape)
            for own, (name, shape) in zip(keys, shapes["blocks"].items(), strict=True)
        }
        tokens = normal(tokens_key, shapes["tokens"])
        return {"tokens": tokens, "blocks": blocks, "last": jnp.ones(shapes["last"])}

    def logits(self, params: Params, ids: jax.Array) -> jax.Array:
        """`[..., length, num_tokens]` of the next token, for ids `[..., length]`."""
        return self._scores(params, self.hidden(params, ids, self.num_layers))

    def hidden(self, params: Params, ids: jax.Array, layer: int) -> jax.Array:
        """`[..., length, width]`, the residual stream after `layer` blocks."""
        length = ids.shape[-1]
        turn = self._turn(jnp.arange(length))
        seen = jnp.tril(jnp.ones((length, length), bool))

        def one(stream: jax.Array, block: Params) -> tuple[jax.Array, None]:
            query, key, value = self._heads(block, stream, turn)
            return self._finish(block, stream, _attend(query, key, value, seen)), None

        blocks = jax.tree.map(lambda leaf: leaf[:layer], params["blocks"])
        return jax.lax.scan(one, params["tokens"][ids], blocks)[0]

    def decode(self, params: Params, texts: Texts) -> jax.Array:
        """The likeliest tokens after each question: `[n, length]`, the question included.

        Keys and values of earlier tokens are kept, so all of it costs about one forward pass.
        """
        count, length = texts.ids.shape
        shape = (self.num_layers, count, length, self.num_groups, self.head_width)

        def step(carry: Any, place: jax.Array) -> Any:
            kept, token = carry
            turn = self._turn(place[None])
            seen = (jnp.arange(length) <= place)[None]

            def one(stream: jax.Array, own: tuple[Params, Pair]) -> tuple[jax.Array, Pair]:
                block, kept = own
                query, *new = self._heads(block, stream, turn)
                put = lambda old, new: jax.lax.dynamic_update_slice(old, new, (0, place, 0, 0))
                keys, values = map(put, kept, new)
                mixed = _attend(query, keys, values, seen)
                return self._finish(block, stream, mixed), (keys, values)

            stream = params["tokens"][token[:, None]]
            stream, kept = jax.lax.scan(one, stream, (params["blocks"], kept))
            given = texts.ids[:, jnp.minimum(place + 1, length - 1)]
            said = jnp.argmax(self._scores(params, stream)[:, 0], axis=-1)
            token = jnp.where(place + 1 < texts.starts, given, said)
            return (kept, token), token

        empty = jnp.zeros(shape, params["tokens"].dtype)
        start = (empty, empty), texts.ids[:, 0]
        _, rest = jax.lax.scan(step, start, jnp.arange(length - 1))
        return jnp.concatenate([texts.ids[:, :1], rest.T], axis=1)

    def _scores(self, params: Params, stream: jax.Array) -> jax.Array:
        return self._normalised(params["last"], stream) @ params["tokens"].T

    def _heads(self, block: Params, stream: jax.Array, turn: Pair) -> tuple[jax.Array, ...]:
        """Queries `[..., length, groups, heads of each, head]`; keys and values lack one axis."""
        inputs = self._normalised(block["attend"], stream)
        lead = (*stream.shape[:-1], self.num_groups)
        query, key, value = (self._dense(block[n], inputs) for n in ("query", "key", "value"))
        query = query.reshape(*lead, self.num_heads // self.num_groups, self.head_width)
        key, value = (part.reshape(*lead, self.head_width) for part in (key, value))
        cos, sin = turn
        query = _turned(query, cos[:, None], sin[:, None])
        return query, _turned(key, cos, sin), value

    def _finish(self, block: Params, stream: jax.Array, mixed: jax.Array) -> jax.Array:
        stream = stream + self._dense(block["out"], mixed.reshape(stream.shape))
        inputs = self._normalised(block["think"], stream)
        gate, up = self._dense(block["gate"], inputs), self._dense(block["up"], inputs)
        return stream + self._dense(block["down"], jax.nn.silu(gate) * up)

    def _dense(self, kernel: jax.Array, inputs: jax.Array) -> jax.Array:
        if not self.bfloat16:
            return inputs @ kernel
        # Rounded on the way out too: a float32 result would have the products of the backward pass
        # in float32.
        product = inputs.astype(jnp.bfloat16) @ kernel.astype(jnp.bfloat16)
        return product.astype(inputs.dtype)

    def _normalised(self, scale: jax.Array, stream: jax.Array) -> jax.Array:
        size = jnp.mean(jnp.square(stream), axis=-1, keepdims=True)
        return stream * jax.lax.rsqrt(size + self.norm_eps) * _lifted(scale, stream)

    def _turn(self, places: jax.Array) -> Pair:
        """Cosines and sines of the angles of places `[length]`: `[length, 1, head / 2]` each."""
        powers = jnp.arange(0, self.head_width, 2) / self.head_width
        angles = places[:, None, None] * (self.rope_base**-powers)[None, None]
        return jnp.cos(angles), jnp.sin(angles)


def _turned(heads: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Neighbouring entries turned by the angle of their place."""
    pairs = heads.reshape(*heads.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = (_lifted(part, even).astype(heads.dtype) for part in (cos, sin))
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(heads.shape)


def _attend(query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array) -> jax.Array:
    """Softmax attention; `seen` is `[queries, keys]`."""
    scores = jnp.einsum("...qghd,...kgd->...ghqk", query, key) / math.sqrt(query.shape[-1])
    weights = jax.nn.softmax(jnp.where(_lifted(seen, scores), scores, -1e30), axis=-1)
    return jnp.einsum("...ghqk,...kgd->...qghd", weights, value)


def _lifted(array: jax.Array, like: jax.Array) -> jax.Array:
    """With as many axes as `like`, the new ones first and of length 1."""
    return array.reshape((1,) * (like.ndim - array.ndim) + array.shape)
