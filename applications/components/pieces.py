"""Finished pieces of a run on the disk, so that an interrupted run goes on where it stopped."""

import io
import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .errors import InputError
from .output import to_json

PyTree = Any
Arrays = dict[str, np.ndarray]
Keep = Callable[[str, Callable[[], Arrays]], Arrays]


def recompute(name: str, make: Callable[[], Arrays]) -> Arrays:
    """Keep nothing: the `Keep` of a run that has no folder."""
    del name
    return make()


class Pieces:
    """A folder of finished pieces: what is there is read back, what is not is computed and saved.

    A piece is a dictionary of arrays, written whole or not at all, so that a run may be stopped at
    any time and loses the piece that it was at.

    Args:
        folder: made with the first piece.
        settings: of the run, as JSON has them. Pieces of other settings are refused.
        free: names of settings that a resumed run may change, such as which seeds it repeats.
        resume: False removes what an earlier run left there.

    Raises:
        InputError: the pieces that are there were made with other settings.
    """

    def __init__(
        self, folder: pathlib.Path, settings: dict[str, Any], free: Collection[str], resume: bool
    ) -> None:
        self.folder = pathlib.Path(folder)
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
        plain = json.loads(to_json(settings))
        self._settings = {name: value for name, value in plain.items() if name not in free}
        if self._file.exists():
            self._check()

    def __call__(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """The piece called `name`: read if it is there, else made and saved.

        Args:
            name: of the piece; slashes make subfolders.
            make: computes it.

        Raises:
            InputError: its file is damaged.
        """
        path = self.path(f"{name}.npz")
        if path.exists():
            return _read(path)
        arrays = make()
        _write(self._file, lambda file: file.write((to_json(self._settings) + "\n").encode()))
        _write(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        return arrays

    def tree(self, name: str, make: Callable[[], PyTree]) -> PyTree:
        """Likewise, of a pytree of arrays on the device; `make` must be what JAX can trace."""
        made: list[PyTree] = []

        def leaves() -> Arrays:
            made.append(make())
            return {str(i): np.asarray(a) for i, a in enumerate(jax.tree.leaves(made[0]))}

        arrays = self(name, leaves)
        if made:
            return made[0]
        structure = jax.tree.structure(jax.eval_shape(make))
        return jax.tree.unflatten(
            structure, [jnp.asarray(arrays[str(i)]) for i in range(len(arrays))]
        )

    def within(self, place: str) -> Keep:
        """The pieces whose names begin with `place/`, under the rest of their names."""
        return lambda name, make: self(f"{place}/{name}", make)

    def path(self, name: str) -> pathlib.Path:
        """Where a piece lies; characters that file systems dislike are replaced."""
        parts = [
            "".join(c if c.isalnum() or c in "-+._" else "_" for c in p) for p in name.split("/")
        ]
        return self.folder.joinpath(*parts)

    @property
    def _file(self) -> pathlib.Path:
        return self.folder / "settings.json"

    def _check(self) -> None:
        there = json.loads(self._file.read_text())
        for name in sorted({*there, *self._settings}):
            here, before = self._settings.get(name), there.get(name)
            if here != before:
                raise InputError(
                    f"`resume` needs the settings that {self.folder} was begun with: `{name}` was"
                    f" {json.dumps(before)} and is now {json.dumps(here)}. Pass the same, or name"
                    " another output folder."
                )


def _write(path: pathlib.Path, write: Callable[[Any], Any]) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        write(file)
    os.replace(temporary, path)


def _read(path: pathlib.Path) -> Arrays:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged ({error}). Delete it to compute it again.") from error
