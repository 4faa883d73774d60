"""What every page is built on: the settings that all pages share, their command line, their keys.

A page is a module with a `Config` that extends `frame.Config`, `run(config, dataset=None,
model=None) -> Result`, and `main()`, which is `frame.main`. README.md shows one in 40 lines.
"""

import dataclasses
import inspect
import json
import os
import pathlib
import sys
import zlib
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import rich.console
import tyro

from bilevel import training

from .data import Dataset, from_arrays, load, reduced
from .errors import InputError, NonFiniteError
from .models import Model, make
from .points import Points

ConfigT = TypeVar("ConfigT")

MENDABLE = (InputError, training.FolderError)
NON_FINITE = (NonFiniteError, training.NonFiniteError)
CONFIG_HELP = (
    "--config FILE starts from the settings in a config.json that an earlier run left behind;"
    " options beside it replace single ones."
)
MAX_SEED = 2**32 - 1  # larger ones would be cut to one of these


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The settings that all pages share."""

    output: pathlib.Path | None = None
    """Folder for the results, which must not hold any yet; results/ and the page's name if not
    given."""
    overwrite: bool = False
    """Replace the results that this page left in the output folder."""
    resume: bool = False
    """Go on with this page's run in the output folder: what is finished is read back. The settings
    must be the same, but for --seeds, which may be more."""
    data: str = "digits"
    """What to work on: digits, which need no files; fashion_mnist, cifar10 or cifar100, read from
    --data-dir; or yours, as npz:FILE, folder:DIR, csv:FILE, parquet:FILE or libsvm:FILE."""
    data_dir: pathlib.Path = pathlib.Path("data")
    """Folder that holds fashion_mnist/*.gz, cifar-10-batches-bin/*.bin or cifar-100-binary/*.bin,
    as published."""
    num_train: int | None = None
    """Keep so many training points, with the class shares of all; fewer is faster."""
    num_validation: int = 0
    """Hold out so many training points and judge on them; the test points are not looked at."""
    model: str | None = None
    """Architecture: mlp, small_cnn, bag, or resnet9, resnet18 or vgg16, which want an accelerator;
    or yours as module.path:Name. Not given: what suits the data."""
    bfloat16: bool = False
    """Compute in bfloat16: faster on accelerators, slower on most CPUs."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One independent repetition for each; the tables show mean and deviation over them."""
    cache: bool = True
    """Keep compiled programs in ~/.cache/bilevel, so that the next run starts sooner."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"`seeds` must be at least one, each once, got {self.seeds}.")
        if not all(0 <= seed <= MAX_SEED for seed in self.seeds):
            raise InputError(f"`seeds` must lie between 0 and {MAX_SEED}, got {self.seeds}.")
        if self.overwrite and self.resume:
            raise InputError("`overwrite` and `resume` exclude each other: pass one of them.")

    def load(self, given: Any = None) -> Dataset:
        """The data set of these settings.

        Args:
            given: in place of `data`: a `Dataset`, or the arguments of `data.from_arrays` as a
                mapping.
        """
        if given is None:
            return load(self.data, self.data_dir, self.num_train, self.num_validation)
        dataset = given if isinstance(given, Dataset) else from_arrays(**given)
        return reduced(dataset, self.num_train, self.num_validation)

    def judged(self, dataset: Dataset) -> Points:
        """What models are judged on: the points held out of training, or else the test points."""
        return dataset.validation if self.num_validation else dataset.test

    def build(self, dataset: Dataset, given: Any = None, default: str = "auto") -> Model:
        """The model of these settings.

        Args:
            dataset: that it must fit.
            given: in place of `model`: what `models.make` takes.
            default: its name where neither is given.
        """
        spec = given if given is not None else self.model or default
        return make(spec, dataset, jnp.bfloat16 if self.bfloat16 else None)


def named_key(key: jax.Array, *names: str) -> jax.Array:
    """The key that belongs to these names: the same whatever other names a run has.

    Args:
        key: of the whole.
        names: of the part, from the outside in: a seed's search, a set, a method on it.
    """
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return key


def main(
    page: str,
    config_class: type[ConfigT],
    run: Callable[[ConfigT], Any],
    arguments: list[str] | None = None,
) -> None:
    """Parse the command line into `config_class` and run it.

    Each field is an option and the text below it is its help; `--config FILE` reads a saved
    configuration first. What the user can mend is printed as one line, without a traceback.

    Args:
        page: its name, for the help text.
        config_class: a frozen dataclass; its docstring opens the help text.
        run: what to do with it.
        arguments: instead of those of the process.

    Raises:
        SystemExit: with 2 for an option, a file or a folder that cannot be used, 1 for a
            computation that left the finite numbers.
    """
    try:
        config = parse(config_class, page, sys.argv[1:] if arguments is None else arguments)
        if getattr(config, "cache", False):
            keep_compiled_programs()
        run(config)
    except MENDABLE as error:
        _stop(str(error), 2)
    except NON_FINITE as error:
        _stop(str(error), 1)
    except OSError as error:
        _stop(f"{error.filename}: {error.strerror}." if error.filename else str(error), 2)


def _stop(text: str, status: int) -> NoReturn:
    console = rich.console.Console(stderr=True)
    # A soft wrap leaves the message one line, for whoever searches a log for it.
    console.print(f"error: {text}", style="bold red", markup=False, soft_wrap=True)
    sys.exit(status)


def parse(config_class: type[ConfigT], page: str, arguments: list[str]) -> ConfigT:
    """The configuration that these arguments ask for.

    Args:
        config_class: see `main`.
        page: see `main`.
        arguments: without the name of the program.

    Raises:
        SystemExit: an option is unknown (the nearest ones are shown) or its value is no such thing.
        InputError: the file of `--config` cannot be used.
    """
    prog = f"{_program()} {page.replace('_', '-')}"
    path, rest = _take_config(arguments)
    description = f"{inspect.getdoc(config_class)}\n\n{CONFIG_HELP}"
    if path is None:
        return tyro.cli(config_class, args=rest, prog=prog, description=description)
    default = tyro.cli(config_class, args=as_arguments(path), prog=f"{prog} --config {path}")
    return tyro.cli(config_class, args=rest, prog=prog, description=description, default=default)


def as_arguments(path: pathlib.Path) -> list[str]:
    """A saved configuration as the arguments that say the same, for one parser to judge.

    Args:
        path: of a JSON file. A setting that it leaves out, or that is null, keeps its default.

    Raises:
        InputError: the file is missing, or no JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"`--config` {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"`--config` {path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"`--config` {path} must hold an object of settings.")
    return _options(content, "--")


def _options(content: dict[str, Any], prefix: str) -> list[str]:
    arguments: list[str] = []
    for name, value in content.items():
        option = prefix + name.replace("_", "-")
        if isinstance(value, dict):
            arguments += _options(value, f"{option}.")
        elif isinstance(value, bool):
            arguments.append(option if value else f"{prefix}no-{name.replace('_', '-')}")
        elif isinstance(value, list):
            arguments += [option, *map(str, value)]
        elif value is not None:
            arguments += [option, str(value)]
    return arguments


def keep_compiled_programs() -> None:
    """Let JAX keep its compiled programs on the disk, unless the environment says where already."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "bilevel"))


def _program() -> str:
    name = pathlib.Path(sys.argv[0]).stem
    return name if name == "bilevel" else "python -m applications"


def _take_config(arguments: list[str]) -> tuple[pathlib.Path | None, list[str]]:
    """Part `--config FILE` from the other arguments."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name != "--config":
            continue
        after = place + 1 if equals else place + 2
        if not equals:
            value = arguments[place + 1] if place + 1 < len(arguments) else ""
        if not value or value.startswith("--"):
            raise InputError("`--config` needs a file, e.g. `--config results/a/config.json`.")
        return pathlib.Path(value), arguments[:place] + arguments[after:]
    return None, arguments
