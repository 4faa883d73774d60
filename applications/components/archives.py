"""Downloaded archives: verified by their checksum, and unpacked so that nothing lands outside."""

import hashlib
import pathlib
import tarfile
import zipfile

from .errors import InputError

CHUNK = 1 << 20


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


def unpack(archive: pathlib.Path, folder: pathlib.Path, sha256: str | None = None) -> None:
    """Unpack a tar (plain, gzip, bzip2 or xz) or zip archive into a folder.

    Args:
        archive: the file.
        folder: where to; made if missing. Files of the same names are replaced.
        sha256: checksum to verify first; None verifies nothing but the archive's own.

    Raises:
        InputError: the archive is missing, damaged, of another checksum, or holds an absolute path,
            a path or link that leads out of `folder`, or a device.
    """
    if sha256 is not None:
        check_sha256(archive, sha256)
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise InputError(f"{archive} is not safe to unpack: {error}.") from error
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{archive} is no complete archive ({error}). Download it again."
        ) from error


def _unzip(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """`zipfile` would quietly rename paths that lead out; they are refused here."""
    root = folder.resolve()
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            if not (root / name).resolve().is_relative_to(root):
                raise InputError(
                    f"{archive} is not safe to unpack: {name!r} would be outside the folder."
                )
        file.extractall(folder)
