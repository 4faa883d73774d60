"""Losses that are fast on CPUs as they are naturally written: `fast_on_cpu(loss)`."""

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax import lax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from bilevel import _check, _cpu_operations

# Kernels are compiled by rules of their own, which know JAX's own operations only.
_LEFT_PLAIN = ("pallas_call",)
_replacements: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def fast_on_cpu(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose products and convolutions, and those of its derivatives, suit a CPU.

    XLA's compiler for CPUs has two traps. A product that contracts over the rows of its larger
    operand, as the gradient of `x @ weights` does, takes 2 to 4 times as long as the transposed
    product. A convolution inside a compiled loop, and the second derivative of one by reverse over
    reverse, takes up to 50 times as long as its fast kernel, for want of the memory order that this
    kernel knows. Here both become operations that are bilinear, that stay themselves under `grad`,
    `jvp`, `vmap` and control flow, and that put their operands in order when they are compiled for
    a CPU. On every other platform the program is the same as without:

        problem = BilevelProblem(fast_on_cpu(outer_loss), fast_on_cpu(inner_loss))

    Use it for any loss with matrix products or convolutions that may run on a CPU. Values change by
    rounding only (1e-6 relative in float32). Under `jit` it costs nothing at run time, so write
    `jax.jit(fast_on_cpu(f))`; outside of `jit` every call traces the loss.

    Not reached: the rules of `custom_jvp` and `custom_vjp` functions, Pallas kernels, products
    with batch axes, and arrays sharded over explicit mesh axes. Grouped convolutions, which `vmap`
    over kernels makes, get the memory order but stay far from the speed of one alone. A
    `jax.checkpoint` outside of the transformed function knows its operations by other names, so a
    policy such as `dots_saveable` belongs inside the loss.

    Args:
        loss: a pure JAX function of pytrees, e.g. `loss(outer, inner, data) -> scalar`; it may
            close over arrays. Leaves that are no JAX arrays reach it as they are.

    Returns:
        A function with the same arguments and the same results.

    Raises:
        TypeError: `loss` is not callable, or a class.
    """
    _check.function("loss", loss, "such as `(outer, inner, data) -> scalar`")

    @functools.wraps(loss)
    def fast(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, kwargs))
        traced = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

        def of_arrays(*arrays: jax.Array) -> Any:
            merged = leaves.copy()
            for i, array in zip(traced, arrays, strict=True):
                merged[i] = array
            args, kwargs = jax.tree.unflatten(structure, merged)
            return loss(*args, **kwargs)

        arrays = [leaves[i] for i in traced]
        jaxpr, shape = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
        results = core.jaxpr_as_fun(_replaced(jaxpr))(*arrays)
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return fast


def _replaced(value: Any) -> Any:
    """A jaxpr, or tuple with jaxprs, that calls the fast operations; `value` if there are none.

    One jaxpr has one replacement: functions that JAX traces once are still compiled once.
    """
    if isinstance(value, tuple | list):
        items = [_replaced(item) for item in value]
        if _same(items, value):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if not isinstance(value, core.Jaxpr | core.ClosedJaxpr):
        return value
    if value not in _replacements:
        if isinstance(value, core.Jaxpr):  # first, as newer versions of JAX have this class alone
            equations = [_replaced_equation(equation) for equation in value.eqns]
            if _same(equations, value.eqns):
                return value
            _replacements[value] = value.replace(eqns=equations)
        else:
            jaxpr = _replaced(value.jaxpr)
            if jaxpr is value.jaxpr:
                return value
            _replacements[value] = value.replace(jaxpr=jaxpr)
    return _replacements[value]


def _replaced_equation(equation: core.JaxprEqn) -> core.JaxprEqn:
    if equation.primitive in _TWINS:
        return equation.replace(primitive=_TWINS[equation.primitive])
    if equation.primitive.name in _LEFT_PLAIN:
        return equation
    params = {name: _replaced(value) for name, value in equation.params.items()}
    if _same(params.values(), equation.params.values()):
        return equation
    if callable(params.get("policy")):
        params["policy"] = functools.partial(_policy_of_plain, params["policy"])
    return equation.replace(params=params)


def _policy_of_plain(policy: Callable[..., Any], primitive: Any, *args: Any, **params: Any) -> Any:
    """What a policy of `jax.checkpoint` says of the operation that a twin stands for."""
    plain = next((p for p, twin in _TWINS.items() if twin is primitive), primitive)
    return policy(plain, *args, **params)


def _same(new: Iterable[Any], old: Iterable[Any]) -> bool:
    return all(a is b for a, b in zip(new, old, strict=True))


def _twin(plain: core.Primitive, on_cpu: Callable[..., jax.Array]) -> core.Primitive:
    """A primitive that is `plain` but for its program on a CPU.

    Its derivatives and its batched forms are those that JAX has for `plain`, with twins inside.
    """
    twin = core.Primitive(f"fast_{plain.name}")
    twin.def_impl(plain.bind)
    twin.def_effectful_abstract_eval(plain.abstract_eval)

    def lhs_transpose(cotangent: Any, lhs: Any, rhs: Any, **params: Any) -> Any:
        product = lambda rhs, lhs: plain.bind(lhs, rhs, **params)
        return _transpose(product, cotangent, rhs, lhs.aval)

    def rhs_transpose(cotangent: Any, lhs: Any, rhs: Any, **params: Any) -> Any:
        product = lambda lhs, rhs: plain.bind(lhs, rhs, **params)
        return _transpose(product, cotangent, lhs, rhs.aval)

    def batch(axis_data: Any, args: Any, axes: Any, **params: Any) -> tuple[jax.Array, int | None]:
        out_axis = None

        def batched(*args: jax.Array) -> jax.Array:
            nonlocal out_axis
            rule = batching.fancy_primitive_batchers[plain]
            result, out_axis = rule(axis_data, args, axes, **params)
            return result

        return fast_on_cpu(batched)(*args), out_axis

    def ordered(*args: jax.Array, **params: Any) -> jax.Array:
        # An array sharded over explicit axes can not be reshaped without saying where to.
        axes = [axis for a in args for axis in jax.typeof(a).sharding.spec]
        is_sharded = params.get("out_sharding") is not None or any(a is not None for a in axes)
        return (plain.bind if is_sharded else on_cpu)(*args, **params)

    ad.defbilinear(twin, lhs_transpose, rhs_transpose)
    batching.fancy_primitive_batchers[twin] = batch
    mlir.register_lowering(twin, mlir.lower_fun(plain.bind, multiple_results=False))
    lowering_on_cpu = mlir.lower_fun(ordered, multiple_results=False)
    mlir.register_lowering(twin, lowering_on_cpu, platform="cpu")
    return twin


def _transpose(product: Callable[..., Any], cotangent: Any, fixed: Any, like: Any) -> Any:
    """The transpose of `product(fixed, .)` at `cotangent`."""
    transpose = lambda cotangent, fixed: jax.linear_transpose(
        functools.partial(product, fixed), like
    )(cotangent)[0]
    return fast_on_cpu(transpose)(cotangent, fixed)


_TWINS = {
    lax.dot_general_p: _twin(lax.dot_general_p, _cpu_operations.product),
    lax.conv_general_dilated_p: _twin(lax.conv_general_dilated_p, _cpu_operations.convolution),
}
