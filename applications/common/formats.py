"""Readers of the files that data set owners publish: IDX (MNIST family) and the CIFAR binary rows.

Each checks the size that the format itself promises, so a truncated download is an error here and
not a strange accuracy later. Nothing is unpickled: CIFAR's "python" archives are not read.
"""

import gzip
import math
import pathlib
import struct
import zlib

import numpy as np

from applications.common.errors import InputError

IDX_UNSIGNED_BYTE = 0x08
CIFAR_SIDE = 32


def read_idx(path: pathlib.Path, num_axes: int) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes.

    Args:
        path: a file such as `train-images-idx3-ubyte.gz`.
        num_axes: how many axes it must have: 3 for images, 1 for labels.

    Returns:
        uint8, in the shape that the file's header states.

    Raises:
        InputError: the file is missing, no gzip, truncated, or of another type or size.
    """
    content = _gunzip(path)
    header = 4 + 4 * num_axes
    expected = bytes([0, 0, IDX_UNSIGNED_BYTE, num_axes])
    if content[:4] != expected:
        raise InputError(
            f"{path} must be an IDX file of unsigned bytes with {num_axes} axes: its first four"
            f" bytes should be {expected.hex()}, got {content[:4].hex() or 'nothing'}."
            " Download it again; the files of images and of labels may also be exchanged."
        )
    if len(content) < header:
        raise InputError(f"{path} ends inside its {header}-byte header. Download it again.")
    shape = struct.unpack(f">{num_axes}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise InputError(
            f"{path} must hold {math.prod(shape)} bytes for its shape {shape},"
            f" got {len(content) - header}. Download it again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_cifar10(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one file of CIFAR-10's binary version: rows of a label byte and three colour planes.

    Args:
        path: a file such as `data_batch_1.bin`.

    Returns:
        Images `[n, 32, 32, 3]` and labels `[n]`, both uint8.

    Raises:
        InputError: the file is missing, or is no whole number of rows.
    """
    content = _read(path)
    row = 1 + 3 * CIFAR_SIDE**2
    if not content or len(content) % row:
        raise InputError(
            f"{path} must hold a whole number of {row}-byte rows, got {len(content)} bytes."
            " Download CIFAR-10's binary version again"
            " (https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz)."
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, row)
    planes = rows[:, 1:].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    return planes.transpose(0, 2, 3, 1), rows[:, 0]


def _gunzip(path: pathlib.Path) -> bytes:
    compressed = _read(path)
    try:
        return gzip.decompress(compressed)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} is not a complete gzip file ({error}). Download it again."
        ) from error


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}). Pass `--data-dir`, the folder that holds"
            f" `{path.parent.name}/`; docs/applications/forget_set.md says where to get the files."
        ) from error
