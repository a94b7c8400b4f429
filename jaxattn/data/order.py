"""Which examples form which batch.

Epoch e goes through one global permutation, a function of (seed, e), in batches; the
last batch is completed from the start of the same permutation. So batch k of a run is a
function of (seed, k): a resumed run, on any number of processes, goes on exactly.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class Slice:
    """The part of every batch that this process feeds.

    Attributes:
        index: Of the process.
        count: Of processes.
    """

    index: int = 0
    count: int = 1

    def take(self, values: np.ndarray) -> np.ndarray:
        """Returns this process's share of an array over the global batch."""
        size = len(values) // self.count
        return values[self.index * size : (self.index + 1) * size]


WHOLE = Slice()
"""All of every batch."""


@dataclasses.dataclass(frozen=True)
class TrainOrder:
    """Which examples form each training batch.

    Attributes:
        num_examples: Of the training split.
        batch_size: Of the global batch.
        seed: Of the run.
    """

    num_examples: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch: every example is in at least one."""
        return -(-self.num_examples // self.batch_size)

    def __call__(self, step: int) -> np.ndarray:
        """Returns the example indices of the batch at `step`, int32 `[batch_size]`."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        positions = batch * self.batch_size + np.arange(self.batch_size)
        order = _permutation(self.num_examples, self.seed, epoch)
        return order[positions % self.num_examples]


@functools.lru_cache(maxsize=2)
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    rng = np.random.default_rng((seed, epoch))
    return rng.permutation(num_examples).astype(np.int32)


def evaluation_order(
    num_examples: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields indices and mask of each evaluation batch, both `[batch_size]`.

    Padding repeats the last example under a False mask.
    """
    for start in range(0, num_examples, batch_size):
        positions = start + np.arange(batch_size)
        mask = positions < num_examples
        yield np.minimum(positions, num_examples - 1).astype(np.int32), mask
