"""Place a run on several devices: batches split over them, variables replicated or split.

JAX's own SPMD does the rest. Algorithms, solvers and rules run unchanged on arrays that are placed,
and the compiler adds the communication:

    mesh = sharding.data_mesh()
    state = sharding.replicate(algorithm.init(outer, inner), mesh)
    state, info = jax.jit(algorithm.step)(state, sharding.shard_batch(batch, mesh))

For several hosts call `jax.distributed.initialize()` first, in every process; each passes its own
part of a batch to `shard_batch`, and the same variables to `replicate` or `shard_fully`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bilevel._problem import PyTree


def data_mesh(devices: Sequence[jax.Device] | None = None, axis: str = "data") -> Mesh:
    """A mesh with one axis over all devices, for data parallelism and for `shard_fully`.

    Args:
        devices: to use; None for all, those of other processes included.
        axis: its name.

    Returns:
        A mesh whose axis is automatic: the compiler decides how intermediate values are split.
        `jax.make_mesh` alone makes explicit axes, over which a Hessian-vector product raises.
    """
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), (axis,), axis_types=(AxisType.Auto,), devices=devices)


def shard_batch(batch: PyTree, mesh: Mesh, axis: str = "data", dim: int = 0) -> PyTree:
    """Split examples over the devices: each holds an equal part of dimension `dim` of every leaf.

    A loss that takes a mean over examples then computes its part on each device and adds up once.
    Memory for examples falls by the number of devices.

    Args:
        batch: any pytree, e.g. a `Batch`; scalars are replicated. With several processes, the part
            of this process only: the whole is theirs in the order of their devices.
        mesh: e.g. `data_mesh()`.
        axis: of the mesh, to split over.
        dim: of the leaves, to split; 1 where dimension 0 counts steps, as in `stacked` minibatches.

    Returns:
        Like `batch`, on the devices.

    Raises:
        ValueError: the mesh has no axis `axis`, a leaf has no dimension `dim`, or its length is no
            multiple of the number of devices.
    """
    _check_axis(mesh, axis)
    num_parts = mesh.shape[axis] // jax.process_count()

    def place(path: Any, leaf: Any) -> jax.Array:
        shape = np.shape(leaf)
        if not shape:
            return _put(leaf, NamedSharding(mesh, PartitionSpec()))
        name = f"`batch{jax.tree_util.keystr(path)}`"
        if dim >= len(shape):
            raise ValueError(
                f"{name} has shape {shape} and no dimension {dim} to split. Choose another `dim`,"
                " or place this leaf by `replicate`."
            )
        if shape[dim] % num_parts:
            raise ValueError(
                f"{name} must have a multiple of {num_parts} examples to be split over so many"
                f" devices, got {shape[dim]} (dimension {dim} of {shape}). Drop"
                f" {shape[dim] % num_parts} of them, or add {-shape[dim] % num_parts} with weight"
                " zero in the loss."
            )
        return _put(leaf, NamedSharding(mesh, PartitionSpec(*[None] * dim, axis)), local=True)

    return jax.tree_util.tree_map_with_path(place, batch)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copy every leaf to every device: the choice for variables that fit into each one's memory.

    Args:
        tree: e.g. the state of an algorithm; with several processes, the same in each.
        mesh: e.g. `data_mesh()`.

    Returns:
        Like `tree`, on the devices.
    """
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def shard_fully(tree: PyTree, mesh: Mesh, axis: str = "data", min_size: int = 1024) -> PyTree:
    """Split every large leaf over the devices: memory falls by their number, communication grows.

    The largest dimension that divides evenly is split. Prefer `replicate` while the state of the
    algorithm, its inner iterates included, fits into each device.

    Args:
        tree: e.g. the state of an algorithm; with several processes, the same in each.
        mesh: e.g. `data_mesh()`.
        axis: of the mesh, to split over.
        min_size: leaves with fewer entries are replicated; splitting them saves nothing and costs
            a message each.

    Returns:
        Like `tree`, on the devices.

    Raises:
        ValueError: the mesh has no axis `axis`.
    """
    _check_axis(mesh, axis)
    num_parts = mesh.shape[axis]

    def place(leaf: Any) -> jax.Array:
        shape = np.shape(leaf)
        even = [d for d, length in enumerate(shape) if length and length % num_parts == 0]
        if np.size(leaf) < min_size or not even:
            return _put(leaf, NamedSharding(mesh, PartitionSpec()))
        dim = max(even, key=lambda d: shape[d])
        return _put(leaf, NamedSharding(mesh, PartitionSpec(*[None] * dim, axis)))

    return jax.tree.map(place, tree)


def _put(leaf: Any, sharding: NamedSharding, local: bool = False) -> jax.Array:
    """Place one leaf; with several processes, from a part (`local`) or from equal copies of all."""
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), sharding, local)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    value = np.asarray(leaf)
    if local:
        return jax.make_array_from_process_local_data(sharding, value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _check_axis(mesh: Mesh, axis: str) -> None:
    if axis not in mesh.shape:
        raise ValueError(
            f"`axis` must be an axis of the mesh, one of {', '.join(map(repr, mesh.shape))},"
            f" got {axis!r}."
        )
