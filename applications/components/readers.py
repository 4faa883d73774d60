"""Your data in a file or a folder, as the arrays that `data.from_arrays` takes.

    npz:FILE      arrays x_train, y_train and, optional, x_test, y_test, x_validation, y_validation,
                  class_names
    folder:DIR    class folders of images, in DIR or in DIR/train, DIR/test and DIR/validation
    csv:FILE      a table whose column `label` (or else the last) is the class
    parquet:FILE  the same
    libsvm:FILE   lines of a label and index:value pairs

Words in other columns of a table become one column of 0 and 1 for each value.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from . import formats
from .errors import InputError

Arrays = dict[str, Any]
PARTS = ("train", "test", "validation")
MAX_WORDS = 100  # values of a column of words; more are names or texts
IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read_file(kind: str, path: pathlib.Path) -> Arrays:
    """Read a file or folder of the format `kind`, one of `READERS`.

    Raises:
        InputError: it is missing, damaged or of another form.
    """
    if not path.exists():
        raise InputError(f"`data` {kind}:{path} does not exist.")
    return READERS[kind](path)


def _npz(path: pathlib.Path) -> Arrays:
    names = [f"{axis}_{part}" for part in PARTS for axis in "xy"]
    return formats.read_npz(path, names[:2], [*names[2:], "class_names"])


def _folder(path: pathlib.Path) -> Arrays:
    parts = {part: path / part for part in PARTS if (path / part).is_dir()} or {"train": path}
    files = {part: _class_files(folder) for part, folder in parts.items()}
    side = _common_size([file for found in files.values() for file, _ in found])
    arrays: Arrays = {}
    for part, found in files.items():
        arrays[f"x_{part}"] = np.stack([_image(file, side) for file, _ in found])
        arrays[f"y_{part}"] = np.array([label for _, label in found])
    return arrays


def _class_files(folder: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
    """The images of each class folder, and its name."""
    found = [
        (file, own.name)
        for own in sorted(folder.iterdir())
        if own.is_dir()
        for file in sorted(own.iterdir())
        if file.suffix.lower() in IMAGES
    ]
    if not found:
        raise InputError(f"`data` folder:{folder} must hold a folder of images for each class.")
    return found


def _common_size(files: list[pathlib.Path]) -> tuple[int, int]:
    """Width and height that all images are brought to: the medians."""
    sizes = []
    for file in files:
        with _open(file) as image:
            sizes.append(image.size)
    width, height = np.median(sizes, axis=0).astype(int)
    return int(width), int(height)


def _image(file: pathlib.Path, size: tuple[int, int]) -> np.ndarray:
    with _open(file) as image:
        return np.asarray(image.convert("RGB").resize(size))


def _open(file: pathlib.Path) -> Any:
    try:
        import PIL.Image
    except ImportError as error:
        raise InputError(_install("folder:", "pillow")) from error
    try:
        return PIL.Image.open(file)
    except OSError as error:
        raise InputError(f"{file} is no image that Pillow reads: {error}.") from error


def _csv(path: pathlib.Path) -> Arrays:
    return _table(path, "csv:", lambda pandas: pandas.read_csv(path))


def _parquet(path: pathlib.Path) -> Arrays:
    return _table(path, "parquet:", lambda pandas: pandas.read_parquet(path))


def _table(path: pathlib.Path, kind: str, read: Callable[[Any], Any]) -> Arrays:
    try:
        import pandas
    except ImportError as error:
        raise InputError(_install(kind, "pandas")) from error
    try:
        table = read(pandas)
    except ImportError as error:
        raise InputError(_install(kind, "pyarrow")) from error
    except (OSError, ValueError) as error:
        raise InputError(f"`data` {kind}{path} cannot be read: {error}.") from error
    label = "label" if "label" in table.columns else table.columns[-1]
    return {"x_train": _features(table.drop(columns=label)), "y_train": table[label].to_numpy()}


def _features(table: Any) -> np.ndarray:
    import pandas

    numeric = [pandas.api.types.is_numeric_dtype(kind) for kind in table.dtypes]
    for name, is_number in zip(table.columns, numeric, strict=True):
        if not is_number and table[name].nunique() > MAX_WORDS:
            raise InputError(
                f"Column {name!r} must hold numbers or at most {MAX_WORDS} different words, got"
                f" {table[name].nunique()}. Drop it, or turn it into numbers."
            )
    table = pandas.get_dummies(table, columns=list(table.columns[~np.array(numeric, bool)]))
    x = table.to_numpy(np.float32, na_value=np.nan)
    missing = np.flatnonzero(np.isnan(x).any(axis=0))
    if missing.size:
        raise InputError(
            f"Column {table.columns[missing[0]]!r} must be complete, but has empty cells. Fill or"
            " drop these rows."
        )
    return x


def _libsvm(path: pathlib.Path) -> Arrays:
    x, y = formats.read_libsvm(path)
    return {"x_train": x, "y_train": y}


def _install(kind: str, package: str) -> str:
    return f"`data` {kind} needs {package}: pip install 'bilevel[data]'."


READERS: dict[str, Callable[[pathlib.Path], Arrays]] = {
    "npz": _npz,
    "folder": _folder,
    "csv": _csv,
    "parquet": _parquet,
    "libsvm": _libsvm,
}
"""By the word before the colon."""
