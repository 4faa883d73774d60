"""What applications share: formats, data checks, models, training, output and reports."""

import gzip
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from applications.components import formats, networks, one_program, plots, report, sources
from applications.components.data import Dataset, load, stratified
from applications.components.errors import InputError
from applications.components.files import write_whole
from applications.components.output import environment, to_json
from applications.components.points import Points
from applications.components.training import (
    Recipe,
    crop_and_flip,
    initialise,
    loss_of,
    predict,
    shuffled_epochs,
    train,
)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def test_idx_is_read_as_written(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(IMAGES)))
    np.testing.assert_array_equal(formats.read_idx(tmp_path / "a.gz", 3), IMAGES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "is not a complete gzip file"),
        (gzip.compress(idx(IMAGES))[:-9], "is not a complete gzip file"),
        (gzip.compress(idx(IMAGES)[:-1]), "must hold 24 bytes for its shape"),
        (gzip.compress(idx(IMAGES)[:9]), "ends inside its 16-byte header"),
        (gzip.compress(idx(IMAGES[0])), "first four bytes should be 00000803, got 00000802"),
        (gzip.compress(b""), "got nothing"),
    ],
    ids=["no gzip", "cut", "short", "header", "axes", "empty"],
)
def test_damaged_idx(tmp_path, content, message):
    (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(InputError, match=message):
        formats.read_idx(tmp_path / "a.gz", 3)


def test_cifar_rows_are_label_then_colour_planes(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    row = bytes([7]) + image.transpose(2, 0, 1).tobytes()
    (tmp_path / "b.bin").write_bytes(row * 2)
    images, labels = formats.read_cifar10(tmp_path / "b.bin")
    np.testing.assert_array_equal(images, [image, image])
    assert labels.tolist() == [7, 7]


@pytest.mark.parametrize("content", [b"", b"x" * 100])
def test_damaged_cifar(tmp_path, content):
    (tmp_path / "b.bin").write_bytes(content)
    with pytest.raises(InputError, match="whole number of 3073-byte rows"):
        formats.read_cifar10(tmp_path / "b.bin")


def test_digits_are_checked_split_and_standardised():
    digits = load("digits", num_validation=97, num_train=500)
    assert [len(s.y) for s in (digits.train, digits.validation, digits.test)] == [500, 97, 500]
    assert abs(float(digits.train.x.mean())) < 0.1 and digits.num_classes == 10
    shown = digits.pictures(digits.test.x)
    assert shown.min() == 0.0 and shown.max() == 1.0


def test_unknown_dataset():
    with pytest.raises(InputError, match="must be one of digits, fashion_mnist, cifar10"):
        load("mnist")


def test_pixels_of_another_data_set_are_refused(monkeypatch):
    source = sources.SOURCES["digits"]
    monkeypatch.setitem(sources.SOURCES, "digits", source._replace(mean=(0.5,)))
    with pytest.raises(InputError, match="must have pixel means"):
        load("digits")
    monkeypatch.setitem(sources.SOURCES, "digits", source._replace(train_shape=(9, 8, 8, 1)))
    with pytest.raises(InputError, match="must have train and test images of shapes"):
        load("digits")


def parts(x=None, y=None):
    x = np.zeros((4, 2, 2, 1), np.float32) if x is None else x
    return Points(x, np.array([0, 1, 0, 1]) if y is None else np.asarray(y))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (parts(y=[0, 1, -1, 1]), r"`toy.train.y` must lie between 0 and 1, got -1 at position 2"),
        (parts(y=[0, 1, 2, 1]), "got 2 at position 2"),
        (parts(y=[0.0, 1.0, 0.0, 1.0]), "must be integers, got float64"),
        (parts(x=np.full((4, 2, 2, 1), np.nan)), "must be finite, got nan at position"),
    ],
    ids=["-1", "K", "float", "NaN"],
)
def test_bad_points_are_refused_before_any_computing(bad, message):
    unit = np.ones(1, np.float32)
    with pytest.raises(InputError, match=message):
        Dataset("toy", bad, parts(), parts(), ("a", "b"), unit, unit, np.arange(4))


def test_stratified_keeps_the_shares():
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)
    chosen = stratified(labels, 50, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [30, 15, 5]
    assert len(stratified(labels, 7, seed=0)) == 7 and len(stratified(labels, 0, seed=0)) == 0


@pytest.mark.parametrize("stride", [1, 2])
def test_patches_are_the_convolution(stride):
    x = jax.random.normal(jax.random.key(0), (2, 7, 8, 3))
    forms = [networks.Conv(4, stride=stride, bias=True, patches=p) for p in (True, False)]
    params = forms[0].init(jax.random.key(1), x)

    def slopes(form):
        loss = lambda params: jnp.sum(form.apply(params, x) ** 3)
        hvp = lambda params: jax.jvp(jax.grad(loss), (params,), (params,))[1]
        return form.apply(params, x), hvp(params)

    for a, b in zip(
        *(jax.tree.leaves(jax.jit(slopes, static_argnums=0)(f)) for f in forms), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("name", [name for name in networks.MODELS if name != "bag"])
def test_models_map_images_to_logits(name):
    model = networks.MODELS[name](7) if name != "resnet18" else networks.ResNet18(7, width=4)
    shape = jax.eval_shape(
        lambda x: model.apply(model.init(jax.random.key(0), x), x), jnp.zeros((3, 32, 32, 3))
    )
    assert shape.shape == (3, 7) and shape.dtype == jnp.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num_epochs=0), "`num_epochs` must be an integer >= 1, got 0"),
        (dict(num_epochs=1, batch_size=0), "`batch_size` must be"),
        (dict(num_epochs=1, learning_rate=0.0), "`learning_rate` must be a number > 0"),
        (dict(num_epochs=1, warmup=1.0), r"`warmup` must lie in \[0, 1\), got 1.0"),
        (dict(num_epochs=1, label_smoothing=-0.1), "`label_smoothing` must lie in"),
    ],
)
def test_recipes_out_of_range(settings, message):
    with pytest.raises(InputError, match=message):
        Recipe(**settings)


def test_training_needs_a_whole_batch():
    with pytest.raises(InputError, match="got 128 for 5 points"):
        Recipe(1).num_steps(5)


def test_training_learns_and_does_not_compile_again():
    points = load("digits", num_train=400).train.on_device()
    model, recipe = networks.MLP(10, (32,)), Recipe(5, batch_size=50, learning_rate=0.1)
    params = initialise(model, points.x, jax.random.key(0))
    before = train._cache_size()
    for start in (0, 100):
        index = jnp.arange(start, start + 300)
        trained = train(model, recipe, params, points, index, jax.random.key(1))
    assert train._cache_size() == before + 1
    correct = jnp.argmax(predict(model, trained, points.x), axis=1) == points.y
    assert float(correct.mean()) > 0.9


def test_one_program_trains_on_every_number_of_points():
    points = load("digits", num_train=100).train.on_device()
    model, recipe = networks.MLP(10, ()), Recipe(2, batch_size=10, warmup=0.3, nesterov=True)
    params = initialise(model, points.x, jax.random.key(0))
    before = one_program._train._cache_size()
    for count in (100, 73):
        args = model, recipe, params, points, jnp.arange(count), jax.random.key(1)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            one_program.train_any_number(*args),
            train(*args),
        )
    assert one_program._train._cache_size() == before + 1


def test_the_rate_rises_in_a_line_and_falls_by_a_cosine():
    rates = [float(Recipe(1, warmup=0.2).rate(jnp.asarray(step), 20)) for step in range(21)]
    np.testing.assert_allclose(rates[:4], 0.1 * np.array([0.25, 0.5, 0.75, 1.0]), rtol=1e-6)
    assert rates[12] == pytest.approx(0.05) and rates[20] == pytest.approx(0.0, abs=1e-9)
    plain = [float(Recipe(1).rate(jnp.asarray(step), 20)) for step in range(20)]
    cosine = optax.cosine_decay_schedule(0.1, 20)
    np.testing.assert_array_equal(plain, [float(cosine(step)) for step in range(20)])


def test_smoothed_labels_are_a_mixture_of_cross_entropies():
    points = load("digits", num_train=50).train.on_device()
    model, rows = networks.MLP(10, ()), jnp.arange(20)
    params = initialise(model, points.x, jax.random.key(0))
    loss = loss_of(model, Recipe(1, label_smoothing=0.3), points, jax.random.key(1))
    log_probs = jax.nn.log_softmax(model.apply(params, points.x[rows]))
    targets = 0.7 * jax.nn.one_hot(points.y[rows], 10) + 0.3 / 10
    expected = -jnp.mean(jnp.sum(targets * log_probs, axis=1))
    np.testing.assert_allclose(loss(params, (rows, jnp.asarray(0)))[0], expected, rtol=1e-6)


def test_a_weight_of_zero_leaves_a_point_out():
    points = load("digits", num_train=100).train.on_device()
    model, recipe = networks.MLP(10, ()), Recipe(2, batch_size=10)
    params = initialise(model, points.x, jax.random.key(0))
    weight = jnp.ones(100).at[:50].set(0.0)
    changed = points._replace(y=points.y.at[:50].set(0))
    runs = [
        train(model, recipe, params, p, jnp.arange(100), jax.random.key(1), weight)
        for p in (points, changed)
    ]
    jax.tree.map(np.testing.assert_array_equal, *runs)


def test_each_epoch_is_a_permutation():
    rows = shuffled_epochs(jax.random.key(0), jnp.arange(10, 30), 3, 5)
    assert rows.shape == (12, 5)
    for epoch in np.asarray(rows).reshape(3, 20):
        assert sorted(epoch) == list(range(10, 30))


def test_augmentation_shifts_and_mirrors_nothing_else():
    x = jnp.ones((64, 8, 8, 1))
    seen = np.asarray(crop_and_flip(jax.random.key(0), x))
    assert set(np.unique(seen)) == {0.0, 1.0}
    assert seen.sum(axis=(1, 2, 3)).min() >= 16 and len(np.unique(seen.sum(axis=(1, 2, 3)))) > 3


def test_files_are_written_whole(tmp_path, monkeypatch):
    write_whole(tmp_path / "out" / "a.txt", b"one")
    monkeypatch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "out" / "a.txt", b"two")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.txt"]
    assert (tmp_path / "out" / "a.txt").read_text() == "one"


def test_json_holds_numpy_and_refuses_nan():
    assert json.loads(to_json({"a": np.float32(0.5), "b": np.arange(2)})) == {"a": 0.5, "b": [0, 1]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"a": float("nan")})


def test_environment_says_where_a_number_comes_from():
    facts = environment()
    assert facts["versions"]["jax"] and facts["device"]["host_cores"] >= 1 and facts["command"]


def test_a_report_escapes_what_it_is_given():
    table = report.Table(["<set>", "UA"], [["<script>alert(1)</script>", "1"]])
    page = report.page(
        "<b>", "found <i>", "a & b", [("<i>", table.html()), ("x", report.listing("<pre>"))]
    )
    assert "<script>" not in page and "&lt;script&gt;" in page and "a &amp; b" in page
    figure = report.figure(b"png", '"><script>')
    assert "<script>" not in figure


def test_pictures_are_png():
    images = np.zeros((3, 4, 4, 3))
    for png in (
        plots.image_grid(images, ["a", "b", "c"]),
        plots.grouped_bars(["a", "b"], {"g": np.ones(2)}, "y"),
        plots.curves({"one": np.ones(3)}, "x", "y", log_y=True),
    ):
        assert png.startswith(b"\x89PNG")
