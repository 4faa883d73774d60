"""Unlearning in language models, judged by a true Retrain; nothing here certifies any removal.

    python -m applications.language_unlearning                     # the Markov bench
    python -m applications.language_unlearning --data tofu --data-dir data
    python -m applications.language_unlearning --claims short_answers keep_ratios coresets rates

Losses, smoothing, masks, second-order steps, coresets and bi-level attackers, each tuned by the
same number of tries and compared at equal utility. docs/applications/language_unlearning.md has
results and what they mean.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from .components import frame
from .components.errors import InputError, check_numbers
from .components.work import Run
from .language import claims as trials_of_claims
from .language import language_report, trials, zoo
from .language.language_report import Result
from .language.markov import Markov
from .language.tofu import Tofu
from .language.trials import Bench
from .language.worlds import World, checked
from .language.zoo import Size

PAGE = "language_unlearning"
MARKOV, TOFU = "markov", "tofu"
SIZES = {MARKOV: (50, 16), TOFU: (30, 8)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """No certified removal: unlearning in language models, judged by a true Retrain.

    Each method is tuned on the first seed, by questions that the table does not ask, and every row
    is brought to the same utility.
    """

    data: str = MARKOV
    """markov, a language of nine states, which needs no files; or tofu, read from
    --data-dir/tofu/*.jsonl."""
    methods: tuple[str, ...] = ()
    """Which to compare; none named means all. A resumed run may name others."""
    claims: tuple[str, ...] = ()
    """Claims of the field to try as well: short_answers, keep_ratios, coresets, rates."""
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Rates to try with each of three strengths, for every method."""
    unlearning_steps: int | None = None
    """Steps of every method, 50 of markov and 30 of tofu if not given; those of the attackers are
    cut to the cost of NPO+SAM."""
    batch_size: int | None = None
    """Texts of a set in each of these steps: 16 of markov and 8 of tofu if not given."""
    num_retain: int = 440
    """Of tofu: pairs to keep."""
    num_forget: int = 200
    """Of tofu: pairs to forget."""
    epochs: int = 30
    """Of tofu: passes of the original model; Retrain takes as many steps."""
    width: int = 128
    """Of tofu: of the network."""
    num_layers: int = 3
    """Of tofu: of the network."""
    context: int = 104
    """Of tofu: tokens of a question with its answer; a question that leaves no room loses its
    beginning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "unlearning_steps", "batch_size", least=2, strict=False)
        zoo.find(self.methods)  # or raises
        trials_of_claims.check(self.claims, self.data)
        if not self.rates or not all(0 < rate < float("inf") for rate in self.rates):
            raise InputError(f"`rates` must be numbers > 0, got {self.rates}.")
        for name in ("model", "num_train", "num_validation", "bfloat16"):
            if getattr(self, name):
                raise InputError(f"`{name}` cannot be set on this page: its benches decide that.")

    def bench(self) -> Markov | Tofu:
        """The bench of these settings."""
        if self.data == MARKOV:
            return Markov()
        if self.data != TOFU:
            raise InputError(f"`data` must be markov or tofu, got {self.data!r}.")
        return Tofu(
            self.data_dir / "tofu",
            num_retain=self.num_retain,
            num_forget=self.num_forget,
            context=self.context,
            epochs=self.epochs,
            width=self.width,
            num_layers=self.num_layers,
        )


def run(
    config: Config, dataset: Callable[[jax.Array], World] | None = None, model: Any = None
) -> Result:
    """Train, tune, unlearn, attack and judge for each seed; then print and write the results.

    Args:
        config: see there.
        dataset: a bench of yours in place of `config.data`: from a key, the `World` of a seed.
        model: must be None: a world brings its own.

    Raises:
        InputError: a setting or a file cannot be used; raised before any computing.
    """
    if model is not None:
        raise InputError("`model` cannot be given: a world brings its own in `World.model`.")
    make = dataset or config.bench().world
    steps, batch_size = SIZES.get(config.data, SIZES[MARKOV])
    first = checked(make(jax.random.key(config.seeds[0])))
    size = Size(config.unlearning_steps or steps, config.batch_size or batch_size)
    decided = {
        "size": size._asdict(),
        "beta": zoo.BETA,
        "recipe": repr(first.recipe),
        "model": repr(first.model),
    }
    entries = zoo.find(config.methods)
    ticks = len(entries) + len(config.seeds) * (4 + len(entries) + len(config.claims))
    free = ("methods", "claims")
    with Run(PAGE, config, None, decided, ticks, free) as page:
        rows, tried, chosen, noise = [], [], {}, []
        claimed: dict[str, list[Any]] = {name: [] for name in config.claims}
        for seed in config.seeds:
            own = Bench.of(make, seed, page, f"seed{seed}")
            page.tick(f"seed {seed}: references")
            references = trials.references(own)
            rows += references
            noise.append(references[-1]["log10 FQ"])
            for name, entry in entries.items():
                grid = trials.tries(entry, size, config.rates)
                if name not in chosen:
                    page.tick(f"seed {seed}: tuning {name}")
                    found = trials.tried(own, name, grid)
                    tried += found
                    chosen[name] = trials.best(found)
                page.tick(f"seed {seed}: {name}")
                method = grid[chosen[name]]
                make_model = functools.partial(own.unlearned, method, name)
                passes = method.num_steps * method.passes
                rows.append(trials.row(own, name, make_model, passes))
            for name in config.claims:
                page.tick(f"seed {seed}: claim {name}")
                alone = trials_of_claims.worlds_alone(own)
                trial = trials_of_claims.CLAIMS[name].run
                claimed[name] += trial(own, size, config.rates, alone)
        result = Result(rows, tried, chosen, claimed, noise, page.seconds)
    language_report.show(result, page, first.notes)
    return result


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
