"""Compiled programs kept on disk, so that the next process need not compile them."""

import os
import pathlib

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from bilevel.training._files import told


def compilation_cache(folder: str | os.PathLike[str]) -> None:
    """Keep every compiled program in a folder: the second start of a script compiles nothing.

    This is JAX's persistent cache, with what its defaults leave out. JAX keeps only programs that
    took a second to compile, while small bilevel problems compile many faster ones; and it ignores
    a folder that is named after the first program was compiled. The cache helps processes with the
    same JAX, device and flags; it never changes a number. Several processes may share it.

    Args:
        folder: made if missing; delete it to empty the cache.

    Raises:
        FolderError: it cannot be made.
    """
    path = pathlib.Path(folder).absolute()
    with told(path, lambda: "Name a folder that can be written."):
        path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax_cache.reset_cache()
