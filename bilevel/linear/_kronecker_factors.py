"""The factors of EKFAC, for any network that shows its layers to a `tap`."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel.linear._info import PyTree
from bilevel.linear._kronecker import KroneckerFactors, KroneckerLayer, by_path
from bilevel.linear._system import lifted


class Tap(Protocol):
    """How a model shows a layer: `outputs = tap(name, inputs, outputs)`, used in place of outputs.

    `name` is the path of the layer's parameters, e.g. `"block/dense"` for the leaves
    `block/dense/kernel` and `block/dense/bias`. `inputs` are `[..., kernel.size / outputs]`, what
    multiplies the kernel, and `outputs` `[..., outputs]`; leading axes are positions that share the
    kernel, such as those of an image (see `conv_patches`) or of a sequence.
    """

    def __call__(self, name: str, inputs: jax.Array, outputs: jax.Array) -> jax.Array: ...


class _Seen(NamedTuple):
    inputs: dict[str, jax.Array]  # per layer [examples, positions, inputs (+ 1)]
    gradients: dict[str, jax.Array]  # per layer [examples, K, positions, outputs]
    others: dict[str, jax.Array]  # per other leaf, the diagonal of its curvature [examples, ...]


def kronecker_factors(
    model: Callable[[PyTree, PyTree, Tap], PyTree],
    output_loss: Callable[[PyTree, PyTree], jax.Array],
    inner: PyTree,
    examples: PyTree,
) -> KroneckerFactors:
    """Factors of the Gauss-Newton matrix of `mean_n output_loss(model(inner, x_n), x_n)`.

    Eigenvectors of the second moments of each layer's inputs and output gradients, and the exact
    diagonal of the Gauss-Newton matrix in the basis that they span (George et al., NeurIPS 2018,
    Algorithm 1); of leaves that no layer covers, its exact diagonal.

    Differs from the paper in that the output gradients are not of sampled labels: the Hessian of
    `output_loss` in the K outputs is split into K columns, each propagated back. So the result is
    exact and has no noise, at K backward passes. For softmax cross-entropy and squared loss the
    Gauss-Newton matrix is the Fisher matrix.

    Args:
        model: `(inner, example, tap) -> outputs`, of one example; it calls the `tap` (see `Tap`)
            once for each dense or convolutional layer that is to be factorised.
        output_loss: `(outputs, example) -> scalar`, convex in the outputs.
        inner: the parameters: a pytree in which each tapped layer has `kernel` and maybe `bias`.
        examples: a pytree of arrays with one leading axis, that of the examples. All are processed
            at once: pass a sample where memory is short.

    Raises:
        ValueError: a tapped name has no kernel in `inner`, the shapes do not match it, or a layer
            was tapped twice.
    """
    leaves = by_path(inner)
    offsets = _output_shapes(model, inner, leaves, jax.tree.map(lambda a: a[0], examples))
    seen = jax.vmap(lambda x: _observe(model, output_loss, inner, offsets, x))(examples)
    layers = {name: _factorise(seen.inputs[name], seen.gradients[name]) for name in offsets}
    return KroneckerFactors(
        layers, {path: jnp.mean(squares, axis=0) for path, squares in seen.others.items()}
    )


def conv_patches(
    image: jax.Array,
    kernel_size: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    padding: str = "SAME",
) -> jax.Array:
    """What a 2-D convolution multiplies its kernel with: `patches @ kernel.reshape(-1, outputs)`.

    Args:
        image: `[height, width, channels]`.
        kernel_size: `(height, width)` of the kernel `[height, width, channels, outputs]`.
        strides: of the convolution.
        padding: "SAME" or "VALID", as of the convolution.

    Returns:
        `[positions down, positions across, height * width * channels]`, the inputs for a `Tap`.
    """
    patches = jax.lax.conv_general_dilated_patches(
        image[None], kernel_size, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]
    # JAX puts the channels first among the entries of a patch; a kernel has them last.
    shape = (*patches.shape[:2], image.shape[-1], -1)
    return jnp.swapaxes(patches.reshape(shape), -1, -2).reshape(patches.shape)


def _output_shapes(
    model: Callable[[PyTree, PyTree, Tap], PyTree],
    inner: PyTree,
    leaves: dict[str, jax.Array],
    example: PyTree,
) -> dict[str, jax.Array]:
    """Zeros like the outputs of each tapped layer, after checking what was tapped."""
    shapes: dict[str, tuple[tuple[int, ...], jnp.dtype]] = {}

    def record(name: str, inputs: jax.Array, outputs: jax.Array) -> jax.Array:
        kernel = leaves.get(f"{name}/kernel")
        if kernel is None:
            raise ValueError(
                f"`tap` was given the name {name!r}, but `inner` has no leaf `{name}/kernel`; it"
                f" has {sorted(leaves)}."
            )
        expected = (kernel.size // kernel.shape[-1], kernel.shape[-1])
        if (inputs.shape[-1], outputs.shape[-1]) != expected:
            raise ValueError(
                f"`tap({name!r}, inputs, outputs)` must get arrays whose last axes are {expected},"
                f" as `{name}/kernel` is {kernel.shape}; got {inputs.shape} and {outputs.shape}."
                " For a convolution pass `conv_patches(...)` as inputs."
            )
        if name in shapes:
            raise ValueError(
                f"`tap` was given the name {name!r} twice: call it once for each layer, with a"
                " leading axis for the positions that share a kernel."
            )
        shapes[name] = outputs.shape, outputs.dtype
        return outputs

    jax.eval_shape(lambda inner, example: model(inner, example, record), inner, example)
    return {name: jnp.zeros(*shape) for name, shape in shapes.items()}


def _observe(
    model: Callable[[PyTree, PyTree, Tap], PyTree],
    output_loss: Callable[[PyTree, PyTree], jax.Array],
    inner: PyTree,
    offsets: dict[str, jax.Array],
    example: PyTree,
) -> _Seen:
    """Inputs and output gradients of one example."""
    leaves, structure = by_path(inner), jax.tree.structure(inner)
    covered = {f"{name}/{part}" for name in offsets for part in ("kernel", "bias")}

    def tapped(
        offsets: dict[str, jax.Array], others: dict[str, jax.Array]
    ) -> tuple[PyTree, dict[str, jax.Array]]:
        shown = {}

        def tap(name: str, inputs: jax.Array, outputs: jax.Array) -> jax.Array:
            shown[name] = inputs
            return outputs + offsets[name]

        merged = jax.tree.unflatten(structure, list({**leaves, **others}.values()))
        return model(merged, example, tap), shown

    others = {path: leaf for path, leaf in leaves.items() if path not in covered}
    outputs, pullback, inputs = jax.vjp(tapped, offsets, others, has_aux=True)
    flat, unravel = ravel_pytree(outputs)
    hessian = jax.hessian(lambda flat: output_loss(unravel(flat), example))(flat)
    values, vectors = jnp.linalg.eigh(lifted(hessian))
    columns = vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None]
    gradients, slopes = jax.vmap(lambda c: pullback(unravel(c)))(columns.T.astype(flat.dtype))
    return _Seen(
        inputs={name: _rows(lifted(a), f"{name}/bias" in leaves) for name, a in inputs.items()},
        gradients={n: lifted(g).reshape(g.shape[0], -1, g.shape[-1]) for n, g in gradients.items()},
        others={path: jnp.sum(jnp.square(lifted(s)), axis=0) for path, s in slopes.items()},
    )


def _rows(inputs: jax.Array, with_bias: bool) -> jax.Array:
    rows = inputs.reshape(-1, inputs.shape[-1])
    ones = jnp.ones((rows.shape[0], int(with_bias)), rows.dtype)
    return jnp.concatenate([rows, ones], axis=1)


def _factorise(inputs: jax.Array, gradients: jax.Array) -> KroneckerLayer:
    """Bases from `[n, t, i]` inputs and `[n, k, t, o]` gradients, and the scales in them."""
    input_basis = jnp.linalg.eigh(jnp.einsum("nti,ntj->ij", inputs, inputs))[1]
    output_basis = jnp.linalg.eigh(jnp.einsum("nkto,nktp->op", gradients, gradients))[1]

    def add(scales: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        """One example at a time: its K weight gradients are the largest arrays of all."""
        per_column = jnp.einsum("ti,kto->kio", pair[0] @ input_basis, pair[1] @ output_basis)
        return scales + jnp.sum(jnp.square(per_column), axis=0), None

    zero = jnp.zeros((inputs.shape[-1], gradients.shape[-1]), gradients.dtype)
    scales = jax.lax.scan(add, zero, (inputs, gradients))[0] / inputs.shape[0]
    return KroneckerLayer(input_basis, output_basis, scales)
