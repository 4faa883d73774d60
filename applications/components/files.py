"""Files that appear complete or not at all, and what reading a damaged one raises."""

import io
import lzma
import os
import pathlib
import struct
import zipfile
import zlib

import numpy as np

from .errors import InputError

Arrays = dict[str, np.ndarray]
MAX_BYTES = 1 << 34
# What the readers of compressed files and of arrays raise on damaged ones.
DAMAGE = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # an encrypted zip; NotImplementedError: an unknown method
    TypeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Write a file whole or not at all: to a temporary name first, so nobody reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read an `.npz` file of plain arrays.

    Raises:
        InputError: it is damaged.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return dict(arrays)
    except DAMAGE as error:
        raise InputError(f"{path} is damaged ({error}). Delete it to compute it again.") from error
