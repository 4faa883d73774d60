"""The settings that the forget-set pages share, and what follows from them before any training."""

import dataclasses
from typing import Any, Literal, NamedTuple

from ..components import frame
from ..components.data import Dataset
from ..components.errors import InputError, check_names, check_numbers, filled
from ..components.points import Points
from . import zoo
from .methods import Task
from .recipes import ForgetSetRecipe, recipe_for
from .selection import num_to_forget
from .zoo import Strengths

LEAKS = (
    "This model has statistics, such as BatchNorm's: they carry traces of every point that the"
    " original model saw, and every method but Retrain starts from them."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """What is to be forgotten, how it is searched, and how models are trained."""

    budget: float = 0.1
    """What to forget: a share of the training points if below 1, a number of points otherwise."""
    methods: tuple[str, ...] = ("FT",)
    """Unlearning methods beside Retrain and the no-op: Retrain-again, FT, GA, NegGrad+, SCRUB, RL,
    SalUn, BS, BE, EU-1, CF-1, l1-sparse, l1-prox, IU, WoodFisher, FF, or yours as
    module.path:Name."""
    strengths: tuple[str, ...] = ()
    """Strengths of methods, such as FT=10 SalUn=0.3, in place of those tuned for the data set."""
    lower: Literal["finetune", "retrain"] | None = None
    """How the search unlearns: finetune, from the original model, is the default; retrain, from
    fresh parameters, costs more."""
    start: Literal["uniform", "random"] | None = None
    """First weights: uniform is the default; a random set stays as it is unless --outer-rate or
    --outer-steps is large."""
    authors: bool = False
    """Search as the authors' released code was run: lower retrain, start random, outer rate 1e4,
    gamma 0. Options beside it replace single ones."""
    fast: bool = False
    """Train in the manner of the DAWNBench records: a ResNet-9, 20 epochs in large batches with
    warm-up, Nesterov's momentum and label smoothing; for images and an accelerator."""
    outer_steps: int | None = None
    """Steps of the search; each costs --lower-epochs of training."""
    outer_rate: float | None = None
    """Step size of the weights: small ranks by the average loss, large follows the latest one."""
    lower_epochs: int | None = None
    """Passes over the data in each lower level; more unlearn more thoroughly."""
    sign_step: float | None = None
    """How far each parameter moves in a step of the lower level; too far makes it diverge."""
    gamma: float | None = None
    """Weight of ||w||^2 in the search, 1e-4 by default; larger spreads the weights over more
    points."""
    ascent: float | None = None
    """1 makes the lower level also raise the loss of forgotten points; 0, the default, only leaves
    them out."""
    epochs: int | None = None
    """Passes over the data for the original model and for Retrain."""
    learning_rate: float | None = None
    """First step size of these two, which falls to 0 by a cosine; one that suits an MLP can be too
    large for a deeper network."""
    finetune_epochs: int | None = None
    """Passes over the data for all other methods; more forget more and cost more."""
    finetune_rate: float | None = None
    """Step size that the methods' strengths are multiples of; larger forgets more and may lose
    accuracy."""
    batch_size: int | None = None
    """Points in each step of every training."""
    random_draws: int | None = None
    """Random sets to average in each seed: a single small one may hold no error of Retrain."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("methods", [name for name in self.methods if ":" not in name], zoo.NAMES)
        free = ("gamma", "ascent")
        check_numbers(self, *free, strict=False)
        fields = {field.name for field in dataclasses.fields(ForgetSetRecipe)} & {*vars(self)}
        check_numbers(self, *sorted(fields - {"model", "lower", "start", *free}))

    def recipe(self, dataset: Dataset, lower: str | None = None) -> ForgetSetRecipe:
        """The recipe of a data set, with what these settings put in its place.

        Raises:
            InputError: the weights' step size is too long for gamma.
        """
        base = recipe_for(dataset, lower or self.lower or "finetune", self.authors, self.fast)
        recipe = filled(base, self)
        if lower is not None:
            recipe = dataclasses.replace(recipe, lower=lower)
        if recipe.outer_rate * recipe.gamma >= 1:
            raise InputError(
                f"`outer_rate` must stay below 1 / gamma = {1 / recipe.gamma:g}, or the steps on"
                f" gamma ||w||^2 overshoot, got {recipe.outer_rate}."
            )
        return recipe


class Setting(NamedTuple):
    """What a page knows before its first seed.

    Attributes:
        dataset: checked and standardised.
        recipe: all numbers.
        task: how to train and to unlearn, for all points and no forget set yet.
        num_forget: points in each set.
        strengths: of the methods, as tuned for this data set and model.
        judged: points that nothing is trained on.
    """

    dataset: Dataset
    recipe: ForgetSetRecipe
    task: Task
    num_forget: int
    strengths: Strengths
    judged: Points

    @property
    def decided(self) -> dict[str, Any]:
        """For the record of the run."""
        return {
            "model": self.task.model.name,
            "recipe": dataclasses.asdict(self.recipe),
            "strengths": self.strengths._asdict(),
        }


def settle(config: Config, dataset: Any = None, model: Any = None) -> Setting:
    """Load the data, build the model, and check that a set can be forgotten.

    Args:
        config: see there.
        dataset: in place of `config.data`: see `frame.Config.load`.
        model: in place of `config.model`: what `components.models.make` takes.

    Raises:
        InputError: a setting or a data file cannot be used.
    """
    dataset = config.load(dataset)
    num_points = len(dataset.train.y)
    num_forget = num_to_forget(config.budget, num_points)
    recipe = config.recipe(dataset)
    network = config.build(dataset, model, recipe.model)
    task = recipe.task(network, dataset)
    task.recipe.num_steps(num_points - num_forget)  # or raises
    if network.has_statistics(task.points.x):
        dataset = dataclasses.replace(dataset, notes=(*dataset.notes, LEAKS))
    named = model if isinstance(model, str) else recipe.model
    strengths = zoo.strengths_of(dataset.name, named).changed(config.strengths)
    judged = config.judged(dataset).on_device()
    return Setting(dataset, recipe, task, num_forget, strengths, judged)
