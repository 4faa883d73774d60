"""The command line of the applications: help, mistakes, and configurations saved and read back."""

import dataclasses
import pathlib
from typing import Literal

import pytest

from applications import forget_set
from applications.components import cli
from applications.components.config import read_config
from applications.components.errors import InputError, NonFiniteError
from applications.components.output import Output
from bilevel import training


@dataclasses.dataclass(frozen=True)
class Inner:
    """Settings within settings."""

    num_steps: int = 5
    """Inner steps; more solve the inner problem better and cost more."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Do something."""

    output: pathlib.Path = pathlib.Path("results")
    """Folder to write."""
    num_steps: int = 10
    """Outer steps."""
    rate: float | None = None
    """Step size; None takes the recipe's."""
    model: Literal["mlp", "cnn"] = "mlp"
    """Architecture."""
    seeds: tuple[int, ...] = (0, 1)
    """Repetitions."""
    shape: tuple[int, float] = (1, 0.5)
    """A pair."""
    fast: bool = False
    """Cut corners."""
    inner: Inner = Inner()
    """The inner problem."""


def run(arguments):
    seen = []
    cli.main(Config, seen.append, "prog", arguments)
    return seen[0]


CHANGED = Config(
    pathlib.Path("a b"), 3, 0.25, "cnn", (4, 5, 6), (2, 1.0), True, Inner(num_steps=7)
)  # fmt: skip


@pytest.mark.parametrize("config", [Config(), CHANGED], ids=["defaults", "changed"])
def test_a_saved_configuration_runs_again(tmp_path, config):
    Output(tmp_path / "run", overwrite=False).write_json("config.json", dataclasses.asdict(config))
    path = str(tmp_path / "run" / "config.json")
    assert run(["--config", path]) == run([f"--config={path}"]) == config
    replaced = run(["--num-steps", "99", "--config", path, "--model", "mlp"])
    assert replaced == dataclasses.replace(config, num_steps=99, model="mlp")


def test_the_configuration_of_an_application_can_be_read_back(tmp_path):
    config = forget_set.Config(output=tmp_path, dataset="fashion_mnist", outer_rate=0.5, seeds=(3,))
    Output(tmp_path, overwrite=True).write_json("config.json", dataclasses.asdict(config))
    assert read_config(forget_set.Config, tmp_path / "config.json") == config


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        run(["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Do something." in text and "--config FILE starts from the settings" in text
    for option in ("--num-steps INT Outer steps. (default: 10)", "more solve the inner problem"):
        assert option in text


@pytest.mark.parametrize("application", [forget_set], ids=lambda module: module.__name__)
def test_applications_say_what_each_option_does(application, capsys):
    with pytest.raises(SystemExit):
        cli.main(application.Config, print, "prog", ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    source = pathlib.Path(application.__file__).read_text()
    for field in dataclasses.fields(application.Config):
        assert f"--{field.name.replace('_', '-')}" in text
        explained = source.split(f"    {field.name}:")[1].split("\n")[1].strip()
        assert explained.startswith('"""') and len(explained) > 20, field.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-step", "3"], "Perhaps you meant:...--num-steps INT"),
        (["--modle", "cnn"], "Perhaps you meant:...--model {mlp,cnn}"),
        (["--num-steps", "many"], "invalid literal for int"),
        (["--model", "vgg"], "invalid choice 'vgg' for argument '--model'"),
        (["--config"], "error: `--config` needs a file, e.g"),
        (["--config", "--fast"], "error: `--config` needs a file, e.g"),
        (["--config", "missing.json"], "error: `--config` missing.json cannot be read: No such"),
    ],
)
def test_mistakes_end_with_status_2_and_what_to_type(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(arguments)
    assert stopped.value.code == 2
    words = capsys.readouterr().err.replace("│", " ").split()
    text = " ".join(word for word in words if word.strip("-─╭╮╰╯"))
    assert all(part in text for part in message.split("..."))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", r"must be an object of settings, got \[\]"),
        (
            '{"num_step": 3}',
            "setting `num_step` that Config lacks. Did you mean `num_steps`?",
        ),
        ('{"num_steps": "3"}', '`num_steps` must be an integer, got "3"'),
        ('{"num_steps": true}', "`num_steps` must be an integer, got true"),
        ('{"fast": 1}', "`fast` must be true or false, got 1"),
        ('{"rate": "x"}', '`rate` must be a number or null, got "x"'),
        ('{"model": "vgg"}', '`model` must be one of "mlp", "cnn", got "vgg"'),
        ('{"seeds": [0, "b"]}', r'`seeds`\[1\] must be an integer, got "b"'),
        ('{"seeds": 3}', "`seeds` must be a list, got 3"),
        ('{"shape": [1]}', r"`shape` must have 2 entries, got \[1\]"),
        ('{"output": 3}', "`output` must be a string, got 3"),
        ('{"inner": {"num": 3}}', "`inner` has a setting `num` that Inner lacks"),
    ],
)
def test_configurations_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_config(Config, tmp_path / "config.json")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("a"), 2),
        (training.FolderError("a"), 2),
        (NonFiniteError("a"), 1),
        (training.NonFiniteError("a"), 1),
    ],
)
def test_what_a_user_can_mend_is_one_line(error, status, capsys):
    def fail(config):
        raise error

    with pytest.raises(SystemExit) as stopped:
        cli.main(Config, fail, "prog", [])
    assert stopped.value.code == status and capsys.readouterr().err == "error: a\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.main(Config, lambda config: 1 / 0, "prog", [])
