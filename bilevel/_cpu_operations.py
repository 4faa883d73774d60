"""A matrix product and a convolution with their operands in the order that XLA has for CPUs."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

# A product is reordered where its larger operand has at least this many times the elements of the
# smaller operand and of the result, which then cost little to transpose.
_MIN_RATIO = 2


def product(lhs: jax.Array, rhs: jax.Array, **params: Any) -> jax.Array:
    """`dot_general_p`, whose larger operand is read along its rows.

    XLA has fast kernels for `large @ small`, where the larger operand is contracted over its last
    axes, and for `small @ large`, where it is contracted over its first. The two other orders take
    2 to 4 times as long.
    """
    precision = params["precision"]
    result = jax.eval_shape(lambda: lax.dot_general_p.bind(lhs, rhs, **params))
    order = _order(lhs, rhs, params["dimension_numbers"])
    if order is None:
        return lax.dot_general_p.bind(lhs, rhs, **params)

    exchanged, last, large_axes, small_axes = order
    large, small = (rhs, lhs) if exchanged else (lhs, rhs)
    length = math.prod(large.shape[a] for a in large_axes)
    large_free = [a for a in range(large.ndim) if a not in large_axes]
    small_free = [b for b in range(small.ndim) if b not in small_axes]
    large_shape = [large.shape[a] for a in large_free]
    small_shape = [small.shape[b] for b in small_free]
    small = small.transpose(*small_free, *small_axes).reshape(math.prod(small_shape), length)
    if last:
        operands = large.reshape(math.prod(large_shape), length), small.T
    else:
        operands = small, large.reshape(length, math.prod(large_shape))
    large_is_left = last
    if large_is_left == exchanged and isinstance(precision, tuple):
        precision = precision[::-1]
    params |= {"dimension_numbers": (((1,), (0,)), ((), ())), "precision": precision}
    # XLA would turn the product around again for the sake of a transpose before or after it.
    y = lax.dot_general_p.bind(*lax.optimization_barrier(operands), **params)
    y = lax.optimization_barrier(y)
    return (y.T if large_is_left == exchanged else y).reshape(result.shape)


def is_slow(lhs: Any, rhs: Any, *, dimension_numbers: Any, **params: Any) -> bool:
    """Whether `product` may run this one faster than XLA does as it stands; of shapes alone.

    All but `large @ small`: XLA turns `small @ large` around where its result is transposed, as
    derivatives do.
    """
    del params
    order = _order(lhs, rhs, dimension_numbers)
    return order is not None and order[:2] != (False, True)


def _order(
    lhs: Any, rhs: Any, dimension_numbers: Any
) -> tuple[bool, bool, list[int], list[int]] | None:
    """How to read a product along the rows of its larger operand, where that is worthwhile.

    Returns:
        Whether the right operand is the larger; whether it is contracted over its last axes, or
        else its first; and the contracted axes of the larger and of the smaller operand. None to
        leave the product as it is.
    """
    contracted, batch_axes = dimension_numbers
    exchanged = rhs.size > lhs.size
    pairs = sorted(zip(*(contracted[::-1] if exchanged else contracted), strict=True))
    large, small = (rhs, lhs) if exchanged else (lhs, rhs)
    large_axes, small_axes = [a for a, _ in pairs], [b for _, b in pairs]
    first = large_axes == list(range(len(pairs)))
    last = large_axes == list(range(large.ndim - len(pairs), large.ndim))
    length = math.prod(large.shape[a] for a in large_axes)
    result_size = (large.size // max(length, 1)) * (small.size // max(length, 1))
    worthwhile = large.size >= _MIN_RATIO * max(small.size, result_size)
    if any(batch_axes) or not worthwhile or not (first or last):
        return None
    return exchanged, last, large_axes, small_axes


def convolution(image: jax.Array, kernel: jax.Array, **params: Any) -> jax.Array:
    """`conv_general_dilated_p` in the orders NHWC and HWIO, its smaller operand as the kernel.

    XLA's fast kernel has these orders only. Its compiler transposes towards them outside of loops
    alone, and does not see that reverse over reverse slides a kernel as large as the image over an
    image as small as a kernel.
    """
    numbers: lax.ConvDimensionNumbers = params["dimension_numbers"]
    out_channels, in_channels, *kernel_axes = numbers.rhs_spec
    image = image.transpose(_channels_last(numbers.lhs_spec))
    kernel = kernel.transpose(*kernel_axes, in_channels, out_channels)
    grouped = params["feature_group_count"] * params["batch_group_count"] > 1
    exchanged = not grouped and math.prod(kernel.shape[:-2]) > math.prod(image.shape[1:-1])
    if exchanged:
        image, kernel, params = _exchange(image, kernel, params)
    last, axes = image.ndim - 1, range(1, image.ndim - 1)
    params["dimension_numbers"] = lax.ConvDimensionNumbers(
        (0, last, *axes), (last, last - 1, *range(last - 1)), (0, last, *axes)
    )
    y = lax.conv_general_dilated_p.bind(image, kernel, **params)
    if exchanged:
        y = y.transpose(last, *axes, 0)
    return y.transpose(_inverse(_channels_last(numbers.out_spec)))


def _exchange(
    image: jax.Array, kernel: jax.Array, params: dict[str, Any]
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """The convolution of `kernel` with `image`: its result has examples and channels exchanged.

    `sum_q image[p s + q - low] kernel[q]` is, with both operands reversed, the sum over r of
    `kernel[p s + r - low - len(image) + len(kernel)] image[r]`.
    """
    image_dilation, kernel_dilation = params["lhs_dilation"], params["rhs_dilation"]
    image_lengths = _dilated(image.shape[1:-1], image_dilation)
    kernel_lengths = _dilated(kernel.shape[:-2], kernel_dilation)
    excess = [a - b for a, b in zip(image_lengths, kernel_lengths, strict=True)]
    padding = zip(params["padding"], excess, strict=True)
    precision = params["precision"]
    params = params | {
        "padding": tuple((low + e, high + e) for (low, high), e in padding),
        "lhs_dilation": kernel_dilation,
        "rhs_dilation": image_dilation,
        "precision": precision[::-1] if isinstance(precision, tuple) else precision,
    }
    axes = tuple(range(1, image.ndim - 1))
    image, kernel = lax.rev(image, axes), lax.rev(kernel, tuple(a - 1 for a in axes))
    last = image.ndim - 1
    # [height, width, in, out] -> [out, height, width, in]; [n, height, width, in] -> [..., in, n].
    return kernel.transpose(last, *range(last)), image.transpose(*range(1, last + 1), 0), params


def _dilated(lengths: Sequence[int], dilation: Sequence[int]) -> list[int]:
    return [max(0, (n - 1) * d + 1) for n, d in zip(lengths, dilation, strict=True)]


def _channels_last(spec: Sequence[int]) -> tuple[int, ...]:
    """JAX's order `(examples, channels, *space)` as `(examples, *space, channels)`."""
    examples, channels, *space = spec
    return (examples, *space, channels)


def _inverse(permutation: Sequence[int]) -> list[int]:
    return sorted(range(len(permutation)), key=lambda i: permutation[i])
