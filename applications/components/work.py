"""The run of a page on the disk: its folder, its finished pieces, and how far it is.

    with Run("coreset", config, dataset) as run:
        params = run.tree(f"seed{seed}/original", lambda: fit(...))     # read back if it is there
        run.write_json("result.json", ...)

Every file appears complete or not at all. A folder tells which page wrote it (`run.json`), and no
other page resumes into it or replaces anything in it.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress

from bilevel import training

from .data import Dataset
from .errors import InputError
from .files import Arrays, read_arrays, write_whole
from .frame import Config
from .output import to_json

PyTree = Any
WIDTH_OF_FILES = 200
FREE = ("output", "overwrite", "resume", "seeds", "cache", "data_dir")
"""Settings of any page that a resumed run may change."""
OWNER, PIECES = "run.json", "pieces"


class Run:
    """A page at work: see the module. Nothing is written before it is entered.

    Args:
        page: its name, which marks the folder.
        config: its settings.
        dataset: what it works on; resumed runs must see the same.
        decided: what it decided for settings that were not given, as a dataclass or a mapping.
        steps: calls of `tick` to come, for the progress bar; None where nobody knows.
        free: further settings that a resumed run may change.

    Attributes:
        console: to print to.
        folder: where the results go.
        finding: the result in a sentence, once it is known.

    Raises:
        InputError: the folder holds results and neither `overwrite` nor `resume` is set, another
            page's, or those of a run with other settings.
    """

    def __init__(
        self,
        page: str,
        config: Config,
        dataset: Dataset | None = None,
        decided: Any = None,
        steps: int | None = None,
        free: Collection[str] = (),
    ) -> None:
        self.console = rich.console.Console(
            width=None if sys.stdout.isatty() else WIDTH_OF_FILES  # tables do not wrap in a log
        )
        self.folder = config.output or pathlib.Path("results") / page
        self.settings = _plain(dataclasses.asdict(config)) | {"decided": _plain(decided)}
        self.finding = ""
        self.notes = () if dataset is None else dataset.notes
        self._config, self._steps = config, steps
        kept = {k: v for k, v in self.settings.items() if k not in (*FREE, *free)}
        seen = None if dataset is None else dataset.fingerprint
        self._owner: dict[str, Any] = {"page": page, "data": seen, "settings": kept}
        self._check()

    def __enter__(self) -> "Run":
        """Claim the folder, and show the progress bar."""
        if self._config.overwrite:
            shutil.rmtree(self.folder / PIECES, ignore_errors=True)
        self.write_json(OWNER, self._owner)
        self.write_json("config.json", dataclasses.asdict(self._config))
        for note in self.notes:
            self.console.print(note, style="yellow")
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeElapsedColumn(),
        )
        self._progress = rich.progress.Progress(*columns, console=self.console)
        self._progress.start()
        # Each call of `tick` ends the step before it, so the first must not count.
        self._bar = self._progress.add_task("", total=self._steps, completed=-1)
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the progress bar as it is."""
        if error[0] is None:
            self.tick("done")
        self._progress.stop()

    @property
    def seconds(self) -> float:
        """Since it was entered."""
        return time.perf_counter() - self._begin

    def tick(self, doing: str) -> None:
        """Say what comes next; the step before is done."""
        self._progress.update(self._bar, advance=1, description=doing)

    def keep(self, name: str, make: Callable[[], Mapping[str, Any]]) -> Arrays:
        """The piece called `name`, a dictionary of arrays: read if it is there, else made and kept.

        Args:
            name: of the piece; slashes make subfolders. It must say all that the piece depends on
                beside the settings.
            make: computes it.

        Raises:
            InputError: its file is damaged.
        """
        path = self.path(f"{name}.npz")
        if path.exists():
            return read_arrays(path)
        arrays = {key: np.asarray(value) for key, value in make().items()}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_whole(path, buffer.getvalue())
        return arrays

    def tree(self, name: str, make: Callable[[], PyTree]) -> PyTree:
        """As `keep`, of a pytree of arrays on the device; `make` must be what JAX can trace."""
        made: list[PyTree] = []

        def leaves() -> Arrays:
            made.append(make())
            return {str(i): np.asarray(a) for i, a in enumerate(jax.tree.leaves(made[0]))}

        arrays = self.keep(name, leaves)
        if made:
            return made[0]
        structure = jax.tree.structure(jax.eval_shape(make))
        return jax.tree.unflatten(
            structure, [jnp.asarray(arrays[str(i)]) for i in range(len(arrays))]
        )

    @contextlib.contextmanager
    def checkpoints(self, name: str) -> Iterator[training.RunFolder]:
        """Where a long `training.fit` saves itself on the way; removed once it has come through."""
        path = self.path(name)
        yield training.RunFolder(
            path,
            resume=True,
            resume_command=training.this_command("--resume"),
            log_every=1,
        )
        shutil.rmtree(path, ignore_errors=True)

    def path(self, name: str) -> pathlib.Path:
        """Where a piece lies; characters that file systems dislike are replaced."""
        parts = [
            "".join(c if c.isalnum() or c in "-+._" else "_" for c in p) for p in name.split("/")
        ]
        return self.folder.joinpath(PIECES, *parts)

    def write(self, name: str, content: bytes | str) -> None:
        """Write one file of the results, whole or not at all."""
        write_whole(self.folder / name, content.encode() if isinstance(content, str) else content)

    def write_json(self, name: str, content: Any) -> None:
        """Write indented JSON: see `output.to_json`."""
        self.write(name, to_json(content) + "\n")

    def write_arrays(self, arrays: Mapping[str, Any]) -> None:
        """Write `result.npz`, plain arrays that `numpy.load` reads, and say what was found.

        The settings are one of the arrays, `config`, as JSON.
        """
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays, config=to_json(self.settings))
        self.write("result.npz", buffer.getvalue())
        last = list(arrays)[-1]
        reading = f'Arrays: numpy.load("{self.folder}/result.npz")["{last}"]; {", ".join(arrays)}.'
        whole = f"The whole report: {self.folder}/report.html"
        for text, style in ((reading, None), (self.finding, "bold"), (whole, None)):
            self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _check(self) -> None:
        """Is the folder new, or ours, and do we have leave to touch it?"""
        page = self._owner["page"]
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"`output` must be a folder, got the file {self.folder}.")
        if not self.folder.exists() or not any(self.folder.iterdir()):
            return
        there = _owner_of(self.folder / OWNER)
        if there.get("page") != page:
            whose = f"the page {there['page']}" if there.get("page") else "no page"
            raise InputError(
                f"`output` {self.folder} holds files of {whose} and is left as it is. Name another"
                f" folder for {page}."
            )
        if self._config.overwrite:
            return
        if not self._config.resume:
            raise InputError(
                f"`output` {self.folder} exists and is left as it is. Name another folder, or pass"
                " `--overwrite` to replace what an earlier run left, or `--resume` to go on with"
                " one that was interrupted."
            )
        self._compare(there)

    def _compare(self, there: dict[str, Any]) -> None:
        """Was the run that is there begun with these settings?"""
        if there["data"] != self._owner["data"]:
            raise InputError(
                f"`resume` needs the data that {self.folder} was begun with, and these are others."
                " Name another output folder."
            )
        here, before = self._owner["settings"], there["settings"]
        # What was typed first: what was decided follows from it.
        for name in sorted({*here, *before}, key=lambda name: (name == "decided", name)):
            if here.get(name) != before.get(name):
                raise InputError(
                    f"`resume` needs the settings that {self.folder} was begun with: `{name}` was"
                    f" {json.dumps(before.get(name))} and is now {json.dumps(here.get(name))}. Pass"
                    " the same, or name another output folder."
                )


def _plain(settings: Any) -> Any:
    """As JSON has them."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        settings = dataclasses.asdict(settings)
    return json.loads(to_json(settings))


def _owner_of(file: pathlib.Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}). Name another output folder.") from error
    return content if isinstance(content, dict) and {"data", "settings"} <= set(content) else {}
