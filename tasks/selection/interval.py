"""Where the signal ends: an interval of (key, tie) that holds its last row, guessed from a sample or found by counting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.selection.missing import scored
from tasks.selection.order import U64, value_of
from tasks.selection.ranking import Ranking
from tasks.selection.rows import Batch
from tasks.selection.threshold import Bools, Bounds, KeyedRows, Tie

_ALL = 2**64 - 1

# The guess misses once in 10^9 samples of independent rows; a miss costs passes, never the result.
_SIGMAS = 6.0


@dataclass(frozen=True)
class Interval:
    """Hold the ends (key, tie), both inside. `whole` says that rows inside are all signal, or none; None: some are."""

    low: tuple[int, int] = (0, 0)
    high: tuple[int, int] = (_ALL, _ALL)
    whole: bool | None = None

    def reach(self, score: npt.NDArray[Any] | None, direction: str) -> Bools | None:
        """Return which rows (N,) may be signal by their scores, and perhaps some more; None: all may, or no score says.

        In the scores' own type: a tenth of the time of making their keys.
        """
        if score is None or score.dtype.kind != "f" or self.high[0] == _ALL:
            return None
        end = value_of(self.high[0] ^ _ALL if direction == "high" else self.high[0])
        if math.isnan(end):
            return None
        with np.errstate(over="ignore"):
            value = score.dtype.type(end)
        if direction == "high":
            return np.asarray(score >= (value if value <= end else np.nextafter(value, score.dtype.type(-np.inf))))
        return np.asarray(score <= (value if value >= end else np.nextafter(value, score.dtype.type(np.inf))))

    def classify(self, rows: KeyedRows, tie: Tie) -> tuple[Bools, Bools]:
        """Return (signal, inside), both (N,): whether a row is surely signal, or may be."""
        key, low, high = rows.key, np.uint64(self.low[0]), np.uint64(self.high[0])
        signal = key < low
        inside = key <= high
        inside &= ~signal
        if self.low[1] > 0 or self.high[1] < _ALL:
            at = np.flatnonzero(inside & ((key == low) | (key == high)))
            ties = tie(rows.example_id[at])
            early = (key[at] == low) & (ties < np.uint64(self.low[1]))
            late = (key[at] == high) & (ties > np.uint64(self.high[1]))
            signal[at[early]] = True
            inside[at[early | late]] = False
        if self.whole is not None:
            if self.whole:
                signal |= inside
            inside[:] = False
        return signal, inside


def interval_of(bounds: Bounds) -> Interval:
    """Return the interval to which counting has narrowed the one group of `bounds`."""
    low = int(bounds.low_key[0]), int(bounds.low_tie[0])
    high = int(bounds.high_key[0]), int(bounds.high_tie[0])
    rank, inside = int(bounds.rank[0]), int(bounds.inside[0])
    return Interval(low, high, True if rank == inside else False if rank == 0 else None)


def guess(sample: Sequence[Batch], ranking: Ranking, k: int, limit: int) -> Interval | None:
    """Return an interval that should hold row k of the ranking and at most `limit` rows, None where a sample cannot say.

    `sample` holds stretches from all over the table. Its width follows from their number of rows, and from how much the
    stretches differ among themselves.
    """
    n = ranking.rows.num_rows
    if not ranking.explored.rows:
        # Left out, or about to be refused.
        sample = [scored(batch) for batch in sample]
    parts = [ranking.keyed(batch)[0] for batch in sample]
    key = np.concatenate([np.empty(0, dtype=np.uint64), *(part.key for part in parts)])
    ids = np.concatenate([np.empty(0, dtype=np.int64), *(part.example_id for part in parts)])
    size = len(key)
    if size < 2:
        return None
    share = k / n
    middle = min(size - 1, int(share * size))
    deviation = math.sqrt(size * share * (1 - share))
    if len(parts) > 1:
        cut = np.partition(key, middle)[middle]
        counts = np.array([np.count_nonzero(part.key <= cut) for part in parts], dtype=np.float64)
        spread = counts - counts.sum() / size * np.array([len(part.key) for part in parts])
        deviation = max(deviation, math.sqrt(float(spread @ spread) * len(parts) / (len(parts) - 1)))
    margin = math.ceil(_SIGMAS * deviation) + 8
    first, last = middle - margin, middle + margin
    if (min(last, size) - max(first, 0)) / size * n > limit:
        return None
    ends = [at for at in (first, last) if 0 <= at < size]
    places = dict(zip(ends, np.partition(key, ends)[ends] if ends else (), strict=True))
    return Interval(
        _place(key, ids, first, places[first], ranking.tie) if first in places else (0, 0),
        _place(key, ids, last, places[last], ranking.tie) if last in places else (_ALL, _ALL),
    )


def _place(key: U64, ids: npt.NDArray[np.int64], at: int, found: np.uint64, tie: Tie) -> tuple[int, int]:
    """Return the (key, tie) of row `at` in order, whose key is `found`."""
    ties = np.sort(tie(ids[key == found]))
    return int(found), int(ties[at - np.count_nonzero(key < found)])
