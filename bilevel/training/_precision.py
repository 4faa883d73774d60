"""Mixed precision: a loss computed in bfloat16 under float32 variables."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _check, _tree
from bilevel._describe import settings
from bilevel._problem import Loss, PyTree


@settings
class MixedPrecision:
    """A loss that computes forward and backward in `dtype`; variables stay as they are.

    Biased: value and derivatives carry the rounding of `dtype` (bfloat16: 8 bits, relative 4e-3 in
    each operation), which a linear solve multiplies by the condition number of the inner Hessian.
    It pays where matrix products dominate on hardware with bfloat16 units; on a CPU it is slower.

    The casts are part of the loss, so its gradients and Hessian-vector products come back in the
    dtype of the variables: optimizers keep float32 masters, and the inner products, norms and
    updates of every linear solver are float32. A linear solver's tolerance cannot be met below the
    rounding of the products; `info.residual_norm` says where it stopped.

    Take means over examples in float32 (`jnp.mean(losses.astype(jnp.float32))`): one scalar costs
    nothing, and a bfloat16 loss has two to three digits.

    Attributes:
        loss: `(outer, inner, batch) -> scalar`. Arrays that it closes over are not cast.
        dtype: of the computation, e.g. `jnp.bfloat16`; `jnp.float16` overflows above 65504 and
            underflows below 6e-8, and nothing here scales the loss.

    Raises:
        TypeError: `loss` is not callable, or `dtype` not a floating type.
    """

    loss: Loss
    dtype: Any = jnp.bfloat16

    def __post_init__(self) -> None:
        _check.function("loss", self.loss, "`(outer, inner, data) -> scalar`")
        if not jnp.issubdtype(self.dtype, jnp.floating):
            raise TypeError(
                f"`dtype` must be a floating type such as `jnp.bfloat16`, got {self.dtype!r}."
            )

    def __call__(self, outer: PyTree, inner: PyTree, batch: PyTree) -> jax.Array:
        """The loss, float32 (float64 where the variables are)."""
        value = self.loss(*(self._cast(tree) for tree in (outer, inner, batch)))
        return value.astype(_tree.widest(*jax.tree.leaves((outer, inner))))

    def _cast(self, tree: PyTree) -> PyTree:
        return jax.tree.map(
            lambda a: jnp.asarray(a, self.dtype) if _tree.is_differentiable(a) else a, tree
        )
