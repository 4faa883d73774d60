"""Many seeds in one compiled program: an algorithm, vmapped."""

import jax

from bilevel import _check
from bilevel._algorithm import Algorithm, Info, State
from bilevel._describe import settings
from bilevel._problem import Batch, PyTree


@settings
class Seeds:
    """An algorithm that takes each step for `num_seeds` independent runs at once.

    Prefer it for runs that leave the device idle: ten small runs in one program often cost little
    more than one. Memory is that of `num_seeds` runs. Loops that stop on a tolerance go on until
    the last seed is done. Each seed's numbers are those of a run of its own, but for rounding.

    Attributes:
        algorithm: any algorithm.
        num_seeds: how many runs.
        shared_batch: True: every seed sees the same batch. False: each leaf of the batch has a
            leading axis of length `num_seeds`, as `Minibatches(seed=(0, 1, ...))` makes it.

    Raises:
        ValueError: `num_seeds` is not an integer >= 1.
    """

    algorithm: Algorithm
    num_seeds: int
    shared_batch: bool = True

    def __post_init__(self) -> None:
        _check.positive_integer("num_seeds", self.num_seeds)

    def init(self, outer: PyTree, inner: PyTree) -> State:
        """The state before the first step.

        Args:
            outer: every leaf with a leading axis of length `num_seeds`: a start for each seed.
            inner: likewise.

        Raises:
            ValueError: a leaf has no such axis.
        """
        for name, tree in (("outer", outer), ("inner", inner)):
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                if jax.numpy.shape(leaf)[:1] != (self.num_seeds,):
                    raise ValueError(
                        f"`{name}` must have a leading axis of length num_seeds={self.num_seeds},"
                        f" got shape {jax.numpy.shape(leaf)} at `{name}"
                        f"{jax.tree_util.keystr(path)}`. Stack one start for each seed, e.g. by"
                        " `jax.vmap(make)(jax.random.split(key, num_seeds))`."
                    )
        return jax.vmap(self.algorithm.init)(outer, inner)

    def step(self, state: State, batch: Batch) -> tuple[State, Info]:
        """One step of every seed: each leaf of state and info has the leading axis of seeds."""
        return jax.vmap(self.algorithm.step, in_axes=(0, None if self.shared_batch else 0))(
            state, batch
        )
