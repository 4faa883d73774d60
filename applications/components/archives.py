"""Downloaded archives: read to their end and checked, then unpacked whole or not at all."""

import bz2
import gzip
import hashlib
import lzma
import os
import pathlib
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from typing import IO, Any

from .errors import InputError

CHUNK = 1 << 20
MAX_BYTES = 1 << 34
MAX_MEMBERS = 1_000_000
MAGICS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
# What the readers of archives and of arrays raise on damaged files.
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
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)

# What tells of a path that leads out of the folder; Python knows it from 3.11.4 on.
UNSAFE: Any = getattr(tarfile, "FilterError", ())


def check_sha256(path: pathlib.Path, expected: str) -> None:
    """Raise an InputError unless the file has this SHA-256 checksum.

    Args:
        path: of the file.
        expected: 64 hexadecimal digits, as the owners publish them.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(CHUNK):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    if digest.hexdigest() != expected.lower():
        raise InputError(
            f"{path} must have the SHA-256 checksum {expected}, got {digest.hexdigest()}. The"
            " download is incomplete or another file: download it again."
        )


def unpack(
    archive: pathlib.Path,
    folder: pathlib.Path,
    sha256: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Unpack a tar (plain, gzip, bzip2 or xz) or zip archive into a folder.

    The archive is read to its end first, so that one that was cut or damaged leaves nothing behind.

    Args:
        archive: the file.
        folder: where to; made if missing. Files of the same names are replaced.
        sha256: checksum to verify first; None verifies nothing but the archive's own.
        max_bytes: most bytes that it may unpack to; a small file can unpack to a full disk.

    Raises:
        InputError: the archive is missing, damaged, cut, encrypted, too large, of another checksum,
            or holds an absolute path, a path or link that leads out of `folder`, or a device; or
            `folder` cannot be written.
    """
    if sha256 is not None:
        check_sha256(archive, sha256)
    folder = pathlib.Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as temporary:
            content = pathlib.Path(temporary) / "content"
            content.mkdir()
            if zipfile.is_zipfile(archive):
                _unzip(archive, content, max_bytes)
            else:
                _untar(archive, content, max_bytes)
            _move(content, folder)
    except InputError:
        raise
    except UNSAFE as error:
        raise InputError(f"{archive} is not safe to unpack: {error}.") from error
    except DAMAGE as error:
        if isinstance(error, OSError) and error.filename not in (None, str(archive), archive):
            raise InputError(f"{archive} cannot be unpacked to {folder}: {error}.") from error
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{archive} is no complete archive ({reason}). Download it again."
        ) from error


def _untar(archive: pathlib.Path, content: pathlib.Path, max_bytes: int) -> None:
    if not UNSAFE:
        raise InputError(
            f"{archive} cannot be unpacked safely by this Python: take 3.11.4 or newer, or unpack"
            " it yourself."
        )
    with _decompressed(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        _check_sizes(archive, ((member.name, member.size) for member in tar), max_bytes)
        # `tarfile` takes a file that ends after any member for a whole one, and leaves the end of
        # a compressed one unread, where its checksum is.
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("it ends without its end mark")
        while stream.read(CHUNK):
            pass
        tar.extractall(content, filter="data")


def _decompressed(archive: pathlib.Path) -> IO[bytes]:
    with archive.open("rb") as file:
        start = file.read(max(map(len, MAGICS)))
    opens: Any = next((f for magic, f in MAGICS.items() if start.startswith(magic)), open)
    return opens(archive, "rb")


def _unzip(archive: pathlib.Path, content: pathlib.Path, max_bytes: int) -> None:
    """`zipfile` would quietly rename paths that lead out; they are refused here."""
    root = content.resolve()
    with zipfile.ZipFile(archive) as file:
        _check_sizes(archive, ((i.filename, i.file_size) for i in file.infolist()), max_bytes)
        for name in file.namelist():
            if not (root / name).resolve().is_relative_to(root):
                raise InputError(
                    f"{archive} is not safe to unpack: {name!r} would be outside the folder."
                )
        file.extractall(content)


def _check_sizes(archive: pathlib.Path, members: Iterable[tuple[str, int]], max_bytes: int) -> None:
    total = count = 0
    for count, (name, size) in enumerate(members, start=1):  # noqa: B007
        total += size
        if total > max_bytes or count > MAX_MEMBERS:
            raise InputError(
                f"{archive} unpacks to more than {max_bytes} bytes or {MAX_MEMBERS} files, at"
                f" {name!r}. If that is right, pass a larger `max_bytes`."
            )
    if not count:
        raise EOFError("it holds no files")


def _move(content: pathlib.Path, folder: pathlib.Path) -> None:
    """Everything to its place, by renaming."""
    if not folder.exists():
        content.rename(folder)
        return
    for path in sorted(content.rglob("*")):
        target = folder / path.relative_to(content)
        if path.is_dir() and not path.is_symlink():
            target.mkdir(exist_ok=True)
        else:
            os.replace(path, target)
