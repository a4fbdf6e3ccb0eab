"""Protocol `pps`: inclusion in proportion to the score, by systematic sampling in hash order; exactly unbiased weights.

pi_i = min(1, c x_i) with sum pi = m, where the size x_i = (1 - floor) s_i + floor mean(s) is the score with a share `floor`
spread uniformly, so that pi_i is nowhere much below floor m/n. Units with pi = 1 are the signal. The others lie in the order of
their hash on a line, each as long as its pi, and those that hold one of the points u, u + 1, u + 2, ... are drawn, with one
start u for all: the size is fixed, pi is exact (Madow 1949; in random order Goodman & Kish 1950), the draw is the same for any
shards, and not nested. Weight 1/pi times m/n: Horvitz-Thompson, their sum is m in expectation only. The variance in random
order is close to that of Hartley & Rao (1962), sum pi (1 - (m-1)/m pi) (y/pi - Y/m)^2 over the units that are not certain.

Everything is counted in integers, so no sum hangs on its order: sizes in 2^-40 of the greatest score, probabilities in
2^-52. The probabilities drawn with are those recorded. Scores are never negative and high ones are wanted: others need a
monotone map to such (the greatest value less the score, for one that is kept low).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.samplers.design import Budget, Design, make_design

I64 = npt.NDArray[np.int64]

SIZE = 1 << 40
ONE = 1 << 52
# Nearer to 1 than this is 1, nearer to 0 is refused: rounding never leaves the range.
MARGIN = 1 << 12

DIGIT_BITS = 11
DIGITS = 1 << DIGIT_BITS
LEVELS = 4
HALF = 31


@dataclass(frozen=True)
class Sizes:
    """Make integer sizes, at most 2^40 + 1, of scores: `raised` is what the floor adds to each."""

    greatest: float
    floor: float
    raised: int = 0

    def plain(self, scores: npt.NDArray[Any]) -> I64:
        """Return the sizes (N,) before any floor."""
        if self.greatest <= 0:
            return np.zeros(len(scores), dtype=np.int64)
        return (scores.astype(np.float64) / self.greatest * SIZE).astype(np.int64)

    def raise_by(self, total: int, n: int) -> Sizes:
        """Return the sizes with their floor, from the sum of the plain sizes of all n."""
        raised = -(-Fraction(self.floor) * total // n) if self.floor else 0
        return Sizes(self.greatest, self.floor, max(1, int(raised)) if self.floor else 0)

    def of(self, scores: npt.NDArray[Any]) -> I64:
        """Return the sizes (N,)."""
        return (self.plain(scores) * (1.0 - self.floor)).astype(np.int64) + self.raised


class TakeAll:
    """Find the least size that is drawn with certainty, digit by digit, from counts and sums of sizes; needs m < n.

    Hidiroglou (1986): a unit is certain where its size times the units left to draw is the sum of the sizes left. That is
    monotone in the size, so each of four passes narrows the size to one of 2^11 parts. One pass is enough where not even the
    `greatest` size is certain.
    """

    def __init__(self, m: int, greatest: int) -> None:
        self.m, self.greatest = m, greatest
        self.low, self.level = 0, 0
        self.above = self.above_total = self.total = 0

    def count(self, sizes: I64) -> I64:
        """Return (3, 2^11): of the sizes in the part looked into, how many have each digit, and their sums in two halves."""
        place = (sizes - self.low) >> (DIGIT_BITS * (LEVELS - 1 - self.level))
        inside = (place >= 0) & (place < DIGITS)
        place, sizes = place[inside], sizes[inside]
        out = np.empty((3, DIGITS), dtype=np.int64)
        out[0] = np.bincount(place, minlength=DIGITS)
        # Of 2^17 rows at once: sums of halves are exact in float64.
        out[1] = np.bincount(place, sizes >> HALF, DIGITS)
        out[2] = np.bincount(place, sizes & (2**HALF - 1), DIGITS)
        return out

    def narrow(self, counted: I64) -> None:
        """Take up the counts (3, 2^11) of one pass."""
        places = np.flatnonzero(counted[0])[::-1]
        # Sums of sizes may pass 2^63: Python's integers from here on.
        columns = zip(places.tolist(), *counted[:, places].tolist())
        found = [(place, count, (high << HALF) + low) for place, count, high, low in columns]
        if self.level == 0:
            self.total = sum(total for _, _, total in found)
            if not self._certain(self.greatest, 0, 0):
                self.low, self.level = self.greatest, LEVELS
                return
        shift = DIGIT_BITS * (LEVELS - 1 - self.level)
        for place, count, total in found:
            # The greatest size of the part below, with all of this part and above taken.
            taken, taken_total = self.above + count, self.above_total + total
            if not self._certain(self.low + (place << shift) - 1, taken, taken_total):
                self.low += place << shift
                break
            self.above, self.above_total = taken, taken_total
        self.level += 1

    def _certain(self, size: int, taken: int, taken_total: int) -> bool:
        rest, left = self.m - taken, self.total - taken_total
        return size > 0 and rest >= 0 and size * rest * (ONE // MARGIN) >= left * (ONE // MARGIN - 1)

    @property
    def least(self) -> int:
        """Return the least certain size, once nothing is left to narrow."""
        return self.low if self._certain(self.low, self.above, self.above_total) else self.low + 1


def exact_total(values: I64) -> int:
    """Return the sum of integers below 2^62: each half of the bits is summed alone, so none overflows."""
    return (int((values >> HALF).sum()) << HALF) + int((values & (2**HALF - 1)).sum())


def units(sizes: I64, rest: int, total: int) -> I64:
    """Return c x_i (N,) in units of 2^-52, rounded down, c = rest / total correctly rounded."""
    return (sizes * (rest / total) * ONE).astype(np.int64)


def even_out(rounded: int, rest: int, count: int) -> tuple[int, int]:
    """Return (q, r): all `count` probabilities take q units more, and the first r in hash order one unit beside it.

    So they add up to exactly `rest`; `rounded` is their sum before.
    """
    return divmod(rest * ONE - rounded, count)


def systematic(probabilities: I64, before: int) -> npt.NDArray[np.bool_]:
    """Return which units (N,), in order, hold a point; `before` is the start plus all probabilities that came before."""
    ends = np.cumsum(probabilities.view(np.uint64)) + np.uint64(before % 2**64)
    starts = (ends - probabilities.view(np.uint64)) & np.uint64(ONE - 1)
    return starts + probabilities.view(np.uint64) >= np.uint64(ONE)


def design(budgets: Sequence[Budget]) -> Design:
    """Return pi = 1 and weight m/n on the units that are certain; the others have a probability and a weight a row."""
    return make_design(budgets, [budget.kept / budget.n for budget in budgets], [0.0] * len(budgets))
