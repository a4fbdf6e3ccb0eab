"""The winner's curse: what choosing the best arm and scoring it on the same replicates adds, and how to score it fairly."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from cluster.errors import InputError

if TYPE_CHECKING:
    from tasks.comparison.paired import Floats

MAX_SPLITS = 2000


@dataclass(frozen=True)
class Hindsight:
    """Hold the best arm's accuracy in percent, or its gain in points: whatever the table held."""

    naive: float
    """Mean over all replicates of the arm that is best on all of them: too high."""
    split_half: float
    """Mean, over splits, of what the arm that is best on one half reached on the other half: not too high."""
    splits: int

    @property
    def curse(self) -> float:
        """Return by how much the naive figure lies above the fair one."""
        return self.naive - self.split_half


def hindsight_best(table: Floats, *, seed: int = 0) -> Hindsight:
    """Return the best of the arms of table (A, R) by the naive figure and by split halves.

    Every split of the replicates into two halves is used, both ways, or MAX_SPLITS drawn by `seed` where there are more;
    with an odd number the choosing half is once the smaller and once the larger. Choosing on half of the replicates
    finds the best arm less often than choosing on all: the fair figure errs low. Ties go to the first arm. Raises
    InputError for fewer than two replicates or no arm.
    """
    import numpy as np

    values = np.asarray(table, dtype=float)
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2:
        raise InputError(
            f"hindsight over a table of shape {values.shape}: it takes at least one arm and two replicates, arms in rows"
        )
    replicates = values.shape[1]
    masks = _halves(replicates, seed)
    # One product for all splits: sums of each arm over each choosing half.
    chosen = values @ masks.T
    rest = values.sum(axis=1, keepdims=True) - chosen
    sizes = masks.sum(axis=1)
    best = chosen.argmax(axis=0)
    scored = rest[best, np.arange(len(masks))] / (replicates - sizes)
    return Hindsight(float(values.mean(axis=1).max()), float(scored.mean()), len(masks))


def _halves(replicates: int, seed: int) -> Floats:
    """Return (S, R) rows of 0 and 1 that mark choosing halves, each with its complement."""
    import numpy as np

    half = replicates // 2
    if _choose(replicates, half) <= MAX_SPLITS // 2:
        rows = [[float(i in chosen) for i in range(replicates)] for chosen in combinations(range(replicates), half)]
        masks = np.array(rows)
    else:
        rng = np.random.default_rng(seed)
        masks = np.zeros((MAX_SPLITS // 2, replicates))
        for row in masks:
            row[rng.permutation(replicates)[:half]] = 1.0
    return np.concatenate([masks, 1.0 - masks])


def _choose(total: int, chosen: int) -> int:
    from math import comb

    return comb(total, chosen)
