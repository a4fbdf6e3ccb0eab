"""Budgets and what a protocol makes of them: inclusion probabilities, weights, and the figures that judge a design."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import InputError

F64 = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}


@dataclass(frozen=True)
class Budget:
    """Hold how many of `n` examples (of one group) are signal and how many exploration."""

    n: int
    signal: int
    exploration: int

    @property
    def kept(self) -> int:
        """Return m, the whole budget."""
        return self.signal + self.exploration

    @property
    def complement(self) -> int:
        """Return the number of examples that are not signal: what exploration is drawn from."""
        return self.n - self.signal

    @property
    def explore_prob(self) -> float:
        """Return the inclusion probability of the complement, k_E / (n - k_S)."""
        return self.exploration / self.complement if self.complement else 1.0

    @property
    def explore_factor(self) -> float:
        """Return W = (n - k_S) / k_E. Needs some exploration."""
        return self.complement / self.exploration


@dataclass(frozen=True)
class Design:
    """Hold, for each group, the inclusion probability of the complement and the weight of either arm.

    Shapes (G,), float64. Signal has inclusion probability 1. The weights are d times the design constant; a group
    without exploration has exploration weight 0, which no row carries.
    """

    explore_prob: F64
    signal_weight: F64
    explore_weight: F64


def make_design(budgets: Sequence[Budget], signal: Sequence[float], explore: Sequence[float]) -> Design:
    """Return the design with the given weights, one a group."""
    return Design(
        np.array([budget.explore_prob for budget in budgets]),
        np.array(signal, dtype=np.float64),
        np.array(explore, dtype=np.float64),
    )


def covered(budgets: Sequence[Budget]) -> int:
    """Return how many examples lie in groups with a budget: the population that weights can speak for."""
    return sum(budget.n for budget in budgets if budget.kept)


def kept(budgets: Sequence[Budget]) -> int:
    """Return m over all groups."""
    return sum(budget.kept for budget in budgets)


def total_budget(keep: float, n: int) -> int:
    """Return m = round(keep n), half to even as Python rounds. Raises InputError when that is 0."""
    m = round(keep * n)
    if m < 1:
        raise InputError(
            f"keep {keep:g} of {n} examples is round({keep * n:g}) = 0: nothing would be kept; raise keep to at least "
            f"{1 / n if n else 1:.3g}"
        )
    return min(m, n)


def split_budget(n: int, m: int, alpha: float) -> Budget:
    """Return the budget of m among n with k_S = round(alpha m), half to even, and k_E = m - k_S."""
    signal = round(alpha * m)
    return Budget(n, signal, m - signal)


def proportional(m: int, sizes: Sequence[int], ranks: Sequence[int]) -> list[int]:
    """Return budgets proportional to the group sizes that add up to exactly m, by largest remainder.

    Integer arithmetic throughout. Equal remainders go by `ranks` (smallest first), which the caller draws at random.
    """
    n = sum(sizes)
    floors = [m * size // n for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda g: (-(m * sizes[g] % n), ranks[g]))
    for group in by_remainder[: m - sum(floors)]:
        floors[group] += 1
    return floors


def balanced(m: int, sizes: Sequence[int], ranks: Sequence[int]) -> list[int]:
    """Return equal budgets, none above its group's size, that add up to exactly m; needs m <= sum of the sizes.

    What a small group cannot take is handed out equally over those with room, until nothing is left over. The last few,
    fewer than there are groups with room, go one a group by `ranks` (smallest first).
    """
    budgets = [0] * len(sizes)
    left, room = m, sorted(range(len(sizes)), key=lambda g: sizes[g])
    while room and sizes[room[0]] * len(room) <= left:
        budgets[room[0]] = sizes[room[0]]
        left -= sizes[room.pop(0)]
    if room:
        share, more = divmod(left, len(room))
        for place, group in enumerate(sorted(room, key=lambda g: ranks[g])):
            budgets[group] = share + (place < more)
    return budgets


def group_budgets(classes: str, m: int, sizes: Sequence[int], ranks: Sequence[int]) -> list[int]:
    """Return the budgets of the groups, `proportional` or `balanced`."""
    return (balanced if classes == "balanced" else proportional)(m, sizes, ranks)


def weight_counts(budgets: Sequence[Budget], design: Design) -> list[tuple[float, int]]:
    """Return (weight, rows that carry it) over groups and arms, in ascending weight."""
    pairs: dict[float, int] = {}
    for g, budget in enumerate(budgets):
        for weight, count in (
            (float(design.signal_weight[g]), budget.signal), (float(design.explore_weight[g]), budget.exploration)
        ):
            if count:
                pairs[weight] = pairs.get(weight, 0) + count
    return sorted(pairs.items())


def weight_figures(pairs: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Return weight_sum, Kish's effective sample size (sum w)^2 / sum w^2, and quantiles of the weights (lower)."""
    total = sum(weight * count for weight, count in pairs)
    squares = sum(weight * weight * count for weight, count in pairs)
    rows = sum(count for _, count in pairs)
    quantiles: dict[str, float] = {}
    for name, share in QUANTILES.items():
        rank, seen = int(share * (rows - 1)), 0
        for weight, count in pairs:
            seen += count
            if rank < seen:
                quantiles[name] = weight
                break
    return {"weight_sum": total, "ess": total * total / squares, "weight_quantiles": quantiles}


def design_effect(budget: Budget, design: Design, full: Counts, signal: Counts) -> float | None:
    """Return the design effect on class totals: mean squared error against a simple random sample of m.

    `full` and `signal` (K,) count the classes among all examples and among the signal. The estimate of a class total is
    n/m times the sum of weights in it; its error, design variance plus squared bias, is summed over classes and divided
    by the same sum for a simple random sample. Exact, not an estimate: the counts of the complement are known. None
    where the simple random sample has no error (all kept, or one class). One group only.
    """
    n, m = budget.n, budget.kept
    plain = _class_variance(full.astype(np.float64), n, m) * (n / m) ** 2
    if plain <= 0:
        return None
    rest = (full - signal).astype(np.float64)
    scale = n / m
    d_signal, d_explore = scale * float(design.signal_weight[0]), scale * float(design.explore_weight[0])
    bias = d_signal * signal + d_explore * budget.explore_prob * rest - full
    variance = _class_variance(rest, budget.complement, budget.exploration) * d_explore**2
    return float((variance + float(bias @ bias)) / plain)


def _class_variance(counts: F64, n: int, m: int) -> float:
    """Return the variance, summed over classes, of class counts in a simple random sample of m of n."""
    if m == 0 or n < 2:
        return 0.0
    share = counts / n
    return float(m * (n - m) / (n - 1) * np.sum(share * (1 - share)))
