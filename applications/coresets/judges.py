"""How the coresets of a run are judged: fresh networks, and a kernel machine."""

import dataclasses

import jax
import numpy as np
import sklearn.svm

from ..components.judging import Judge
from ..components.points import Points
from .pool import Coreset, Pool

PENALTY = 10.0


@dataclasses.dataclass(frozen=True)
class Judges:
    """Networks, by name, and the points to judge on, which no selection has seen."""

    networks: dict[str, Judge]
    test: Points

    def accuracies(self, pool: Pool, chosen: Coreset, key: jax.Array) -> dict[str, float]:
        """By network, and of scikit-learn's kernel machine, in percent."""
        points = Points(pool.x[chosen.rows], pool.y[chosen.rows])
        found = {
            name: float(np.mean(judge.accuracies(points, self.test, key, chosen.weights)))
            for name, judge in self.networks.items()
        }
        return found | {"svm": svm_accuracy(pool, chosen, self.test)}


def svm_accuracy(pool: Pool, coreset: Coreset, test: Points) -> float:
    """Accuracy in percent of scikit-learn's kernel machine, trained on the coreset alone."""
    labels, y = pool.y[coreset.rows], np.asarray(test.y)
    if np.ptp(labels) == 0:  # a coreset of one class, which the machine refuses
        return float(100 * np.mean(y == labels[0]))
    both = Pool(np.concatenate([pool.x[coreset.rows], np.asarray(test.x)]), y, 0).flat
    machine = sklearn.svm.SVC(C=PENALTY)
    machine.fit(both[: len(labels)], labels, coreset.weights)
    return float(100 * machine.score(both[len(labels) :], y))
