"""Your data: files, folders and arrays of every kind, and what is wrong with them."""

import dataclasses

import numpy as np
import pandas
import PIL.Image
import pytest

from applications.components.data import from_arrays, from_records, load
from applications.components.errors import InputError

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 4)).astype(np.float32), np.arange(30) % 3


def test_npz_with_every_part_and_names(tmp_path):
    parts = {"x_train": X, "y_train": Y, "x_test": X[:6], "y_test": Y[:6]}
    parts |= {"x_validation": X[:3], "y_validation": Y[:3]}
    np.savez(tmp_path / "a.npz", **parts, class_names=np.array(["low", "mid", "high"]))
    dataset = load(f"npz:{tmp_path / 'a.npz'}")
    assert dataset.kind == "vectors" and dataset.class_names == ("low", "mid", "high")
    assert [len(p.y) for p in (dataset.train, dataset.validation, dataset.test)] == [30, 3, 6]
    np.testing.assert_allclose(dataset.train.x.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(dataset.train.x.std(0), 1, rtol=1e-5)
    assert dataset.notes == ()


def test_class_folders_of_images_of_any_size(tmp_path):
    for part, count in (("train", 8), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = RNG.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
                PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
    dataset = load(f"folder:{tmp_path}")
    assert dataset.kind == "images" and dataset.class_names == ("cat", "dog")
    assert dataset.train.x.shape == (16, 22, 24, 3) and len(dataset.test.y) == 4
    pictures = dataset.pictures(dataset.train.x)
    assert pictures.min() >= 0 and pictures.max() <= 1
    assert "Classes with fewer than 10 training points: cat (8), dog (8)." in dataset.notes
    (tmp_path / "train" / "cat" / "x.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="x.png is no image that Pillow reads"):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables(tmp_path, kind):
    table = pandas.DataFrame(X, columns=list("abcd")).assign(
        label=np.array(["x", "y", "z"])[Y], colour=np.array(["red", "blue"])[Y % 2]
    )
    path = tmp_path / f"a.{kind}"
    table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    dataset = load(f"{kind}:{path}", num_train=12, num_validation=6)
    assert dataset.train.x.shape == (12, 6) and dataset.class_names == ("x", "y", "z")
    assert len(dataset.test.y) == 6 and len(dataset.validation.y) == 6
    assert any("serve as test points" in note for note in dataset.notes)
    assert set(dataset.train_rows) < set(range(30))


def test_libsvm_labels_are_named_as_they_stand(tmp_path):
    (tmp_path / "a").write_text("+1 1:0.5 3:2\n-1 2:-1.5\n" * 10)
    dataset = load(f"libsvm:{tmp_path / 'a'}")
    assert dataset.class_names == ("-1", "1") and dataset.train.x.shape == (16, 3)


def test_records_name_their_classes():
    class Label:
        names = ("no", "yes")

    class Records(list):
        features = {"label": Label()}

    records = Records({"image": np.zeros((4, 4), np.uint8), "label": i % 2} for i in range(20))
    dataset = from_records(records)
    assert dataset.class_names == ("no", "yes") and dataset.train.x.shape == (16, 4, 4, 1)


BAD = {
    "length": (lambda: from_arrays(X, Y[:5]), "as many points as labels"),
    "axes": (lambda: from_arrays(X[None, None, None], Y[:1]), "must be images"),
    "words": (lambda: from_arrays(X.astype(str), Y), "must be images"),
    "tokens": (lambda: from_arrays(Y[:, None] - 1, Y), "tokens >= 0, got -1"),
    "one class": (lambda: from_arrays(X, 0 * Y), "at least two classes, got 0"),
    "label": (lambda: from_arrays(X, Y, X, Y + 1), "`y_test` has a label 3 that the training"),
    "named": (lambda: from_arrays(X, Y, class_names=["a", "b"]), "a label 2 that `class_names`"),
    "NaN": (lambda: from_arrays(X * np.nan, Y), "`x_train` must be finite, got nan"),
    "shapes": (lambda: from_arrays(X, Y, X[:, :2], Y), "must have points of one shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_arrays_that_cannot_be(name):
    make, message = BAD[name]
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,label\n1,x\n,y\n", "Column 'a' must be complete"),
        ("a,label\n" + "".join(f"w{i},x\n" for i in range(101)), "at most 100 different words"),
        ("", "cannot be read"),
    ],
)
def test_tables_that_cannot_be(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        load(f"csv:{tmp_path / 'a.csv'}")


def test_a_folder_without_classes(tmp_path):
    with pytest.raises(InputError, match="must hold a folder of images for each class"):
        load(f"folder:{tmp_path}")


def test_points_that_are_held_out_are_not_trained_on():
    dataset = load("digits", num_train=100, num_validation=50)
    assert len(np.union1d(dataset.train_rows, dataset.validation_rows)) == 150
    with pytest.raises(InputError, match="are both trained on and held out"):
        dataclasses.replace(dataset, validation_rows=dataset.train_rows[:3])
