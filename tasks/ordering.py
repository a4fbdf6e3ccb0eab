"""Which examples make up a batch: a function of (seed, step), whatever was done before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.budget import batches_of
from tasks.hashing import hash64, hash_unit

if TYPE_CHECKING:
    from tasks.rotation import Rotation

I64 = np.ndarray[Any, np.dtype[np.int64]]


class BatchOrder:
    """Give the rows of any step's batch, of n examples known by their ids.

    Every epoch is a permutation of its own: the order of hash64("order/<epoch>", seed, example_id), so it depends on
    the ids and not on how the rows are stored. The last batch of an epoch holds what is left, and no batch reaches into
    the next epoch. With `weights`, an epoch is n draws with replacement with probability proportional to the weight
    instead. With a `rotation`, an epoch is of its m rows for that epoch alone, ordered or drawn in the same way.
    """

    def __init__(
        self,
        example_id: I64,
        batch_size: int,
        seed: int,
        weights: np.ndarray[Any, Any] | None = None,
        rotation: Rotation | None = None,
    ) -> None:
        self.example_id, self.batch_size, self.seed = example_id, batch_size, seed
        self.weights, self.rotation = weights, rotation
        self.size = len(example_id) if rotation is None else rotation.size
        self.batches = batches_of(self.size, batch_size)
        self._epoch = -1
        self._rows: I64 = np.empty(0, dtype=np.int64)

    def epoch_rows(self, epoch: int) -> I64:
        """Return the rows of an epoch, (n,) or (m,), in the order they are shown."""
        if epoch != self._epoch:
            self._rows = self._draw(epoch)
            self._epoch = epoch
        return self._rows

    def _draw(self, epoch: int) -> I64:
        if self.rotation is None:
            return self._ordered(epoch, self.example_id, self.weights)
        rows = self.rotation.rows(epoch)
        weights = None if self.weights is None else self.weights[rows]
        return rows[self._ordered(epoch, self.example_id[rows], weights)]

    def _ordered(self, epoch: int, ids: I64, weights: np.ndarray[Any, Any] | None) -> I64:
        if weights is None:
            # The hash is a bijection of the id, so there are no ties to break.
            return np.argsort(hash64(f"order/{epoch}", self.seed, ids)).astype(np.int64)
        mass = np.cumsum(weights, dtype=np.float64)
        at = hash_unit(f"draw/{epoch}", self.seed, np.arange(len(ids), dtype=np.int64)) * mass[-1]
        rows: I64 = np.minimum(np.searchsorted(mass, at, side="right"), len(ids) - 1).astype(np.int64)
        return rows

    def batch(self, step: int) -> I64:
        """Return the rows of the batch of `step`, counted from 0."""
        epoch, number = divmod(step, self.batches)
        return self.epoch_rows(epoch)[number * self.batch_size : (number + 1) * self.batch_size]

    def touched(self, steps: int) -> int:
        """Return the number of distinct examples in the batches of the first `steps` steps."""
        if self.weights is None and self.rotation is None:
            return min(steps * self.batch_size, self.size)
        seen = np.zeros(len(self.example_id), dtype=bool)
        for step in range(0, steps, self.batches):
            rows = self.epoch_rows(step // self.batches)
            seen[rows[: (steps - step) * self.batch_size]] = True
        return int(seen.sum())


def rank_slice(rows: int, rank: int, world_size: int) -> slice:
    """Return the part of a batch of `rows` that a rank computes.

    Parts differ by at most one row and may be empty; rank 0's, whose batch norm statistics stand, never is.
    """
    return slice(-(-rows * rank // world_size), -(-rows * (rank + 1) // world_size))
