"""Runs that a user can live with: `fit`, with progress, metrics, checkpoints and resume."""

from bilevel.training._cache import compilation_cache
from bilevel.training._callbacks import Best, Report, Watch
from bilevel.training._data import Minibatches
from bilevel.training._files import FolderError
from bilevel.training._fit import FitResult, NonFiniteError, fit
from bilevel.training._folder import RunFolder
from bilevel.training._metrics import read_metrics
from bilevel.training._plot import plot
from bilevel.training._precision import MixedPrecision
from bilevel.training._seeds import Seeds
from bilevel.training._signals import Interrupted, this_command
from bilevel.training._stopping import Patience, StopRule

__all__ = [
    "Best",
    "FitResult",
    "FolderError",
    "Interrupted",
    "Minibatches",
    "MixedPrecision",
    "NonFiniteError",
    "Patience",
    "Report",
    "RunFolder",
    "Seeds",
    "StopRule",
    "Watch",
    "compilation_cache",
    "fit",
    "plot",
    "read_metrics",
    "this_command",
]
