"""Independent work, such as seeds and shadow models, spread over whatever devices there are."""

from typing import Any

import jax

from bilevel import sharding


def spread(tree: Any) -> Any:
    """Arrays whose leading axis counts independent pieces of work, split over all devices.

    A compiled `vmap` over that axis then runs each device's share there, with no word between
    them. Where there is one device, or their number does not divide the pieces, nothing changes.

    Args:
        tree: of arrays with a common leading axis, e.g. the keys of seeds.
    """
    count = len(jax.devices())
    if count == 1 or any(leaf.shape[0] % count for leaf in jax.tree.leaves(tree)):
        return tree
    return sharding.shard_batch(tree, sharding.data_mesh())
