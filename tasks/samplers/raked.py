"""Protocol `raked`: the rows of `exact`, exploration's weights calibrated to totals that are known of the whole population.

The weight of an explored row is d g m/n, with d = 1/pi = (n - k_S) / k_E as in `exact` and the factors g nearest to 1 in entropy,
the least sum of d (g log g - g + 1), among those within [1/bound, bound] that meet every margin: the number of examples in each
class and in each bin of the score (`separate`), or in each bin within each class (`crossed`, post-stratification). Deville &
Särndal (1992), their raking ratio with the factors cut at the bounds; entropy balancing is the same program. Units that are
certain, the signal, keep d = 1.

Design-consistent with a bias of order 1/m, not unbiased. The variance falls only for what the margins explain, to about
((n - k_S)/n)^2 (1 - k_E/(n - k_S)) S2_e / k_E for a mean, with S2_e that of the residuals of a regression on the margins over the
complement, and rises as the margins' number nears m/20. So each margin must expect ROWS_A_MARGIN explored rows: what is smaller
is pooled (classes) or merged with its neighbours (bins) before anything is explored. Where a draw leaves no factors within the
bounds (the default bound is 4), the margin that is missed by most is joined to its neighbour. The record counts both, and the
margins that are left. With one left the weights are those of `exact`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.errors import InputError
from tasks.samplers.design import F64, Budget, Counts, Design

SEPARATE, CROSSED = "separate", "crossed"
ROWS_A_MARGIN = 20

TOLERANCE = 1e-11
_MOST_STEPS = 100
# Curvature left to cells at a bound, which have none: the dual is then never flat, and steps stay short.
_AT_BOUND = 0.01
_RIDGE = 1e-10

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Margins:
    """Hold the margin (C,) of every cell in one family, or in two: of classes, and of bins.

    Cells are (bin, class), C = B K of them. `pooled` classes share one margin, `joined` margins were given up after the draw.
    """

    families: tuple[Labels, ...]
    pooled: int
    joined: int = 0

    @property
    def sizes(self) -> list[int]:
        """Return the number of margins of each family."""
        return [int(family.max()) + 1 for family in self.families]

    @property
    def count(self) -> int:
        """Return the number of independent margins: two families share their sum."""
        return sum(self.sizes) - len(self.families) + 1

    def join(self, number: int, margin: int) -> Margins:
        """Return the margins with one of a family joined to the next, or the last but one to the last."""
        family = self.families[number]
        last = min(margin, int(family.max()) - 1)
        families = list(self.families)
        families[number] = np.where(family > last, family - 1, family)
        return Margins(tuple(families), self.pooled, self.joined + 1)


def make_margins(totals: Counts, explored: int, kind: str) -> Margins:
    """Return the margins for cell counts (B, K) of the complement; what is drawn has no part in it."""
    bins, classes = totals.shape
    rest = int(totals.sum())
    least = -(-ROWS_A_MARGIN * rest // explored) if explored else rest + 1
    class_of, pooled = _pooled(totals.sum(axis=0).tolist(), least)
    count = int(class_of.max()) + 1
    if kind == CROSSED:
        cells, first = np.empty((bins, classes), dtype=np.int64), 0
        for number in range(count):
            members = class_of == number
            found = _merged(totals[:, members].sum(axis=1).tolist(), least, bins)
            cells[:, members] = found[:, None] + first
            first += int(found.max()) + 1
        return Margins((cells.ravel(),), pooled)
    room = max(1, explored // ROWS_A_MARGIN - (count - 1))
    bin_of = _merged(totals.sum(axis=1).tolist(), least, room)
    return Margins((np.tile(class_of, bins), np.repeat(bin_of, classes)), pooled)


def _pooled(sizes: Sequence[int], least: int) -> tuple[Labels, int]:
    """Return (margin of each class, classes in the pool): those below `least`, and the next until the pool has as many."""
    there = sorted((size, number) for number, size in enumerate(sizes) if size)
    pool = 0
    total = 0
    while pool < len(there) and (there[pool][0] < least or 0 < total < least):
        total += there[pool][0]
        pool += 1
    labels = np.zeros(len(sizes), dtype=np.int64)
    # The pool comes first; a class with nothing to weight has no margin, and its number means nothing.
    apart = sorted(number for _, number in there[pool:])
    for place, number in enumerate(apart):
        labels[number] = place + (pool > 0)
    return labels, pool if pool > 1 else 0


def _merged(sizes: Sequence[int], least: int, room: int) -> Labels:
    """Return the margin of each bin: the smallest joins its smaller neighbour until none is below `least` and `room` are left."""
    groups = [[size, 1] for size in sizes]
    while len(groups) > 1 and (len(groups) > room or min(groups)[0] < least):
        at = groups.index(min(groups))
        sides = [side for side in (at - 1, at + 1) if 0 <= side < len(groups)]
        first = min(at, min(sides, key=lambda side: groups[side][0]))
        size, width = groups.pop(first + 1)
        groups[first] = [groups[first][0] + size, groups[first][1] + width]
    return np.repeat(np.arange(len(groups)), [width for _, width in groups])


@dataclass(frozen=True)
class Calibrated:
    """Hold the factors g (C,) of the design weights, the margins they meet, and the Newton steps that found them."""

    factor: F64
    margins: Margins
    steps: int


def calibrate(margins: Margins, drawn: Counts, totals: Counts, bound: float) -> Calibrated:
    """Return the factors for explored rows (C,) and cell counts (C,) of the complement.

    Where no factors within the bounds meet the margins, the one that is missed by most is joined with its neighbour, and
    counted. All sums are over cells, so that neither order nor split of the rows tells.
    """
    while True:
        found = _attempt(margins, drawn, totals, bound)
        if isinstance(found, Calibrated):
            return found
        margins = margins.join(*found)


def _attempt(margins: Margins, drawn: Counts, totals: Counts, bound: float) -> Calibrated | tuple[int, int]:
    """Return the factors, or the (family, margin) that is farthest from being met."""
    if margins.count == 1:
        # The one total is met by the design's own weights.
        return Calibrated(np.ones(len(drawn)), margins, 0)
    base: F64 = drawn.astype(np.float64) * (int(totals.sum()) / int(drawn.sum()))
    worst, far = (0, 0), 0.0
    for number, family in enumerate(margins.families):
        with np.errstate(divide="ignore"):
            away = np.abs(np.log(np.bincount(family, base) / np.bincount(family, totals)))
        if float(away.max()) > far:
            worst, far = (number, int(away.argmax())), float(away.max())
    if far > math.log(bound):
        return worst
    divided = [family for family in margins.families if family.max() > 0]
    if len(divided) == 1:
        ratio = np.bincount(divided[0], totals) / np.bincount(divided[0], base)
        return Calibrated(np.clip(ratio[divided[0]], 1 / bound, bound), margins, 0)
    return _Dual(margins, base, totals, bound).solve()


class _Dual:
    """Minimise the dual of the program, sum base phi(s) - sum wanted x lambda, by Newton's method; phi' = exp, cut at the bounds.

    Written out in sums of a fixed order, without BLAS or LAPACK, whose results may hang on their threads.
    """

    def __init__(self, margins: Margins, base: F64, totals: Counts, bound: float) -> None:
        self.margins, self.families, self.sizes = margins, margins.families, margins.sizes
        self.base, self.bound = base, bound
        self.wanted = [np.bincount(family, totals).astype(np.float64) for family in self.families]

    def solve(self) -> Calibrated | tuple[int, int]:
        """Return the factors, or the (family, margin) missed by most where the dual has no least value."""
        at = [np.zeros(size) for size in self.sizes]
        for steps in range(_MOST_STEPS + 1):
            place, factor = self._factors(at)
            left = [
                wanted - np.bincount(family, self.base * factor, size)
                for family, wanted, size in zip(self.families, self.wanted, self.sizes)
            ]
            misses = [np.abs(miss / wanted) for miss, wanted in zip(left, self.wanted)]
            if max(float(miss.max()) for miss in misses) <= TOLERANCE:
                return Calibrated(factor, self.margins, steps)
            at = self._along(at, self._step(place, factor, left), left)
        family = int(misses[1].max() > misses[0].max())
        return family, int(misses[family].argmax())

    def _factors(self, at: Sequence[F64]) -> tuple[F64, F64]:
        place = at[0][self.families[0]] + at[1][self.families[1]]
        edge = math.log(self.bound)
        return place, np.clip(np.exp(np.clip(place, -edge, edge)), 1 / self.bound, self.bound)

    def _value(self, at: Sequence[F64]) -> float:
        place, factor = self._factors(at)
        edge = math.log(self.bound)
        # Beyond a bound phi goes on as its tangent.
        phi = factor * (1 + place - np.clip(place, -edge, edge))
        return float((self.base * phi).sum()) - sum(float((one * wanted).sum()) for one, wanted in zip(at, self.wanted))

    def _step(self, place: F64, factor: F64, left: Sequence[F64]) -> list[F64]:
        rows, columns = self.sizes
        inside = np.abs(place) < math.log(self.bound)
        curvature = self.base * factor * np.where(inside, 1.0, _AT_BOUND)
        cross = np.bincount(self.families[0] * columns + self.families[1], curvature, rows * columns).reshape(rows, columns)
        across, down = cross.sum(axis=1), cross.sum(axis=0)[:-1]
        # The last margin of the second family follows from the others.
        cross = cross[:, :-1]
        scaled = cross / across[:, None]
        matrix = np.diag(down * (1 + _RIDGE))
        for column in range(columns - 1):
            matrix[column] -= (scaled * cross[:, column, None]).sum(axis=0)
        second = _solved(matrix, left[1][:-1] - (scaled * left[0][:, None]).sum(axis=0))
        first = (left[0] - (cross * second).sum(axis=1)) / across
        return [first, np.append(second, 0.0)]

    def _along(self, at: Sequence[F64], step: Sequence[F64], left: Sequence[F64]) -> list[F64]:
        slope = sum(float((one * miss).sum()) for one, miss in zip(step, left))
        before = self._value(at)
        share = 1.0
        while True:
            there = [one + share * more for one, more in zip(at, step)]
            # Close to the end the fall is below the rounding of the value.
            if share < 1e-9 or self._value(there) <= before - 1e-4 * share * slope + 1e-13 * abs(before):
                return there
            share /= 2


def _solved(matrix: F64, right: F64) -> F64:
    """Return the solution of a small symmetric positive definite system, by elimination."""
    matrix, right = matrix.copy(), right.copy()
    size = len(right)
    for row in range(size):
        times = matrix[row + 1 :, row] / matrix[row, row]
        matrix[row + 1 :, row:] -= times[:, None] * matrix[row, row:]
        right[row + 1 :] -= times * right[row]
    for row in range(size - 1, -1, -1):
        right[row] = (right[row] - (matrix[row, row + 1 :] * right[row + 1 :]).sum()) / matrix[row, row]
    return right


def design(budget: Budget, factor: F64) -> Design:
    """Return pi as of `exact` and the weights of each cell: m/n on S, W g m/n on E, which add up to m.

    Raises InputError where the complement gets no exploration.
    """
    if budget.complement and not budget.exploration:
        raise InputError(
            f"protocol raked: {budget.kept} kept, all of it signal, leaves no exploration to be weighted for the other "
            f"{budget.complement} examples; lower alpha, raise keep, or use approximate or topk"
        )
    constant = budget.kept / budget.n
    scale = budget.explore_factor * constant if budget.exploration else 0.0
    return Design(np.full(len(factor), budget.explore_prob), np.full(len(factor), constant), scale * factor)
