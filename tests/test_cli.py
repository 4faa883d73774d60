"""The command line of the applications: help, mistakes, and configurations saved and read back."""

import dataclasses
import inspect
import pathlib
from typing import Literal

import pytest

from applications import forget_set
from applications.components import frame
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
    frame.main("page", Config, seen.append, arguments)
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
    config = forget_set.Config(output=tmp_path, data="fashion_mnist", outer_rate=0.5, seeds=(3,))
    Output(tmp_path, overwrite=True).write_json("config.json", dataclasses.asdict(config))
    arguments = ["--config", str(tmp_path / "config.json")]
    assert frame.parse(forget_set.Config, "page", arguments) == config


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
        frame.main("page", application.Config, print, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    source = "".join(inspect.getsource(kind) for kind in application.Config.__mro__[:-1])
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
        ("{", "error: `--config` ... is not JSON"),
        ("[]", "must hold an object of settings"),
        ('{"num_step": 3}', "Unrecognized options: --num-step...Perhaps you meant:...--num-steps"),
        ('{"num_steps": "many"}', "--config ...config.json...invalid literal for int"),
        ('{"num_steps": true}', "--num-steps"),
        ('{"rate": "x"}', "Error parsing --rate...could not convert string to float: 'x'"),
        ('{"model": "vgg"}', "invalid choice 'vgg' for argument '--model'"),
        ('{"seeds": [0, "b"]}', "Error parsing --seeds...['0', 'b']"),
        ('{"shape": [1]}', "--shape"),
        ('{"inner": {"num": 3}}', "Unrecognized options: --inner.num"),
    ],
)
def test_configurations_that_cannot_be_used(tmp_path, content, message, capsys):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        run(["--config", str(tmp_path / "config.json")])
    text = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert stopped.value.code == 2 and all(part in text for part in message.split("..."))


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
        frame.main("page", Config, fail, [])
    assert stopped.value.code == status and capsys.readouterr().err == "error: a\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        frame.main("page", Config, lambda config: 1 / 0, [])
