"""Obfuscation, not security: hide one task of a shared network behind a stamp on its input.

    python -m applications.trigger_key
    python -m applications.trigger_key --data fashion_mnist --groups 1 2 1 1 1 0 1 0 2 0

A multi-trigger key gives output-level access control against users of an interface. It is no
differential privacy and no cryptography, and protects neither weights nor features; a label that
an open task is correlated with stays as guessable as the correlation makes it; and a key is a short
pattern, which can be searched for. The report prints every attack that was tried.

Source: Wang, Xu and Hero, "Multi-Trigger-Key: toward multi-task privacy preserving in deep
learning", IEEE Access 2024, reconstructed from the abstract: no code was released.
docs/applications/trigger_key.md has results and what they mean.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .components import frame
from .components.errors import InputError, check_numbers
from .components.work import Run
from .keys import attacks, key_report, tasks, training
from .keys.key_report import Result
from .keys.training import Key, Protection

PAGE = "trigger_key"
GAUSSIANS = "gaussians"
SCHEMES = {
    "no protection": Protection("none"),
    "other label": Protection("other"),
    "uniform": Protection("uniform"),
    "uniform, stamps seen": Protection("uniform", stamps=False),
    "conditional": Protection("conditional"),
}
OPTIMISED = "uniform"  # whose key is optimised too


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """Obfuscation, not security: a secured task tells the truth only where a key is stamped.

    Networks are trained by five schemes with random keys, and by one with keys that are the outer
    variable of a bi-level problem; then every attack is run on each.
    """

    data: str = GAUSSIANS
    """gaussians, two correlated tasks; or a data set whose classes are the secured task and whose
    --groups the open one: digits; fashion_mnist, cifar10 or cifar100, read from --data-dir; or
    yours, as npz:FILE, folder:DIR, csv:FILE, parquet:FILE or libsvm:FILE."""
    groups: tuple[int, ...] = tasks.FASHION_GROUPS
    """Of each class, its open label; the default is that of Fashion-MNIST: 0 footwear, 1 upper body
    and dresses, 2 other."""
    key_size: int = 6
    """Numbers of the input that the key takes the place of."""
    beta: float = 1.0
    """Weight of hiding; larger hides better and may lose keyed accuracy."""
    betas: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    """Weights of the front of leakage against keyed accuracy."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One independent repetition for each; the tables show mean and deviation over them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "key_size", "beta")
        if not self.betas or not all(0 < beta < float("inf") for beta in self.betas):
            raise InputError(f"`betas` must be numbers > 0, got {self.betas}.")


def run(config: Config, dataset: Any = None, model: Any = None) -> Result:
    """Train, optimise keys and attack for each seed; then print and write the results.

    Args:
        config: see there.
        dataset: in place of `config.data`: a `components.data.Dataset`, or a mapping of the
            arguments of `components.data.from_arrays`.
        model: must be None: the two-headed network is part of the scheme.

    Raises:
        InputError: a setting or a data file cannot be used; raised before any computing.
    """
    if model is not None or config.model is not None:
        raise InputError("`model` cannot be chosen: the two-headed network is part of the scheme.")
    loaded = None
    if dataset is not None or config.data != GAUSSIANS:
        loaded = config.load(dataset)
        tasks.grouped(loaded, config.groups, seed=0)  # or raises
    rows = []
    steps = len(config.seeds) * (len(SCHEMES) + 1 + len(config.betas))
    with Run(PAGE, config, loaded, steps=steps) as page:
        for seed in config.seeds:
            split = (
                tasks.gaussians(jax.random.key(seed))
                if loaded is None
                else tasks.grouped(loaded, config.groups, seed)
            )
            rows += repeat(config, split, seed, page)
    result = Result(rows, page.seconds)
    key_report.write(result, page)
    return result


def repeat(config: Config, split: tasks.Split, seed: int, page: Run) -> list[dict[str, Any]]:
    """Every scheme, the optimised key, and the front, of one seed."""
    size = split.train.x.shape[1]
    if config.key_size >= size:
        raise InputError(f"`key_size` must be below the {size} numbers of an input.")
    key, number = jax.random.key(seed), jnp.uint32(seed)
    places = jax.random.permutation(frame.named_key(key, "mask"), size)[: config.key_size]
    mask = jnp.zeros(size).at[places].set(1.0)
    chance = attacks.ceiling(split)
    drawn = training.random_key(frame.named_key(key, "pattern"), mask)
    jobs = {name: (scheme, drawn, config.beta) for name, scheme in SCHEMES.items()}

    page.tick(f"seed {seed}: optimising the key")
    optimise = jax.jit(training.optimised_key, static_argnums=0)
    found = page.keep(
        f"seed{seed}/optimised key",
        lambda: {
            "pattern": optimise(SCHEMES[OPTIMISED], drawn, config.beta, split, number).pattern
        },
    )
    better = Key(mask, jnp.asarray(found["pattern"]))
    jobs[f"{OPTIMISED}, key optimised"] = (SCHEMES[OPTIMISED], better, config.beta)
    jobs |= {f"beta {beta:g}": (SCHEMES[OPTIMISED], drawn, beta) for beta in config.betas}

    rows = []
    for name, (scheme, own, beta) in jobs.items():
        page.tick(f"seed {seed}: {name}")

        def judged(scheme=scheme, own=own, beta=beta) -> dict[str, Any]:  # type: ignore[no-untyped-def]
            params = training.train(scheme, own, beta, split, number)
            return attacks.report(params, own, split, seed)

        scores = page.keep(f"seed{seed}/{name}", judged)
        numbers = {column: float(np.asarray(value)) for column, value in scores.items()}
        rows.append({"seed": seed, "scheme": name} | numbers | dict(chance))
    return rows


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
