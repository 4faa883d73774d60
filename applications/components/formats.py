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
from collections.abc import Sequence

import numpy as np

from .errors import InputError
from .files import DAMAGE, MAX_BYTES

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
        InputError: the file is missing, no gzip, truncated, empty, or of another type or size.
    """
    expected = bytes([0, 0, IDX_UNSIGNED_BYTE, num_axes])
    with gzip.open(io.BytesIO(_read(path))) as file:
        start = _take(path, file, 4)
        if start != expected:
            raise InputError(
                f"{path} must be an IDX file of unsigned bytes with {num_axes} axes: its first four"
                f" bytes should be {expected.hex()}, got {start.hex() or 'nothing'}. Download it"
                " again; the files of images and of labels may also be exchanged."
            )
        header = _take(path, file, 4 * num_axes)
        if len(header) < 4 * num_axes:
            raise InputError(
                f"{path} ends inside its {4 + 4 * num_axes}-byte header. Download it again."
            )
        shape = struct.unpack(f">{num_axes}I", header)
        size = math.prod(shape)
        if not 0 < size <= MAX_BYTES:
            raise InputError(f"{path} states an impossible shape, {shape}. Download it again.")
        content = _take(path, file, size + 1)
    if len(content) != size:
        got = len(content) if len(content) < size else "more"
        raise InputError(
            f"{path} must hold {size} bytes for its shape {shape}, got {got}. Download it again."
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _take(path: pathlib.Path, file: gzip.GzipFile, size: int) -> bytes:
    """The next bytes of a compressed file, whose checksum is verified at its end."""
    try:
        return file.read(size)
    except DAMAGE as error:
        raise InputError(
            f"{path} is not a complete gzip file ({error}). Download it again."
        ) from error


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
        InputError: the file is missing, damaged, empty or too large, or a line is none of that
            format or holds a number that is no finite float32.
    """
    content = io.BytesIO(_read(path))
    try:
        with bz2.open(content) if path.suffix == ".bz2" else content as file:
            text = file.read(MAX_BYTES).decode("ascii")
    except DAMAGE as error:
        raise InputError(
            f"{path} is no complete LIBSVM file ({error}). Download it again."
        ) from error
    examples = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            examples += _libsvm_examples(line)
        except (ValueError, OverflowError) as error:
            raise InputError(f"{path}, line {number}: {error}, in {line[:60]!r}.") from error
    largest = max((int(columns[-1]) for _, columns, _ in examples if len(columns)), default=0)
    if not examples or largest > (num_features or largest):
        raise InputError(
            f"{path} must hold examples of {num_features or 'some'} features, got {len(examples)}"
            f" examples and index {largest}. Correct `num_features` or download it again."
        )
    shape = (len(examples), num_features or largest)
    if 4 * math.prod(shape) > MAX_BYTES:
        raise InputError(
            f"{path} has an example with index {largest}: as a dense array of shape {shape} its"
            f" examples would take more than {MAX_BYTES} bytes. Download it again."
        )
    dense = np.zeros(shape, np.float32)
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
    label = float(tokens[0])
    if not (math.isfinite(label) and np.all(np.abs(values) <= np.finfo(np.float32).max)):
        raise ValueError("numbers must be finite and below 3.4e38")
    return [(label, columns, values)]


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
    content = io.BytesIO(_read(path))
    try:
        with zipfile.ZipFile(content) as file:
            held = [name.removesuffix(".npy") for name in file.namelist()]
            if missing := [name for name in names if name not in held]:
                raise InputError(
                    f"{path} must hold arrays {', '.join(names)}, got {', '.join(held)}: it lacks"
                    f" {', '.join(missing)}."
                )
            present = [name for name in optional if name in held]
            return {name: _read_array(file, name) for name in (*names, *present)}
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(
            f"{path} is no npz file of plain arrays ({error}). Arrays of Python objects are"
            " pickles, which can run code, and are not read: save numbers or strings."
        ) from error


def _read_array(file: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array, once its header is no larger than what follows: NumPy would trust the header."""
    member = f"{name}.npy" if f"{name}.npy" in file.namelist() else name
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with file.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in readers:
            raise ValueError(f"{name} has version {version} of the format")
        shape, _, dtype = readers[version](stream)
        size, rest = math.prod(shape) * dtype.itemsize, file.getinfo(member).file_size
        if size > min(MAX_BYTES, rest - stream.tell()) and not dtype.hasobject:
            raise ValueError(f"{name} states the shape {shape} and has no {size} bytes")
    with file.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}). Pass `--data-dir`, the folder that holds"
            f" `{path.parent.name}/`; docs/applications/forget_set.md says where to get the files."
        ) from error
