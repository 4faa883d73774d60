"""Data from other hands: LIBSVM, npz, archives and records; none may run code or land elsewhere."""

import bz2
import hashlib
import io
import os
import pathlib
import tarfile
import zipfile

import numpy as np
import pytest

from applications.components.archives import check_sha256, unpack
from applications.components.errors import InputError
from applications.components.formats import read_libsvm, read_npz
from applications.components.records import to_arrays

LINES = "+1 1:0.5 3:2\n-1 2:-1.5e-1  # a comment\n\n+1\n"
DENSE = np.array([[0.5, 0, 2, 0], [0, -0.15, 0, 0], [0, 0, 0, 0]], np.float32)


@pytest.mark.parametrize("suffix", ["", ".bz2"])
def test_libsvm_is_read_as_written(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    path.write_bytes(bz2.compress(LINES.encode()) if suffix else LINES.encode())
    x, y = read_libsvm(path)
    np.testing.assert_array_equal(x, DENSE[:, :3])
    np.testing.assert_array_equal(y, [1, -1, 1])
    np.testing.assert_array_equal(read_libsvm(path, num_features=4)[0], DENSE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold examples of some features, got 0 examples"),
        (b"1 1:2\n1 a:3\n", "line 2: invalid literal for int.*'1 a:3'"),
        (b"1 1:2:3\n", "line 1: too many values"),
        (b"yes 1:2\n", "line 1: could not convert string to float: 'yes'"),
        (b"1 0:2\n", "line 1: indices must ascend from 1"),
        (b"1 2:2 1:3\n", "line 1: indices must ascend from 1"),
        (b"1 9:2\n", "examples of 4 features, got 1 examples and index 9. Correct `num_features`"),
        (b"\xff\xfe", "is no complete LIBSVM file"),
    ],
)
def test_damaged_libsvm(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_libsvm(tmp_path / "a", num_features=4 if b"9:" in content else None)


def test_cut_bz2(tmp_path):
    (tmp_path / "a.bz2").write_bytes(bz2.compress(LINES.encode())[:-5])
    with pytest.raises(InputError, match="is no complete LIBSVM file.*Download it again"):
        read_libsvm(tmp_path / "a.bz2")


def test_npz_is_read_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", x=DENSE, y=np.arange(3), z=np.zeros(1))
    y, x = read_npz(tmp_path / "a.npz", ("y", "x")).values()
    np.testing.assert_array_equal(x, DENSE)
    np.testing.assert_array_equal(y, [0, 1, 2])
    with pytest.raises(InputError, match="must hold arrays x, w, got x, y, z: it lacks w"):
        read_npz(tmp_path / "a.npz", ("x", "w"))


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_npz_never_unpickles(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([Bomb(tmp_path / "bang")], dtype=object))
    with pytest.raises(InputError, match="Arrays of Python objects are pickles.*not read"):
        read_npz(tmp_path / "a.npz", ("x",))
    assert not (tmp_path / "bang").exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", None], ids=["empty", "text", "cut"])
def test_damaged_npz(tmp_path, content):
    buffer = io.BytesIO()
    np.savez(buffer, x=DENSE)
    (tmp_path / "a.npz").write_bytes(buffer.getvalue()[:60] if content is None else content)
    with pytest.raises(InputError, match="is no npz file of plain arrays"):
        read_npz(tmp_path / "a.npz", ("x",))


def make_tar(path, *members):
    with tarfile.open(path, "w:gz") as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = 2 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"ok") if info.size else None)


def make_zip(path, *names):
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, "ok")


def test_archives_are_unpacked(tmp_path):
    make_tar(tmp_path / "a.tar.gz", ("d/file", tarfile.REGTYPE, ""))
    make_zip(tmp_path / "a.zip", "e/file")
    digest = hashlib.sha256((tmp_path / "a.tar.gz").read_bytes()).hexdigest()
    unpack(tmp_path / "a.tar.gz", tmp_path / "out", sha256=digest.upper())
    unpack(tmp_path / "a.zip", tmp_path / "out")
    for folder in "de":
        assert (tmp_path / "out" / folder / "file").read_text() == "ok"


@pytest.mark.parametrize(
    "member",
    [
        ("../evil", tarfile.REGTYPE, ""),
        ("link", tarfile.SYMTYPE, "/etc/passwd"),
        ("link", tarfile.SYMTYPE, "../../evil"),
        ("link", tarfile.LNKTYPE, "../evil"),
        ("pipe", tarfile.FIFOTYPE, ""),
    ],
    ids=["path", "absolute link", "link", "hard link", "pipe"],
)
def test_tars_that_reach_outside_are_refused(tmp_path, member):
    make_tar(tmp_path / "a.tar.gz", member)
    with pytest.raises(InputError, match="is not safe to unpack"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil-of-bilevel"])
def test_zips_that_reach_outside_are_refused(tmp_path, name):
    make_zip(tmp_path / "a.zip", "good", name)
    with pytest.raises(InputError, match="is not safe to unpack: .*would be outside"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not pathlib.Path("/tmp/evil-of-bilevel").exists()


def test_damaged_archives(tmp_path):
    make_tar(tmp_path / "a.tar.gz", *((f"{i}", tarfile.REGTYPE, "") for i in range(200)))
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes((tmp_path / "a.tar.gz").read_bytes()[:200])
    for path in (cut, tmp_path / "missing.tar"):
        with pytest.raises(InputError, match="is no complete archive.*Download it again"):
            unpack(path, tmp_path / "out")
    with pytest.raises(InputError, match="must have the SHA-256 checksum 00, got .*again"):
        unpack(cut, tmp_path / "out", sha256="00")
    with pytest.raises(InputError, match="missing cannot be read: No such file"):
        check_sha256(tmp_path / "missing", "00")


IMAGES = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
EXAMPLES = [{"image": image, "label": np.int64(i)} for i, image in enumerate(IMAGES)]


class LikeTensorFlow:
    """What a `tf.data.Dataset` offers."""

    def as_numpy_iterator(self):
        return iter(EXAMPLES)


class LikeHuggingFace:
    """What a `datasets.Dataset` offers."""

    column_names = ["image", "label"]

    def with_format(self, kind):
        assert kind == "numpy"
        return {name: [example[name] for example in EXAMPLES] for name in self.column_names}


@pytest.mark.parametrize("records", [EXAMPLES, LikeTensorFlow(), LikeHuggingFace()])
def test_records_become_arrays(records):
    labels, images = to_arrays(records, ("label", "image"))
    np.testing.assert_array_equal(images, IMAGES)
    assert images.dtype == np.uint8 and labels.tolist() == [0, 1, 2]
    with pytest.raises(InputError, match=r"columns of the data set, \['image', 'label'\], got 'x'"):
        to_arrays(records, ("x",))


@pytest.mark.filterwarnings("default")
def test_hugging_face_datasets():
    datasets = pytest.importorskip("datasets", reason="the adapter needs no `datasets` to work")
    table = datasets.table.InMemoryTable.from_pydict({"image": IMAGES.tolist(), "label": [0, 1, 2]})
    whole = datasets.Dataset(table, fingerprint="given, since computing one pickles the table")
    labels, images = to_arrays(whole, ("label", "image"))
    np.testing.assert_array_equal(images, IMAGES)
    assert labels.tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="one split of the data set, got all: train"):
        to_arrays(datasets.DatasetDict(train=whole), ("label",))


def test_records_that_fit_no_array():
    with pytest.raises(InputError, match="holds no examples"):
        to_arrays([], ("image",))
    ragged = [{"image": np.zeros(2)}, {"image": np.zeros(3)}]
    with pytest.raises(InputError, match=r"'image' must have examples of one shape, got .*\(2,\)"):
        to_arrays(ragged, ("image",))
