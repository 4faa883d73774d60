"""EKFAC: the inverse curvature of a network, layer by layer, in Kronecker-factored eigenbases."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel._describe import settings
from bilevel.linear._info import LinearSolution, LinearStatus, MatVec, PyTree
from bilevel.linear._system import Settings, System, lifted, status_if


class KroneckerLayer(NamedTuple):
    """The curvature of one layer: `(A x G) diag(scales) (A x G)'` with orthogonal A and G.

    Attributes:
        input_basis: A, `[inputs, inputs]`, one more row and column last where there is a bias.
        output_basis: G, `[outputs, outputs]`.
        scales: `[inputs, outputs]`, the curvature along each pair of basis vectors.
    """

    input_basis: jax.Array
    output_basis: jax.Array
    scales: jax.Array


class KroneckerFactors(NamedTuple):
    """What `kronecker_factors` computes and `KroneckerFactored` inverts.

    Attributes:
        layers: from the name of a layer to its factors; its parameters are the leaves at
            `name/kernel` and, if any, `name/bias`.
        diagonal: from the path of any other leaf, e.g. `norm/scale`, to the diagonal of its
            curvature.
    """

    layers: dict[str, KroneckerLayer]
    diagonal: dict[str, jax.Array]


@settings
class KroneckerFactored(Settings):
    """Biased: inverts the Kronecker-factored curvature of each layer, and a diagonal elsewhere.

    Prefer it for influence functions and unlearning on networks, where it sees the correlations
    within a layer that `DiagonalFisher` ignores; or as `CG(ridge=r, preconditioner=
    KroneckerFactored(factors, ridge=r))`, which is exact. It misses what couples two layers, and
    what couples inputs to output gradients; exact for one linear layer under a squared loss.
    (EKFAC: George et al., NeurIPS 2018; K-FAC: Martens and Grosse, ICML 2015; convolutions: Grosse
    and Martens, ICML 2016.)

    Attributes:
        factors: from `kronecker_factors`.
        ridge: added to the diagonal; too small, and u is ruled by directions that the data say
            nothing about.
        tolerance: relative residual that counts as converged in `info.status`. The residual takes
            one product with H.

    Raises:
        TypeError: `factors` is not a `KroneckerFactors`.
        ValueError: a setting is out of its range; when called, a leaf of v has no factors.
    """

    factors: KroneckerFactors
    ridge: float = 0.0
    tolerance: float = 1e-6

    symmetric_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.factors, KroneckerFactors):
            raise TypeError(
                "`factors` must come from `kronecker_factors(model, output_loss, inner, examples)`,"
                f" got a {type(self.factors).__name__}."
            )

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for `rhs`, a pytree with the paths of the parameters; `init` is ignored."""
        del init
        system = System.of(self, matvec, rhs)
        scales = jnp.concatenate([jnp.ravel(s) for s in self._scales()])
        singular = jnp.min(scales) + self.ridge <= jnp.finfo(scales.dtype).eps * jnp.max(scales)
        return system.conclude(
            self._divide(system.rhs, 0.0),
            num_steps=0,
            unsolved=status_if(singular, LinearStatus.SINGULAR, LinearStatus.NOT_CONVERGED),
        )

    def build(self, matvec: MatVec, rhs: PyTree) -> MatVec:
        """The same as a preconditioner; scales of zero are lifted to the rounding error."""
        del matvec, rhs
        largest = jnp.max(jnp.stack([jnp.max(s) for s in self._scales()]))
        floor = jnp.where(largest > 0, jnp.finfo(largest.dtype).eps * largest, 1.0)
        return lambda vector: self._divide(vector, floor)

    def _scales(self) -> list[jax.Array]:
        layers, diagonal = self.factors
        return [layer.scales for layer in layers.values()] + list(diagonal.values())

    def _divide(self, vector: PyTree, floor: float | jax.Array) -> PyTree:
        leaves = by_path(vector)
        dtypes = {path: leaf.dtype for path, leaf in leaves.items()}
        leaves = {path: lifted(leaf) for path, leaf in leaves.items()}
        raised = lambda scales: jnp.maximum(scales, floor) + self.ridge
        result = {
            path: leaves[path] / raised(scales)
            for path, scales in self.factors.diagonal.items()
            if path in leaves
        }
        for name, (inputs, outputs, scales) in self.factors.layers.items():
            if f"{name}/kernel" in leaves:
                weights = _join(leaves, name)
                weights = inputs.T @ weights @ outputs
                weights = inputs @ (weights / raised(scales)) @ outputs.T
                result.update(_split(leaves, name, weights))
        if missing := sorted(leaves.keys() - result.keys()):
            raise ValueError(
                f"`factors` knows nothing of the leaf `{missing[0]}`: pass `kronecker_factors` the"
                " same inner variable that the linear system is about."
            )
        ordered = [result[path].astype(dtype) for path, dtype in dtypes.items()]
        return jax.tree.unflatten(jax.tree.structure(vector), ordered)


def by_path(tree: PyTree) -> dict[str, jax.Array]:
    """The leaves by their paths, such as `block/dense/kernel`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _join(leaves: dict[str, jax.Array], name: str) -> jax.Array:
    """Kernel and bias of a layer as one matrix `[inputs (+ 1), outputs]`."""
    kernel = leaves[f"{name}/kernel"]
    matrix = kernel.reshape(-1, kernel.shape[-1])
    if f"{name}/bias" not in leaves:
        return matrix
    return jnp.concatenate([matrix, leaves[f"{name}/bias"][None]])


def _split(leaves: dict[str, jax.Array], name: str, matrix: jax.Array) -> dict[str, jax.Array]:
    kernel = leaves[f"{name}/kernel"]
    rows = kernel.size // kernel.shape[-1]
    parts = {f"{name}/kernel": matrix[:rows].reshape(kernel.shape)}
    if f"{name}/bias" in leaves:
        parts[f"{name}/bias"] = matrix[rows]
    return parts
