"""A small transformer that predicts the next token, in plain JAX."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from bilevel.linear import Tap

from ..components.errors import check_numbers
from .texts import Texts

Params = dict[str, Any]


def untouched(name: str, inputs: jax.Array, outputs: jax.Array) -> jax.Array:
    """The `Tap` that looks at nothing."""
    del name, inputs
    return outputs


@dataclasses.dataclass(frozen=True)
class GPT:
    """Pre-normalised blocks of causal attention and a GELU layer; tied embeddings.

    A model of yours needs `init(key) -> params` and `logits(params, ids)`, the same for any number
    of leading axes; RMU also asks it for `hidden`, and K-FADE for `tapped`.

    Attributes:
        num_tokens: of the vocabulary.
        context: tokens in a row, at most.
        width: of the residual stream.
        num_layers: blocks.
        num_heads: of attention; must divide the width.

    Raises:
        InputError: a number is out of its range.
    """

    num_tokens: int
    context: int
    width: int = 32
    num_layers: int = 2
    num_heads: int = 4

    def __post_init__(self) -> None:
        check_numbers(self, "num_tokens", "context", "width", "num_layers", "num_heads")

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters: normal ones of deviation .02, those into the stream scaled down."""
        embed_key, place_key, *keys = jax.random.split(key, 2 + self.num_layers)
        normal = lambda key, *shape: 0.02 * jax.random.normal(key, shape)
        norm = lambda: {"scale": jnp.ones(self.width), "bias": jnp.zeros(self.width)}
        params: Params = {
            "tokens": normal(embed_key, self.num_tokens, self.width),
            "places": normal(place_key, self.context, self.width),
            "last": norm(),
        }
        into = 1 / math.sqrt(2 * self.num_layers)
        for number, own in enumerate(keys):
            inner, wide = self.width, 4 * self.width
            shapes = {"qkv": (inner, 3 * inner), "out": (inner, inner), "up": (inner, wide)}
            shapes["down"] = (wide, inner)
            block: Params = {"attend": norm(), "think": norm()}
            for (name, shape), part in zip(shapes.items(), jax.random.split(own, 4), strict=True):
                scale = into if name in ("out", "down") else 1.0
                kernel = scale * normal(part, *shape)
                block[name] = {"kernel": kernel, "bias": jnp.zeros(shape[1])}
            params[f"block{number}"] = block
        return params

    def logits(self, params: Params, ids: jax.Array) -> jax.Array:
        """`[..., length, num_tokens]` of the next token, for ids `[..., length]`."""
        return self.tapped(params, ids, untouched)

    def tapped(self, params: Params, ids: jax.Array, tap: Tap) -> jax.Array:
        """`logits`, with each dense layer shown to a `tap`."""
        stream = self._embed(params, ids, slice(ids.shape[-1]))
        for number in range(self.num_layers):
            stream = self._block(params, number, stream, tap)
        return _normalised(params["last"], stream) @ params["tokens"].T

    def hidden(self, params: Params, ids: jax.Array, layer: int) -> jax.Array:
        """`[..., length, width]`, the residual stream after `layer` blocks."""
        stream = self._embed(params, ids, slice(ids.shape[-1]))
        for number in range(layer):
            stream = self._block(params, number, stream, untouched)
        return stream

    def decode(self, params: Params, texts: Texts) -> jax.Array:
        """The likeliest tokens after each question: `[n, context]`, the question included.

        Keys and values of earlier tokens are kept, so all of it costs about one forward pass.
        """
        count, length = texts.ids.shape
        shape = (self.num_layers, 2, count, length, self.num_heads, self.width // self.num_heads)

        def step(carry: tuple[jax.Array, jax.Array], place: jax.Array) -> Any:
            kept, token = carry
            stream = self._embed(params, token[:, None], place[None])
            for number in range(self.num_layers):
                block = params[f"block{number}"]
                query, key, value = self._heads(block, stream, number, untouched)
                kept = jax.lax.dynamic_update_slice(
                    kept, jnp.stack([key, value])[None], (number, 0, 0, place, 0, 0)
                )
                seen = (jnp.arange(length) <= place)[None]
                mixed = _attend(query, kept[number, 0], kept[number, 1], seen)
                stream = self._finish(block, stream, mixed, number, untouched)
            scores = _normalised(params["last"], stream)[:, 0] @ params["tokens"].T
            given = texts.ids[:, jnp.minimum(place + 1, length - 1)]
            token = jnp.where(place + 1 < texts.starts, given, jnp.argmax(scores, axis=-1))
            return (kept, token), token

        start = jnp.zeros(shape, params["tokens"].dtype), texts.ids[:, 0]
        _, rest = jax.lax.scan(step, start, jnp.arange(length - 1))
        return jnp.concatenate([texts.ids[:, :1], rest.T], axis=1)

    def _embed(self, params: Params, ids: jax.Array, places: Any) -> jax.Array:
        stream = params["tokens"][ids]
        return stream + _lifted(params["places"][places], stream)

    def _block(self, params: Params, number: int, stream: jax.Array, tap: Tap) -> jax.Array:
        block, length = params[f"block{number}"], stream.shape[-2]
        query, key, value = self._heads(block, stream, number, tap)
        mixed = _attend(query, key, value, jnp.tril(jnp.ones((length, length), bool)))
        return self._finish(block, stream, mixed, number, tap)

    def _heads(self, block: Params, stream: jax.Array, number: int, tap: Tap) -> list[jax.Array]:
        joint = _dense(block, number, "qkv", _normalised(block["attend"], stream), tap)
        shape = (*stream.shape[:-1], self.num_heads, self.width // self.num_heads)
        return [part.reshape(shape) for part in jnp.split(joint, 3, axis=-1)]

    def _finish(
        self, block: Params, stream: jax.Array, mixed: jax.Array, number: int, tap: Tap
    ) -> jax.Array:
        stream = stream + _dense(block, number, "out", mixed.reshape(stream.shape), tap)
        wide = _dense(block, number, "up", _normalised(block["think"], stream), tap)
        return stream + _dense(block, number, "down", jax.nn.gelu(wide), tap)


def _attend(query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array) -> jax.Array:
    """Softmax attention of heads on axis -2; `seen` is `[queries, keys]`."""
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key) / math.sqrt(query.shape[-1])
    weights = jax.nn.softmax(jnp.where(_lifted(seen, scores), scores, -1e30), axis=-1)
    return jnp.einsum("...hqk,...khd->...qhd", weights, value)


def _dense(block: Params, number: int, name: str, inputs: jax.Array, tap: Tap) -> jax.Array:
    layer = block[name]
    outputs = inputs @ layer["kernel"]
    return tap(f"block{number}/{name}", inputs, outputs + _lifted(layer["bias"], outputs))


def _normalised(layer: Params, stream: jax.Array) -> jax.Array:
    centred = stream - jnp.mean(stream, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-5)
    whole = centred * scale
    return whole * _lifted(layer["scale"], whole) + _lifted(layer["bias"], whole)


def _lifted(array: jax.Array, like: jax.Array) -> jax.Array:
    """With as many axes as `like`, the new ones first and of length 1."""
    return array.reshape((1,) * (like.ndim - array.ndim) + array.shape)
