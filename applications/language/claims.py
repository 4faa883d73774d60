"""Claims of the field, each tried here: rows for one table and the sentence that goes with it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ..components.errors import InputError
from ..components.publishing import Row, grouped
from . import judging
from .attribution import Attribution, Score
from .balancing import Weighted
from .coresets import BilevelPart, FirstPart, RandomPart
from .markov import Markov
from .objectives import NPO, GradDiff, SimNPO
from .trials import Bench, numbered
from .zoo import BETA, Method, Size

SHARES = 0.05, 0.2, 0.5, 0.8, 0.95, 1.0
GAMMAS = 1e-6, 1e-3, 1.0, float("inf")
SCORES: tuple[Score, ...] = (
    "random", "weight", "gradient", "snip", "product", "wagle", "wagle_cg", "wagle_ekfac",
)  # fmt: skip
NEEDS_LAYERS = "wagle_ekfac"
DAMPED = 0.1  # gamma where the curvature is solved with: it is indefinite
PARTS = {
    **{f"random {share:g}": RandomPart(share) for share in (0.01, 0.05, 0.1, 0.25, 1.0)},
    "bi-level 0.05": BilevelPart(0.05),
    "first authors only": FirstPart(0.5),
}
BETAS = 0.3, 1.0, 2.5, 4.5, 8.0
SWEPT = "log10 FQ", "KL forget", "p forget", "p retain", "utility"
DRAWS = 3  # random parts of each share and seed


class Claim(NamedTuple):
    """A claim and its trial.

    Attributes:
        says: the claim, in words.
        names: of the rows' entries that tell settings apart.
        numbers: of the entries to show.
        run: `(bench, size, rates, alone) -> rows` of one seed; `alone` is a bench maker, for worlds
            of its own.
    """

    says: str
    names: tuple[str, ...]
    numbers: tuple[str, ...]
    run: Callable[..., list[Row]]


EQUAL = "KL forget1", "KL forget2", "KL forget", "share"


def equal(bench: Bench, place: str, method: Method, name: str) -> Row:
    """Divergences of a method from Retrain at equal utility, kept as a piece."""
    own = bench.reporting

    def run() -> dict[str, float]:
        params, share = own.at_equal_utility(method, name)
        return judging.divergences(own.world, own.known, params) | {"share": share}

    return numbered(bench.page.keep(f"seed{bench.seed}/claims/{place}", run))


def short_answers(
    bench: Bench, size: Size, rates: Sequence[float], alone: Callable[..., Bench]
) -> list[Row]:
    """NPO and SimNPO where one group's answers are short, and where none's are."""
    rows = []
    for short in (5, 20):
        own = alone(Markov(short=short).world, f"seed{bench.seed}/claims/short {short}")
        for name, objective in (("NPO", NPO), ("SimNPO", SimNPO)):
            for beta in BETAS:
                for rate in rates:
                    method = size.unlearn(rate, objective=objective(beta))
                    place = f"short answers/{short} {name} {beta:g} {rate:g}"
                    found = equal(own, place, method, name)
                    settings = {"walk": short, "method": name, "numbers": f"{rate:g} {beta:g}"}
                    rows.append({"seed": bench.seed} | settings | found)
    return rows


def keep_ratios(
    bench: Bench, size: Size, rates: Sequence[float], alone: Callable[..., Bench]
) -> list[Row]:
    """Scores of weights against the share of the weights that may move."""
    del alone
    rate, rows = sorted(rates)[len(rates) // 2], []
    shows_layers = hasattr(bench.world.model, "tapped")
    scores = [score for score in SCORES if score != NEEDS_LAYERS or shows_layers]
    kinds = [(score, DAMPED if "_" in score else GAMMAS[0]) for score in scores]
    kinds += [("wagle", gamma) for gamma in GAMMAS[1:]]
    for score, gamma in kinds:
        for share in SHARES:
            mask = Attribution(score, share, gamma)
            method = size.unlearn(rate, objective=NPO(BETA), attribution=mask)
            label = f"{score}, gamma {gamma:g}" if score.startswith("wagle") else score
            found = equal(bench, f"keep ratios/{label} {share:g}", method, "keep ratios")
            rows.append({"seed": bench.seed, "score": label, "moves": f"{share:g}"} | found)
    return rows


def coresets(
    bench: Bench, size: Size, rates: Sequence[float], alone: Callable[..., Bench]
) -> list[Row]:
    """Parts of the texts to forget, at equal steps."""
    del alone
    rate, rows = sorted(rates)[len(rates) // 2], []
    for label, part in PARTS.items():
        several = isinstance(part, RandomPart) and part.share != 1
        for draw in range(DRAWS if several else 1):
            method = size.unlearn(rate, objective=NPO(BETA), part=part)
            found = equal(bench, f"coresets/{label} {draw}", method, f"coresets {draw}")
            rows.append({"seed": bench.seed, "part": label} | found)
    return rows


def rates_alone(
    bench: Bench, size: Size, rates: Sequence[float], alone: Callable[..., Bench]
) -> list[Row]:
    """What the rate alone does to forget quality, with nothing brought back to equal utility."""
    del alone
    own = bench.reporting
    methods: dict[str, Any] = {
        "GradDiff": dict(objective=GradDiff(), balance=Weighted(3.0)),
        "NPO": dict(objective=NPO(BETA)),
        "SimNPO": dict(objective=SimNPO(2.5)),
    }
    swept = [factor * rates[0] for factor in (0.1, 0.3, 1, 3, 10, 30)]
    rows = []
    for name, settings in methods.items():
        for rate in swept:
            method = size.unlearn(rate, **settings)
            place = f"seed{bench.seed}/claims/rates/{name} {rate:g}"
            run = functools.partial(_raw, own, method, name)
            found = numbered(bench.page.keep(place, run))
            rows.append({"seed": bench.seed, "method": name, "rate": rate} | found)
    return rows


def _raw(bench: Bench, method: Method, name: str) -> Row:
    """Some metrics of a method as it is."""
    scores = judging.judge(bench.world, bench.known, bench.unlearned(method, name))
    return {column: scores[column] for column in SWEPT}


CLAIMS = {
    "short_answers": Claim(
        "SimNPO forgets short answers where NPO does not (each at its best of 5 betas x the rates)",
        ("walk", "method"),
        EQUAL,
        short_answers,
    ),
    "keep_ratios": Claim(
        "WAGLE's choice of weights forgets better than other scores, at its keep ratios and below",
        ("score", "moves"),
        ("KL forget", "share"),
        keep_ratios,
    ),
    "coresets": Claim(
        "a random 5 % of the texts to forget does as well as all of them, at equal steps",
        ("part",),
        EQUAL,
        coresets,
    ),
    "rates": Claim(
        "a rate alone can buy forget quality",
        ("method", "rate"),
        SWEPT,
        rates_alone,
    ),
}


def check(names: Sequence[str], data: str) -> None:
    """Raise an InputError where a claim is unknown or needs another bench."""
    for name in names:
        if name not in CLAIMS:
            raise InputError(f"`claims` must be of {', '.join(CLAIMS)}, got {name!r}.")
    if "short_answers" in names and data != "markov":
        raise InputError(
            "`claims` short_answers needs walks of two lengths: leave it out, or use markov."
        )


def best_tuned(rows: Sequence[Row]) -> list[Row]:
    """Of rows with `numbers`, those of each method's best, by the mean over the seeds."""
    kept: list[Row] = []
    for own in grouped(rows, "walk", "method").values():
        tries = grouped(own, "numbers").values()
        kept += min(tries, key=lambda rows: np.mean([row["KL forget"] for row in rows]))
    return kept


def worlds_alone(bench: Bench) -> Callable[[Callable[[jax.Array], Any], str], Bench]:
    """Benches of other worlds, with the seed and the page of this one."""
    return lambda make, place: Bench.of(make, bench.seed, bench.page, place)
