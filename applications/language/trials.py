"""One seed of the table: its models, the choice of each method's settings, and its rows."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ..components.frame import named_key
from ..components.work import Run
from . import judging
from .judging import Known
from .learning import Params, Task
from .relearning import relearning
from .worlds import World
from .zoo import Entry, Method, Size, unlearn

REFERENCES = "none", "Retrain", "Retrain 2"
NUMBERS = "KL forget", "KL retain", "share"


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """A world of one seed and the models that all methods share.

    Attributes:
        world: the texts and the network.
        seed: of all of it.
        original: the parameters of the model that knows it all.
        retrained: of two retrained models that differ in their seed.
        page: where pieces are kept.
        seconds: of each training, compiling included: of the three, the first compiles.
    """

    world: World
    seed: int
    original: Params
    retrained: tuple[Params, Params]
    page: Run
    seconds: Mapping[str, float]

    @classmethod
    def of(cls, make: Callable[[jax.Array], World], seed: int, page: Run, place: str) -> "Bench":
        """Train the three models, or read them back."""
        key = jax.random.key(seed)
        world = make(named_key(key, "world"))
        found, spent = [], dict[str, float]()
        for row, name in zip(REFERENCES, ("original", "Retrain", "Retrain 2"), strict=True):
            page.tick(f"{place}: training {name}")
            train = world.original if name == "original" else world.retrained
            fresh = functools.partial(_timed, train, named_key(key, name), row, spent)
            found.append(page.tree(f"{place}/{name}", fresh))
        seconds = numbered(page.keep(f"{place}/seconds", lambda: spent))
        return cls(world, seed, found[0], (found[1], found[2]), page, seconds)

    @functools.cached_property
    def known(self) -> Known:
        """What models are compared with."""
        return Known.of(self.world, self.original, self.retrained[0])

    @functools.cached_property
    def choosing(self) -> "Bench":
        """The same with the questions and texts that settings are chosen by."""
        return dataclasses.replace(self, world=self.world.half(0))

    @functools.cached_property
    def reporting(self) -> "Bench":
        """The same with those that are reported."""
        return dataclasses.replace(self, world=self.world.half(1))

    @functools.cached_property
    def task(self) -> Task:
        """What methods are given."""
        return self.world.task(self.original)

    def key(self, *names: str) -> jax.Array:
        """The key of a part."""
        return named_key(jax.random.key(self.seed), *names)

    def unlearned(self, method: Method, name: str) -> Params:
        """Run a method; the key is that of its name, the same for all of its settings."""
        return unlearn(method, self.task, self.key("methods", name))

    def at_equal_utility(self, method: Method, name: str) -> tuple[Params, float]:
        """The unlearned model, brought back to the utility that all rows share."""
        params = self.unlearned(method, name)
        return judging.stepped_back(self.world, self.known, self.original, params)


def _timed(
    train: Callable[[jax.Array], Params], key: jax.Array, name: str, spent: dict[str, float]
) -> Params:
    """A trained model, its seconds noted."""
    before = time.perf_counter()
    params = jax.block_until_ready(train(key))
    spent[name] = time.perf_counter() - before
    return params


def tries(entry: Entry, size: Size, rates: tuple[float, ...]) -> dict[str, Method]:
    """The methods of an entry's grid, by their numbers."""
    return {
        f"{rate * entry.pace:g} {strength:g}": entry.make(size, rate * entry.pace, strength)
        for rate in rates
        for strength in entry.strengths
    }


def tried(bench: Bench, name: str, grid: Mapping[str, Method]) -> list[dict[str, Any]]:
    """What each try gives, on texts and questions that the table does not ask."""
    own = bench.choosing
    rows = []
    for numbers, method in grid.items():

        def run(method: Method = method) -> dict[str, float]:
            params = own.unlearned(method, name)
            raw = judging.divergences(own.world, own.known, params)
            kept = judging.kept_probability(own.world, params) / own.known.kept
            mended, share = judging.stepped_back(own.world, own.known, own.original, params)
            equal = judging.divergences(own.world, own.known, mended)
            return {"raw KL forget": raw["KL forget"], "raw kept": kept, "share": share} | equal

        found = bench.page.keep(f"seed{bench.seed}/tuning/{name}/{numbers}", run)
        rows.append({"method": name, "numbers": numbers} | numbered(found))
    return rows


def best(rows: list[dict[str, Any]]) -> str:
    """The numbers of the try that comes nearest to Retrain at equal utility."""
    finite = [row for row in rows if np.isfinite(row["KL forget"])]
    return str(min(finite or rows, key=lambda row: row["KL forget"])["numbers"])


def row(bench: Bench, name: str, make: Callable[[], Params], passes: int) -> dict[str, Any]:
    """Every metric of a method on the questions of the table, after stepping back.

    Args:
        bench: of the seed.
        name: of the method.
        make: its model.
        passes: gradients, or their like, that it takes.
    """
    own = bench.reporting

    def judged() -> dict[str, Any]:
        before = time.perf_counter()
        params = jax.block_until_ready(make())
        seconds, share = time.perf_counter() - before, 1.0
        if name not in REFERENCES:
            params, share = judging.stepped_back(own.world, own.known, own.original, params)
        scores: dict[str, Any] = judging.judge(own.world, own.known, params)
        attacks = {"relearned": own.world.attack, "finetuned": own.world.benign}
        for kind, texts in attacks.items():
            key = own.key("attack", kind)
            scores[kind] = relearning(own.world, params, key, texts)
        return scores | {"share": share, "seconds": seconds}

    found = bench.page.keep(f"seed{bench.seed}/rows/{name}", judged)
    return {"seed": bench.seed, "method": name, "passes": passes} | numbered(found)


def numbered(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays as they are, single ones as numbers."""
    return {name: a.tolist() if a.ndim else float(a) for name, a in found.items()}


def references(bench: Bench) -> list[dict[str, Any]]:
    """The rows of the original model and of the two retrained ones."""
    models = dict(zip(REFERENCES, (bench.original, *bench.retrained), strict=True))
    rows = [row(bench, name, functools.partial(models.get, name), 0) for name in models]
    return [own | {"seconds": bench.seconds[own["method"]]} for own in rows]
