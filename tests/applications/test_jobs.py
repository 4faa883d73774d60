"""What people come with, end to end: a table, a folder of images, models of two frameworks."""

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets

from applications import coreset, forget_set, unlearning_table
from tests.applications.test_wrapping import NNXNet, equinox_mlp

QUICK = dict(epochs=1, outer_steps=1, lower_epochs=1, random_draws=1, seeds=(0,), cache=False)
ARGUMENTS = ["--epochs", "1", "--outer-steps", "1", "--lower-epochs", "1", "--random-draws", "1",
             "--seeds", "0", "--no-cache", "--output", "out"]  # fmt: skip
NETS = """
import equinox as eqx, jax
from flax import nnx

def mlp(num_classes, input_shape, key):
    return eqx.nn.MLP(*input_shape, num_classes, 8, 1, key=key)

class CNN(nnx.Module):
    def __init__(self, num_classes, input_shape, rngs):
        self.conv = nnx.Conv(input_shape[-1], 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))
"""


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder of one's own, with a module of models, and the current one."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def cancer():
    x, y = sklearn.datasets.load_breast_cancer(return_X_y=True)
    return x[:200], np.array(["malignant", "benign"])[y[:200]]


def write_csv(x, y):
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(x).assign(diagnosis=y).to_csv("cancer.csv", index=False)


def write_npz(x, y):
    names, labels = np.unique(y, return_inverse=True)
    parts = {"x_train": x, "y_train": labels, "x_test": x[::4], "y_test": labels[::4]}
    np.savez("cancer.npz", **parts, class_names=names)


@pytest.mark.parametrize(("kind", "write"), [("csv", write_csv), ("npz", write_npz)])
def test_a_table_by_command(desk, kind, write):
    write(*cancer())
    arguments = ["--data", f"{kind}:cancer.{kind}", "--model", "nets:mlp", "--methods", "none"]
    forget_set.main(arguments + ARGUMENTS)
    page = (desk / "out" / "report.html").read_text()
    assert "malignant" in page and "images of" not in page
    with np.load("out/result.npz") as arrays:
        assert set(arrays["sets"].ravel()) <= set(arrays["rows"]) <= set(range(200))


def write_photos(desk):
    rng = np.random.default_rng(0)
    for name, shade in (("dark", 60), ("light", 180)):
        (desk / "photos" / name).mkdir(parents=True)
        for number in range(25):
            pixels = rng.normal(shade, 20, (12 + number % 3, 12)).clip(0, 255).astype(np.uint8)
            PIL.Image.fromarray(pixels).save(desk / "photos" / name / f"{number}.png")


def test_a_folder_of_images_by_command(desk, capsys):
    write_photos(desk)
    arguments = ["--data", "folder:photos", "--model", "nets:CNN", "--sets", "random"]
    unlearning_table.main(arguments + ["--methods", "IU", "WoodFisher", "FT"] + ARGUMENTS)
    page = (desk / "out" / "report.html").read_text()
    assert "images of random" in page and "dark" in page
    assert "carry traces of every point" in page and "carry traces" in capsys.readouterr().out


@pytest.mark.parametrize("model", [NNXNet, equinox_mlp])
def test_a_table_and_a_model_in_python(tmp_path, model):
    x, y = cancer()
    config = forget_set.Config(output=tmp_path / "out", methods=("none",), **QUICK)
    result = forget_set.run(config, dataset={"x_train": x, "y_train": y}, model=model)
    assert {row["method"] for row in result.rows} == {"Retrain", "none"}
    assert all(np.isfinite(row["forget_loss"]) for row in result.rows)


def test_a_folder_of_images_in_python(desk):
    write_photos(desk)
    config = coreset.Config(
        data="folder:photos", output="out", methods=["uniform"], sizes=[4], num_steps=5, seeds=[0]
    )
    result = coreset.run(config, model="nets:CNN")
    assert (desk / "out" / "report.html").exists() and [len(own.rows) for own in result.chosen] == [
        4
    ]
    # A result is short to print: the data set gives its name, not its numbers.
    assert "name='photos'" in repr(result.dataset) and len(repr(result.dataset)) < 300
