"""Data from other hands: LIBSVM, npz, IDX and records; none may run code."""

import bz2
import gzip
import io
import os
import struct
import zipfile

import numpy as np
import pytest

from applications.components.errors import InputError
from applications.components.formats import read_idx, read_libsvm, read_npz
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
        (b"1 99999999999999999999999:1", "line 1: .*too large"),
        (b"1 999999999999:1", "an example with index 999999999999: as a dense array .*would take"),
        (b"1 1:nan", "line 1: numbers must be finite and below 3.4e38"),
        (b"1 1:1e39", "line 1: numbers must be finite and below 3.4e38"),
        (b"inf 1:1", "line 1: numbers must be finite and below 3.4e38"),
    ],
)
def test_damaged_libsvm(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_libsvm(tmp_path / "a", num_features=4 if b" 9:" in content else None)


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


def npy(header):
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


MEMBERS = {
    "an array's name alone": (b"not an array", "the magic string is not correct"),
    "too large": (
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}\n"),
        r"x states the shape \(1000000000000,\) and has no 8000000000000 bytes",
    ),
    "cut": (
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (4,)}\n") + bytes(24),
        r"x states the shape \(4,\) and has no 32 bytes",
    ),
    "of the future": (b"\x93NUMPY\x09\x00" + bytes(20), "version|format"),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_npz_with_a_member_that_is_no_array(tmp_path, name):
    content, message = MEMBERS[name]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("x.npy", content)
    with pytest.raises(InputError, match=f"is no npz file of plain arrays .*({message})"):
        read_npz(tmp_path / "a.npz", ("x",))


def test_an_npy_is_no_npz(tmp_path):
    np.save(tmp_path / "a.npy", DENSE)
    with pytest.raises(InputError, match="is no npz file of plain arrays"):
        read_npz(tmp_path / "a.npy", ("x",))


@pytest.mark.parametrize("shape", [(2**32 - 1, 0, 2**32 - 1), (2**32 - 1,) * 3])
def test_idx_whose_header_states_too_much(tmp_path, shape):
    header = bytes([0, 0, 8, 3]) + struct.pack(">III", *shape)
    (tmp_path / "a.gz").write_bytes(gzip.compress(header))
    with pytest.raises(InputError, match=r"states an impossible shape, \(4294967295, .*again"):
        read_idx(tmp_path / "a.gz", 3)


def test_idx_with_more_than_it_states(tmp_path):
    content = bytes([0, 0, 8, 1]) + struct.pack(">I", 3) + bytes(10_000)
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=r"must hold 3 bytes for its shape \(3,\), got more"):
        read_idx(tmp_path / "a.gz", 1)


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
