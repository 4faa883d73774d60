"""Checkpoints of a run: Orbax writes them whole or not at all, and what is read back is checked."""

import pathlib
import shutil
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel._problem import PyTree
from bilevel.training._files import FolderError, sync_below, told
from bilevel.training._identity import check_identity

FORMAT = 2
STEP_DIGITS = 9
ABOUT = ("format", "step", "identity", "leaves", "checksums", "num_lines")


class Checkpoints:
    """The folder `checkpoints/` of a run, one subfolder for each saved step.

    Args:
        folder: where; made at the first save.
        keep: newest ones to keep; older ones are deleted after each save.
        identity: what a checkpoint must have in common with the run that reads it, as JSON.
        changed: settings of the identity that may differ.

    Raises:
        ImportError: Orbax is not installed.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        keep: int,
        identity: Mapping[str, Any],
        changed: Sequence[str] = (),
    ) -> None:
        self.folder, self.keep, self.identity = folder.absolute(), keep, dict(identity)
        self.changed = changed
        self.num_lines = 0  # of metrics, on the disk before the next checkpoint
        self._orbax = _import_orbax()

    def steps(self) -> list[int]:
        """The steps of complete checkpoints, ascending."""
        found = self.folder.glob("[0-9]" * STEP_DIGITS)
        # Orbax writes to another name and renames at the end: a name without suffix is complete.
        return sorted(int(path.name) for path in found if path.is_dir())

    def safe(self) -> str:
        """What is not lost, and what to do: the end of every message about this folder."""
        steps = self.steps()
        kept = f"Step {steps[-1]} is safe in this folder" if steps else "No step is saved in it"
        return f"{kept}. Free space or mend the folder and its permissions, then resume."

    def save(self, step: int, carry: PyTree) -> None:
        """Write one checkpoint, then delete those beyond `keep`.

        Raises:
            FolderError: it cannot be written; earlier checkpoints are untouched.
        """
        if not self.folder.parent.is_dir():  # Orbax would make another in its place
            raise FolderError(
                f"{self.folder.parent} is gone, and the run that was in it. Put it back to resume"
                " from its last checkpoint, or begin again in a folder that stays."
            )
        ocp, leaves = self._orbax, _plain_leaves(carry)
        about = {
            "format": FORMAT,
            "step": step,
            "identity": self.identity,
            "leaves": _signature(carry),
            "checksums": [_checksum(leaf) for leaf in leaves],
            "num_lines": self.num_lines,
        }
        target = self._path(step)
        arguments = ocp.args.Composite(
            carry=ocp.args.StandardSave([a for a in leaves if a.size]),
            about=ocp.args.JsonSave(about),
        )
        try:
            with self._checkpointer() as checkpointer:
                checkpointer.save(target, args=arguments, force=True)
            if jax.process_index() == 0:
                sync_below(target)
                self._delete_old()
        # Orbax lets errors of several kinds through, some of them bare `Exception`s.
        except Exception as error:
            raise FolderError(
                f"The checkpoint of step {step} cannot be written to {target}: {_first_line(error)}"
                f" {self.safe()}"
            ) from error

    def restore(self, like: PyTree) -> PyTree | None:
        """The newest checkpoint, placed on devices as `like` is; None if there is none.

        Afterwards `num_lines` is the number of lines of metrics that were on the disk with it.

        Raises:
            FolderError: it is of another version, another problem or another run, or damaged.
        """
        with told(self.folder, self.safe):
            self._delete_remains()
            steps = self.steps()
        if not steps:
            return None
        source = self._path(steps[-1])
        about = self._about(source)
        check_identity(source, about["identity"], self.identity, self.changed)
        _check_leaves(source, about["leaves"], _signature(like))
        plain = _plain_leaves(like)
        abstract = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for a in plain]
        wanted = self._orbax.args.StandardRestore([a for a in abstract if a.size])
        read = iter(self._read(source, carry=wanted)["carry"])
        leaves = [_placed(next(read), a) if a.size else a for a in plain]
        sums = zip(map(_checksum, leaves), about["checksums"], strict=True)
        if any(now != then for now, then in sums if None not in (now, then)):
            raise self._damaged(source, "its numbers are not those that were saved.")
        self.num_lines = about["num_lines"]
        return _like(like, leaves)

    def _about(self, source: pathlib.Path) -> dict[str, Any]:
        about = self._read(source, about=self._orbax.args.JsonRestore())["about"]
        if not isinstance(about, dict) or "format" not in about:
            raise self._damaged(source, "it does not say what it is.")
        if about["format"] != FORMAT:
            raise FolderError(
                f"{source} has checkpoint format {about['format']!r}, this version of bilevel"
                f" reads format {FORMAT}. Resume with the version that wrote it, or begin again in"
                " another folder."
            )
        if lacks := [key for key in ABOUT if key not in about]:
            raise self._damaged(source, f"it lacks {', '.join(lacks)}.")
        return about

    def _read(self, source: pathlib.Path, **items: Any) -> Any:
        try:
            with self._checkpointer() as checkpointer:
                return checkpointer.restore(source, args=self._orbax.args.Composite(**items))
        except Exception as error:
            raise self._damaged(source, _first_line(error)) from error

    def _damaged(self, source: pathlib.Path, reason: str) -> FolderError:
        others = [s for s in self.steps() if s != int(source.name)]
        rest = f"resume from step {others[-1]}" if others else "begin again"
        return FolderError(f"{source} is damaged: {reason} Delete that folder to {rest}.")

    def _delete_old(self) -> None:
        for step in self.steps()[: -self.keep]:
            old = self._path(step)
            # Under its own name, a half deleted one would pass for complete.
            shutil.rmtree(old.rename(old.with_suffix(".deleted")))

    def _delete_remains(self) -> None:
        """Remove what a process left that was killed while it saved or deleted."""
        if jax.process_index() == 0:
            for path in self.folder.glob("[0-9]" * STEP_DIGITS + ".*"):
                shutil.rmtree(path)

    def _path(self, step: int) -> pathlib.Path:
        return self.folder / f"{step:0{STEP_DIGITS}d}"

    def _checkpointer(self) -> Any:
        return self._orbax.Checkpointer(self._orbax.CompositeCheckpointHandler("carry", "about"))


def _check_leaves(source: pathlib.Path, found: list[Any], expected: list[Any]) -> None:
    there, here = dict(found), dict(expected)
    for name in [*here, *there]:
        if here.get(name) != there.get(name):
            raise FolderError(
                f"{source} is of another problem: it has {there.get(name, 'nothing')} at `{name}`,"
                f" this run {here.get(name, 'nothing')}. Begin again in another folder."
            )


def _signature(tree: PyTree) -> list[list[str]]:
    """Name, dtype and shape of every leaf, as JSON."""
    return [
        [jax.tree_util.keystr(path).lstrip("."), f"{a.dtype}[{','.join(map(str, a.shape))}]"]
        for path, a in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain_leaves(tree: PyTree) -> list[jax.Array]:
    return [jax.random.key_data(a) if _is_key(a) else a for a in jax.tree.leaves(tree)]


def _placed(leaf: jax.Array, like: jax.Array) -> jax.Array:
    """Free to move to other devices if `like` was; as Orbax reads them, all arrays are tied."""
    return leaf if like.committed else jnp.array(np.asarray(leaf))


def _like(tree: PyTree, leaves: list[jax.Array]) -> PyTree:
    """`tree` with other leaves, wrapped as keys where its own are."""
    olds, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(
        structure,
        [
            jax.random.wrap_key_data(new, impl=jax.random.key_impl(old)) if _is_key(old) else new
            for old, new in zip(olds, leaves, strict=True)
        ],
    )


def _checksum(leaf: jax.Array) -> int | None:
    """CRC-32 of an array's bytes; None where this process does not have all of them."""
    if not leaf.is_fully_addressable:
        return None
    return zlib.crc32(np.asarray(leaf).tobytes())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}."


def _import_orbax() -> Any:
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise ImportError(
            "Checkpoints need Orbax: `pip install 'bilevel[training]'`, or call `fit` without"
            " `folder`."
        ) from error
    return orbax.checkpoint
