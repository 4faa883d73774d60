"""Unlearning methods for language models against closed forms, on models small enough for them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from applications.components.errors import InputError
from applications.language import zoo
from applications.language.attribution import Attribution
from applications.language.balancing import BLUR, PrimalDual, Weighted
from applications.language.coresets import BilevelPart, FirstPart, RandomPart
from applications.language.curvature import KFADE
from applications.language.gpt import GPT
from applications.language.judging import decode
from applications.language.learning import Task, mean_loss, sums
from applications.language.objectives import NPO, RMU, GradDiff, Refusal, SimNPO
from applications.language.smoothing import SAM, AttackerAware, GradientPenalty, RandomSmoothing
from applications.language.texts import Texts
from applications.language.unlearner import Unlearn, soul

pytestmark = pytest.mark.slow  # many programs to compile

KEY = jax.random.key(0)
NUM_TOKENS, LENGTH = 7, 6


class Table:
    """A bigram model: convex, and small enough for exact second derivatives."""

    def logits(self, params, ids):
        return params[ids]


MODEL = Table()


def texts(seed, count, start=2):
    ids = jax.random.randint(jax.random.key(seed), (count, LENGTH), 0, NUM_TOKENS)
    return Texts(ids, jnp.broadcast_to((jnp.arange(LENGTH) >= start) * 1.0, ids.shape))


def make_task(model, params):
    forget = texts(1, 6)
    refusals = Texts(jnp.where(forget.weights > 0, 0, forget.ids), forget.weights)
    return Task(model, params, forget, texts(2, 10), refusals)


@pytest.fixture
def task():
    return make_task(MODEL, jax.random.normal(KEY, (NUM_TOKENS, NUM_TOKENS), float))


@pytest.fixture(scope="module")
def small():
    """A network of two blocks, with its task."""
    model = GPT(NUM_TOKENS, LENGTH, width=8, num_layers=2, num_heads=2)
    return make_task(model, jax.tree.map(lambda a: 5 * a, model.init(KEY)))


def test_the_network_is_causal_and_decodes_as_it_predicts(small):
    model, asked = small.model, small.forget
    other = asked.ids.at[:, 4:].set(0)
    first, second = (model.logits(small.original, ids) for ids in (asked.ids, other))
    np.testing.assert_allclose(first[:, :4], second[:, :4], rtol=1e-5, atol=1e-6)

    class Plain:
        logits = staticmethod(model.logits)

    said = decode(model, small.original, asked)
    np.testing.assert_array_equal(said, decode(Plain(), small.original, asked))
    np.testing.assert_array_equal(said[:, :2], asked.ids[:, :2])


ROWS = jnp.arange(6)


def test_npo_is_ascent_as_beta_falls_and_stops_as_answers_go(x64):
    task = make_task(MODEL, jax.random.normal(KEY, (NUM_TOKENS, NUM_TOKENS), float))
    npo, moved = NPO(1e-4), 1.01 * task.original
    prepared = npo.prepare(task, KEY)
    gained = sums(MODEL, moved, task.forget) - prepared
    np.testing.assert_allclose(
        npo(task, prepared, moved, ROWS), 2 / 1e-4 * np.log(2) - gained.mean(), rtol=1e-6
    )
    beta = 0.7
    slope = jax.grad(lambda p: NPO(beta)(task, prepared, p, ROWS))(moved)
    weights = -2 * jax.nn.sigmoid(-beta * gained) / len(ROWS)
    _, pullback = jax.vjp(lambda p: sums(MODEL, p, task.forget), moved)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), slope, *pullback(weights)
    )


def test_simnpo_reads_means_and_no_reference(task):
    own = SimNPO(2.0, 0.5)
    mean = sums(MODEL, task.original, task.forget) / 4
    expected = jnp.mean(-jax.nn.log_sigmoid(2 * mean - 0.5))
    np.testing.assert_allclose(own(task, (), task.original, ROWS), expected, rtol=1e-5)


def test_the_other_objectives_at_the_original(task):
    loss = lambda texts: mean_loss(MODEL, task.original, texts)
    np.testing.assert_allclose(GradDiff()(task, (), task.original, ROWS), -loss(task.forget))
    np.testing.assert_allclose(Refusal()(task, (), task.original, ROWS), loss(task.refusals))


def test_rmu_steers_activations(small):
    rmu, original = RMU(2.0), small.original
    prepared = rmu.prepare(small, KEY)
    np.testing.assert_allclose(rmu.retain(small, prepared, original, ROWS), 0.0)
    hidden = small.model.hidden(original, small.forget.ids, 1)
    gap = jnp.mean((hidden - 2 * prepared.reshape(1, 1, -1)) ** 2, axis=-1)[:, 2:]
    np.testing.assert_allclose(rmu(small, prepared, original, ROWS), gap.mean(), rtol=1e-5)


MATRIX = jnp.array([[2.0, 0.3], [0.3, 1.0]])
POINT = jnp.array([1.0, -2.0])
TARGET = jnp.array([0.5, 0.5])


def bowl(point):
    return point @ MATRIX @ point / 2


def hill(point):
    return -jnp.sum((point - TARGET) ** 2) / 2


def test_smoothings_of_a_quadratic():
    slope, unit = MATRIX @ POINT, MATRIX @ POINT / jnp.linalg.norm(MATRIX @ POINT)
    sam = SAM(0.3)(bowl, bowl, POINT, KEY)
    np.testing.assert_allclose(sam, MATRIX @ (POINT + 0.3 * unit), rtol=1e-5)
    penalised = GradientPenalty(0.4)(bowl, bowl, POINT, KEY)
    np.testing.assert_allclose(penalised, slope + 0.4 * MATRIX @ unit, rtol=1e-5)
    norm = lambda p: bowl(p) + 0.4 * jnp.linalg.norm(jax.grad(bowl)(p))
    np.testing.assert_allclose(penalised, jax.grad(norm)(POINT), rtol=1e-5)
    keys = jax.random.split(KEY, 3)
    noise = jnp.stack([optax.tree.random_like(key, POINT) for key in keys])
    smooth = RandomSmoothing(0.2)(bowl, bowl, POINT, KEY)
    np.testing.assert_allclose(smooth, MATRIX @ (POINT + 0.2 * noise.mean(0)), rtol=1e-5)


@pytest.mark.parametrize("rule", ["unrolled", "implicit", "one_step"])
def test_the_attacker_of_a_quadratic(rule, x64):
    """R(theta + d) + c / 2 |d|^2 with R a bowl: every rule has a closed form."""
    point, pull, rate, steps = POINT.astype(float), 0.5, 0.2, 300 if rule == "implicit" else 3
    matrix, eye = np.asarray(MATRIX, float), np.eye(2)
    step = eye - rate * (matrix + pull * eye)
    along = sum(np.linalg.matrix_power(step, i) for i in range(steps)) @ (-rate * matrix)
    slope = {"unrolled": along, "one_step": -rate * matrix}.get(rule)
    if rule == "one_step":  # one more step, the only one that is differentiated
        along = along @ np.eye(2) if steps == 0 else step @ along - rate * matrix
    if rule == "implicit":
        slope = -np.linalg.solve(matrix + pull * eye, matrix)
    expected = (eye + slope).T @ (TARGET - (point + along @ point))
    aware = AttackerAware(rate, steps, pull, rule)
    found = aware(hill, bowl, point, KEY)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_balances():
    forget, retain = jnp.array([2.0, 0.0]), jnp.array([3.0, 1.0])
    kept = jnp.array(1.0)
    same, _ = Weighted(0.5)(forget, retain, kept, kept)
    np.testing.assert_allclose(same, [3.5, 0.5])
    blurred, _ = BLUR(0.7)(forget, retain, kept, kept)
    np.testing.assert_allclose(blurred, [0.7 * 2, 1.0])
    alone, _ = BLUR(0.7)(0 * forget, retain, kept, kept)
    np.testing.assert_array_equal(alone, retain)
    dual = PrimalDual(slack=0.5, step_size=2.0)
    state = dual.start(kept)
    np.testing.assert_allclose(state, [1.0, 1.5])
    found, state = dual(forget, retain, jnp.array(1.75), state)
    np.testing.assert_allclose(found, forget + retain)
    np.testing.assert_allclose(state, [1.5, 1.5])
    _, state = dual(forget, retain, jnp.array(0.0), state)
    np.testing.assert_allclose(state, [0.0, 1.5])


def test_soul_clips_where_curvature_is_small():
    optimizer, grads = soul(0.1, bound=10.0), jnp.array([2.0, -0.01, 0.0])
    updates, state = optimizer.update(grads, optimizer.init(grads))
    ratio = 0.1 * 2.0 / (10 * 0.05 * 4.0)
    np.testing.assert_allclose(updates, [-0.1 * ratio, 0.1, 0.0], rtol=1e-5)
    updates, _ = optimizer.update(grads, state)
    ratio = 0.19 * 2.0 / (10 * (1 - 0.95**2) * 4.0)
    np.testing.assert_allclose(updates[0], -0.1 * ratio, rtol=1e-5)


@pytest.fixture
def bigrams(x64):
    """As many texts to keep as to forget, so that attribution looks at all of them."""
    task = make_task(MODEL, jax.random.normal(KEY, (NUM_TOKENS, NUM_TOKENS), float))
    return dataclasses.replace(task, retain=texts(2, 6))


def test_wagle_is_the_implicit_gradient_of_the_mask(bigrams):
    gamma = 0.3
    forget, retain = Attribution().slopes(bigrams, KEY)
    centre = bigrams.original + retain / gamma  # makes the original optimal for mask 1

    def lower(mask, inner, data):
        near = gamma / 2 * jnp.sum((inner - centre) ** 2)
        return mean_loss(Table(), mask * inner, bigrams.retain) + near

    def upper(mask):
        solver = bilevel.linear.CG(max_steps=200, tolerance=1e-12)
        inner = bilevel.implicit_gradient(lower, mask, bigrams.original, (), solver)
        return mean_loss(Table(), mask * inner, bigrams.forget)

    exact = jnp.abs(jax.grad(upper)(jnp.ones_like(bigrams.original)))
    found = Attribution("wagle_cg", gamma=gamma).scores(bigrams, KEY)
    scale = 1 + gamma  # the scores' own, which no order sees
    np.testing.assert_allclose(found * scale, exact, rtol=2e-3, atol=5e-5)


def test_wagle_between_a_product_and_snip(bigrams):
    score = lambda name, gamma=1.0: Attribution(name, gamma=gamma).scores(bigrams, KEY)
    forget, retain = Attribution().slopes(bigrams, KEY)
    np.testing.assert_allclose(score("wagle", float("inf")), score("snip"))
    np.testing.assert_allclose(score("wagle", 1e-9), score("product"), rtol=1e-5)
    released = jnp.abs((bigrams.original - retain / 0.3) * forget)
    np.testing.assert_allclose(score("wagle", 0.3) * 1.3 / 0.3, released, rtol=1e-6)
    np.testing.assert_allclose(score("gradient"), jnp.abs(forget))
    np.testing.assert_allclose(score("weight"), jnp.abs(bigrams.original))


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_weights_that_may_not_move_are_the_same_bit_for_bit(task, share):
    mask = Attribution("wagle", share)
    method = Unlearn(attribution=mask, num_steps=3, batch_size=4, rate=0.1)
    found = zoo.unlearn(method, task, KEY)
    moved = jnp.concatenate(
        [
            jnp.ravel(a != b)
            for a, b in zip(*map(jax.tree.leaves, (found, task.original)), strict=True)
        ]
    )
    assert 0 < moved.sum() <= round(share * moved.size)
    free = jax.tree.leaves(mask.mask(task, jax.random.split(KEY)[0]))
    assert sum(int(a.sum()) for a in free) == round(share * moved.size)


def test_parts_of_the_texts_to_forget(task):
    order, count = RandomPart(0.5).order(task, KEY)
    assert count == 3 and sorted(order.tolist()) == list(range(6))
    order, count = FirstPart(0.01).order(task, KEY)
    assert count == 1 and order.tolist() == list(range(6))
    # A text that is also kept is the worst one to forget.
    both = task.forget.at(jnp.array([0, 1, 2])), task.retain.at(jnp.array([0, 0, 0]))
    mixed = Texts(*(jnp.concatenate(parts) for parts in zip(*both, strict=True)))
    kept = task.retain.at(jnp.zeros(10, int))
    own = Task(MODEL, task.original, mixed, kept, mixed)
    part = BilevelPart(0.5, pool=6)
    weights = part.weigh(own, jnp.arange(6), KEY)
    assert weights[:3].min() > weights[3:].max()
    order, count = jax.jit(part.order)(own, KEY)
    assert count == 3 and set(order[:3].tolist()) == {0, 1, 2}


def test_uphill_in_the_metric_of_what_is_kept(small):
    loss = lambda params, texts: mean_loss(small.model, params, texts)
    gain = lambda params, texts: loss(params, texts) - loss(small.original, texts)
    found = zoo.unlearn(KFADE(0.1, 0.1, num_steps=4, batch_size=6), small, KEY)
    assert gain(found, small.forget) > 0.02
    assert gain(found, small.forget) > 2 * gain(found, small.retain)


def test_a_step_costs_what_its_length_says(small):
    rate, kept = 0.01, small.retain
    flat = make_task(small.model, jax.tree.map(lambda a: 0.1 * a, small.original))
    found = zoo.unlearn(KFADE(rate, 1.0, num_steps=1, batch_size=60), flat, KEY)
    before, after = (
        jax.nn.log_softmax(small.model.logits(params, kept.ids[:, :-1]))
        for params in (flat.original, found)
    )
    apart = jnp.sum(jnp.exp(before) * (before - after), axis=-1)
    nats = jnp.sum(apart * kept.weights[:, 1:]) / jnp.sum(kept.weights[:, 1:])
    assert 0.1 < nats / (rate**2 / 2) < 10  # factors of ten sampled answers are rough


def test_a_grid_of_numbers_compiles_once(task):
    size = zoo.Size(num_steps=2, batch_size=2)
    before = zoo.unlearn._cache_size()
    for rate in (1e-3, 1e-2):
        for strength in (0.1, 1.0):
            zoo.unlearn(zoo.ENTRIES["NPO"].make(size, rate, strength), task, KEY)
    assert zoo.unlearn._cache_size() == before + 1


def test_costs_are_matched():
    size = zoo.Size(num_steps=50, batch_size=2)
    sam = zoo.ENTRIES["NPO+SAM"].make(size, 0.1, 0.1)
    for rule in ("unrolled", "implicit", "one step"):
        attacker = zoo.ENTRIES[f"attacker, {rule}"].make(size, 0.1, 0.1)
        assert abs(attacker.num_steps * attacker.passes - 50 * sam.passes) <= attacker.passes


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (functools.partial(NPO, 0.0), "`beta`"),
        (functools.partial(SimNPO, -1.0), "`beta`"),
        (functools.partial(RMU, 0.0), "`coefficient`"),
        (functools.partial(Attribution, share=0.0), "`share`"),
        (functools.partial(RandomPart, 1.5), "`share`"),
        (functools.partial(FirstPart, 0.0), "`share`"),
        (functools.partial(BilevelPart, 0.0), "`share`"),
        (functools.partial(Unlearn, rate=0.0), "`rate`"),
        (functools.partial(Unlearn, num_steps=0), "`num_steps`"),
        (functools.partial(GPT, 0, 3), "`num_tokens`"),
        (functools.partial(zoo.find, ("NOP",)), "`methods` must be of GradDiff, "),
    ],
)
def test_settings_out_of_range(make, match):
    with pytest.raises(InputError, match=match):
        make()


@pytest.mark.parametrize("method", [Unlearn(objective=RMU()), KFADE()])
def test_methods_that_a_model_cannot_serve(bigrams, method):
    with pytest.raises(InputError, match="needs? a model with"):
        method(bigrams, KEY)
