"""Which examples make up a batch: a function of (seed, step), whatever was done before."""

from __future__ import annotations

from typing import Any

import numpy as np

from tasks.budget import batches_of
from tasks.hashing import hash64, hash_unit

I64 = np.ndarray[Any, np.dtype[np.int64]]


class BatchOrder:
    """Give the rows of any step's batch, of n examples known by their ids.

    Every epoch is a permutation of its own: the order of hash64("order/<epoch>", seed, example_id), so it depends on
    the ids and not on how the rows are stored. The last batch of an epoch holds what is left, and no batch reaches into
    the next epoch. With `weights`, an epoch is n draws with replacement with probability proportional to the weight
    instead.
    """

    def __init__(
        self, example_id: I64, batch_size: int, seed: int, weights: np.ndarray[Any, Any] | None = None
    ) -> None:
        self.example_id, self.batch_size, self.seed = example_id, batch_size, seed
        self.batches = batches_of(len(example_id), batch_size)
        self._mass: np.ndarray[Any, np.dtype[np.float64]] | None = None
        if weights is not None:
            self._mass = np.cumsum(weights, dtype=np.float64)
        self._epoch = -1
        self._rows: I64 = np.empty(0, dtype=np.int64)

    def epoch_rows(self, epoch: int) -> I64:
        """Return the rows of an epoch (n,) in the order they are shown."""
        if epoch != self._epoch:
            self._rows = self._draw(epoch)
            self._epoch = epoch
        return self._rows

    def _draw(self, epoch: int) -> I64:
        if self._mass is None:
            # The hash is a bijection of the id, so there are no ties to break.
            return np.argsort(hash64(f"order/{epoch}", self.seed, self.example_id)).astype(np.int64)
        count = len(self.example_id)
        at = hash_unit(f"draw/{epoch}", self.seed, np.arange(count, dtype=np.int64)) * self._mass[-1]
        rows: I64 = np.minimum(np.searchsorted(self._mass, at, side="right"), count - 1).astype(np.int64)
        return rows

    def batch(self, step: int) -> I64:
        """Return the rows of the batch of `step`, counted from 0."""
        epoch, number = divmod(step, self.batches)
        return self.epoch_rows(epoch)[number * self.batch_size : (number + 1) * self.batch_size]

    def touched(self, steps: int) -> int:
        """Return the number of distinct examples in the batches of the first `steps` steps."""
        count = len(self.example_id)
        if self._mass is None:
            return min(steps * self.batch_size, count)
        seen = np.zeros(count, dtype=bool)
        for step in range(0, steps, self.batches):
            rows = self.epoch_rows(step // self.batches)
            seen[rows[: (steps - step) * self.batch_size]] = True
        return int(seen.sum())


def rank_slice(rows: int, rank: int, world_size: int) -> slice:
    """Return the part of a batch of `rows` that a rank computes.

    Parts differ by at most one row and may be empty; rank 0's, whose batch norm statistics stand, never is.
    """
    return slice(-(-rows * rank // world_size), -(-rows * (rank + 1) // world_size))
