"""Protocol `ccs`: the hardest share dropped, the rest covered by equal-width strata of the score, smallest first.

Zheng, Liu, Lai & Prakash, "Coverage-centric coreset selection for high pruning rates" (ICLR 2023), algorithm 1. The first
round(beta n) of the ranking are dropped (ties by hash). The scores of the others are cut into `strata` equal widths between
their least and their greatest. From the smallest stratum to the largest, each gets min(n_h, floor(rest of m / strata left));
the draw within a stratum is uniform without replacement. So every stratum with a budget has
pi = m_h / n_h, recorded row by row; the dropped have pi = 0, and no weight can speak for them: the weights are of the
retained population. The paper trains without weights; so does `weights: unit`, which estimates nothing. With `weights: ht`
means over the retained population are exactly unbiased, where every stratum has a budget (m >= strata is enough).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.samplers import uniform
from tasks.samplers.design import Budget, Design, group_budgets, make_design

UNIT, HT = "unit", "ht"


def stratum_of(scores: npt.NDArray[Any], low: float, high: float, strata: int) -> npt.NDArray[np.int64]:
    """Return the stratum (N,) of finite scores (N,): floor(strata (s - low) / (high - low)), the last one closed.

    Halves are taken first: the difference of two float64 may be none. All in stratum 0 where `high` is `low`.
    """
    span = high * 0.5 - low * 0.5
    if span <= 0:
        return np.zeros(len(scores), dtype=np.int64)
    place = (scores.astype(np.float64) * 0.5 - low * 0.5) / span * strata
    return np.minimum(place.astype(np.int64), strata - 1)


def smallest_first(m: int, sizes: Sequence[int], ranks: Sequence[int]) -> list[int]:
    """Return budgets of exactly m: min(size, floor(left / strata left)), smallest stratum first, equal sizes by `ranks`.

    Needs m <= sum of the sizes.
    """
    budgets = [0] * len(sizes)
    left = m
    for done, stratum in enumerate(sorted(range(len(sizes)), key=lambda h: (sizes[h], ranks[h]))):
        budgets[stratum] = min(sizes[stratum], left // (len(sizes) - done))
        left -= budgets[stratum]
    return budgets


def design(budgets: Sequence[Budget], weights: str) -> Design:
    """Return pi = m_h / n_h and weight 1 (`unit`), or (n_h / m_h) m over the covered examples (`ht`)."""
    if weights == HT:
        return uniform.design(budgets)
    ones = [1.0] * len(budgets)
    return make_design(budgets, ones, ones)


def cell_budgets(
    classes: str | None, m: int, sizes: npt.NDArray[np.int64], ranks: Callable[[int], Sequence[int]]
) -> list[Budget]:
    """Return the budgets of cells (strata, groups), one after another: all exploration, m in all.

    `classes` divides m over the groups first, then each group's budget is divided over its strata.
    """
    strata, groups = sizes.shape
    shares = [m] if classes is None else group_budgets(classes, m, sizes.sum(axis=0).tolist(), ranks(groups))
    found = [smallest_first(shares[g], sizes[:, g].tolist(), ranks(strata)) for g in range(groups)]
    return [Budget(int(sizes[h, g]), 0, found[g][h]) for h in range(strata) for g in range(groups)]
