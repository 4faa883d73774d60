"""Readers of the files that data set owners publish: IDX, CIFAR's binary rows, LIBSVM, NumPy's npz.

Each checks what the format itself promises, so a truncated download is an error here and not a
strange accuracy later. Nothing is unpickled: CIFAR's "python" archives are not read.
"""

import bz2
import gzip
import io
import math
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from .errors import InputError

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
    return _read_cifar(path, 1, "cifar-10-binary")


def read_cifar100(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one file of CIFAR-100's binary version: as `read_cifar10`, with two label bytes.

    Args:
        path: `train.bin` or `test.bin`.

    Returns:
        Images `[n, 32, 32, 3]` and fine labels `[n]`, both uint8.

    Raises:
        InputError: the file is missing, or is no whole number of rows.
    """
    return _read_cifar(path, 2, "cifar-100-binary")


def _read_cifar(path: pathlib.Path, num_labels: int, archive: str) -> tuple[np.ndarray, np.ndarray]:
    """Images, and the last of the labels in front of each."""
    content = _read(path)
    row = num_labels + 3 * CIFAR_SIDE**2
    if not content or len(content) % row:
        raise InputError(
            f"{path} must hold a whole number of {row}-byte rows, got {len(content)} bytes."
            " Download the binary version again"
            f" (https://www.cs.toronto.edu/~kriz/{archive}.tar.gz)."
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, row)
    planes = rows[:, num_labels:].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    return planes.transpose(0, 2, 3, 1), rows[:, num_labels - 1]


def read_libsvm(
    path: pathlib.Path, num_features: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Read a LIBSVM file, plain or `.bz2`: lines of a label and `index:value` pairs, from index 1.

    Args:
        path: a file such as `a9a` or `w8a.bz2`.
        num_features: of the data set; None takes the largest index in the file. Give it for a test
            file, whose last features may be absent.

    Returns:
        Features `[n, num_features]` float32, dense, and labels `[n]` float64 as they stand in the
        file, often -1 and 1: `np.unique(labels, return_inverse=True)[1]` makes classes of them.

    Raises:
        InputError: the file is missing, damaged or empty, or a line is none of that format.
    """
    content = _read(path)
    try:
        text = (bz2.decompress(content) if path.suffix == ".bz2" else content).decode("ascii")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path} is no complete LIBSVM file ({error}). Download it again."
        ) from error
    examples = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            examples += _libsvm_examples(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}, in {line[:60]!r}.") from error
    largest = max((int(columns[-1]) for _, columns, _ in examples if len(columns)), default=0)
    if not examples or largest > (num_features or largest):
        raise InputError(
            f"{path} must hold examples of {num_features or 'some'} features, got {len(examples)}"
            f" examples and index {largest}. Correct `num_features` or download it again."
        )
    dense = np.zeros((len(examples), num_features or largest), np.float32)
    for row, (_, columns, values) in zip(dense, examples, strict=True):
        row[columns - 1] = values
    return dense, np.array([label for label, _, _ in examples])


def _libsvm_examples(line: str) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Label, indices from 1, and values of the one example in a line; none in an empty line."""
    tokens = line.split("#")[0].split()
    if not tokens:
        return []
    pairs = [token.split(":") for token in tokens[1:]]
    columns = np.array([int(index) for index, _ in pairs], int)
    values = np.array([float(value) for _, value in pairs])
    if np.any(np.diff(columns, prepend=0) < 1):
        raise ValueError("indices must ascend from 1")
    return [(float(tokens[0]), columns, values)]


def read_npz(
    path: pathlib.Path, names: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Read arrays from an `.npz` file without unpickling anything.

    Args:
        path: of the file.
        names: of the arrays that it must hold.
        optional: of those that it may hold.

    Returns:
        The arrays by name.

    Raises:
        InputError: the file is missing or damaged, lacks an array, or holds Python objects.
    """
    try:
        with np.load(io.BytesIO(_read(path)), allow_pickle=False) as arrays:
            missing = [name for name in names if name not in arrays]
            if missing:
                raise InputError(
                    f"{path} must hold arrays {', '.join(names)}, got {', '.join(arrays)}: it lacks"
                    f" {', '.join(missing)}."
                )
            present = [name for name in optional if name in arrays]
            return {name: arrays[name] for name in (*names, *present)}
    except InputError:
        raise
    except (ValueError, EOFError, OSError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path} is no npz file of plain arrays ({error}). Arrays of Python objects are"
            " pickles, which can run code, and are not read: save numbers or strings."
        ) from error


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
