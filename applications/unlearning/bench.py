"""One seed of a page: what it works on, its keys, and where its finished pieces are kept."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ..components import scores
from ..components.errors import NonFiniteError
from ..components.files import Arrays, recompute
from ..components.frame import named_key
from ..components.points import Points
from .methods import Task


class Scratch:
    """In place of a `work.Run`: keeps nothing and shows nothing."""

    keep = staticmethod(recompute)

    @staticmethod
    def tree(name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives."""
        del name
        return make()

    @staticmethod
    def tick(doing: str) -> None:
        """Nothing."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """One seed at work.

    Attributes:
        page: a `work.Run`, which keeps what is finished, or `Scratch`.
        task: how to train and unlearn, the points and the original model.
        judged: points that nothing is trained on, for TA and MIA.
        seed: of everything.
        place: of its pieces in the page's folder.
    """

    page: Any
    task: Task
    judged: Points
    seed: int
    place: str

    @classmethod
    def of(cls, page: Any, task: Task, judged: Points, seed: int, below: str = "") -> "Bench":
        """With the original model of this seed, trained or read back; in a folder `below` it.

        Raises:
            NonFiniteError: its training diverged.
        """
        bench = cls(page, task, judged, seed, f"seed{seed}" + below)
        bench.tick("training the original model")
        train = functools.partial(task.fit, task.every, bench.key("original"))
        task = task.replace(original=page.tree(f"{bench.place}/original", train))
        if not np.isfinite(scores.loss(task.model, task.original, task.points)).all():
            raise NonFiniteError(
                "The original model diverged in training: its losses are not finite. Lower"
                f" `learning_rate`, which is {task.recipe.learning_rate}."
            )
        return dataclasses.replace(bench, task=task)

    def key(self, *names: str) -> jax.Array:
        """The key of a part, by its names from the outside in."""
        return named_key(jax.random.key(self.seed), *names)

    def keep(self, name: str, make: Callable[[], Mapping[str, Any]]) -> Arrays:
        """A piece of this seed: see `work.Run.keep`."""
        return self.page.keep(f"{self.place}/{name}", make)

    def tree(self, name: str, make: Callable[[], Any]) -> Any:
        """The same for a pytree: see `work.Run.tree`."""
        return self.page.tree(f"{self.place}/{name}", make)

    def tick(self, doing: str) -> None:
        """Say what comes next."""
        self.page.tick(f"{self.place}: {doing}")

    def at(self, place: str, task: Task | None = None) -> "Bench":
        """The same seed in a folder below its own, with another task if one is given."""
        task = self.task if task is None else task
        return dataclasses.replace(self, place=f"{self.place}/{place}", task=task)
