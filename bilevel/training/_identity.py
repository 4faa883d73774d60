"""What makes two runs the same run: all that decides its numbers, and how a difference is told."""

import importlib.metadata
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bilevel._algorithm import Algorithm
from bilevel._describe import differences
from bilevel._fingerprint import array_text, fingerprint
from bilevel._version import __version__
from bilevel.training._data import Source
from bilevel.training._files import FolderError
from bilevel.training._stopping import StopRule

PACKAGES = ("jax", "jaxlib", "optax", "numpy")
# What of JAX's configuration changes numbers.
JAX_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_numpy_dtype_promotion",
    "jax_explicit_x64_dtypes",
    "jax_softmax_custom_jvp",
)
DATA_NUMBERS = "numbers of the data"


def identity(
    algorithm: Algorithm, source: Source, rule: StopRule, nan_policy: str, config: Any
) -> dict[str, Any]:
    """All that must be equal for a resumed run to end as one that was never stopped, as JSON."""
    python = ".".join(platform.python_version_tuple()[:2])  # whose bytecode differs
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="."): array_text(
            leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        ).partition("#")
        for path, leaf in jax.tree_util.tree_leaves_with_path(source.arrays)
    }
    return {
        "bilevel": __version__,
        "versions": {"python": python} | versions,
        "jax": {name: repr(getattr(jax.config, name, None)) for name in JAX_SETTINGS},
        "algorithm": fingerprint(algorithm),
        "data": "iterator" if source.iterator is not None else fingerprint(source.batch_at),
        "arrays": {name: shape for name, (shape, _, _) in arrays.items()},
        # Apart, since no process may have all of an array that several of them share.
        DATA_NUMBERS: {name: digits for name, (_, _, digits) in arrays.items() if digits},
        "stop_when": fingerprint(rule),
        "nan_policy": nan_policy,
        "config": fingerprint(config),
    }


def check_identity(
    source: pathlib.Path,
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    changed: Sequence[str],
) -> None:
    """Raise a FolderError that names the first setting in which a saved run and this one differ.

    Settings in `changed`, or inside one of these, may differ.
    """
    found, expected = dict(found), dict(expected)
    here, there = (dict(all_.pop(DATA_NUMBERS, {})) for all_ in (expected, found))
    both = here.keys() & there.keys()
    found[DATA_NUMBERS] = {name: there[name] for name in both}
    expected[DATA_NUMBERS] = {name: here[name] for name in both}
    for path, now, then in differences(expected, found):
        if not any(path == name or path.startswith(f"{name}.") for name in changed):
            raise FolderError(
                f"{source} is of another run: `{path}` was {then} there and is {now} now. Restore"
                " that setting to resume, or begin again in another folder. If the change is"
                f" meant, name it: `RunFolder(..., changed=({path!r},))`."
            )
