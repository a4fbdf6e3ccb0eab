"""What the score table says of its columns: ranges, counts by the top sortable bits and in bins, rank correlations of seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.record import Part
from cluster.storage import Store
from tasks.hashing import hash64
from tasks.selection.order import DIGIT_BITS, sortable_bits
from tasks.tables import load_part

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Ranges = Mapping[str, tuple[float, float]]
"""The least and the greatest value of each column; a column without rows is not in it."""

BINS = 64
# Ids whose hashes stay in a core's cache: twice as fast as all at once.
CHUNK = 2**15


def part_ranges(store: Store, columns: Sequence[str], part: Part) -> Ranges:
    """Return the ranges of a part's columns as its footer states them, without reading its rows."""
    try:
        with store.open(part.name) as file:
            found = _stated(pq.read_metadata(file), columns)
    except (pa.ArrowInvalid, OSError):
        # Read whole, it is held against its seal, which says what is wrong with it.
        found = None
    if found is None:
        table = load_part(store, part, list(columns))
        found = ranges_of({name: table.column(name).to_numpy() for name in columns})
    return found


def _stated(metadata: Any, columns: Sequence[str]) -> Ranges | None:
    """Return the ranges in a Parquet footer, None where it has no statistics of a column."""
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = {group.column(at).path_in_schema: group.column(at).statistics for at in range(group.num_columns)}
        for name in columns if group.num_rows else ():
            found = chunks.get(name)
            if found is None or not found.has_min_max:
                return None
            low[name], high[name] = min(found.min, low.get(name, found.min)), max(found.max, high.get(name, found.max))
    return {name: (low[name], high[name]) for name in low}


def ranges_of(columns: Mapping[str, F32]) -> Ranges:
    """Return the ranges of columns; NaN where a value is NaN."""
    # Adding 0.0 makes 0.0 of -0.0: which of the two comes first is a matter of the shards.
    return {name: (float(values.min()) + 0.0, float(values.max()) + 0.0) for name, values in columns.items() if len(values)}


def wider(one: Ranges, other: Ranges) -> dict[str, tuple[float, float]]:
    """Return the ranges of two sets of rows together."""
    both = {name: (min(low, other[name][0]), max(high, other[name][1])) for name, (low, high) in one.items() if name in other}
    return {**other, **one, **both}


class Counts:
    """Count the finite float32 values (N,) of a column in one pass, by the top 16 of their 32 bits.

    All values that share these share most of what is asked of them; only the others are looked at one by one. 1e6 rows take
    4 ms where sorting their sortable bits takes 80 ms and numpy.histogram 15 ms.
    """

    def __init__(self, values: F32) -> None:
        self.values = values
        self._codes = np.ascontiguousarray(values, dtype="<f4").view("<u2")[1::2]
        counts = np.bincount(self._codes, minlength=2**16)
        self._there = np.flatnonzero(counts).astype(np.uint32)
        self._counts = counts[self._there]
        # The first value of each code: the one nearest to zero.
        self._first = (self._there << np.uint32(16)).view(np.float32)

    def _apart(self, alone: npt.NDArray[np.bool_]) -> F32:
        """Return the values whose codes, among those there are, are marked."""
        mark = np.zeros(2**16, dtype=bool)
        mark[self._there[alone]] = True
        return self.values[mark.take(self._codes)] if alone.any() else self.values[:0]

    def digits(self) -> dict[int, int]:
        """Return how many values have each top 16 bits of `sortable_bits`: those that occur, ascending."""
        # Below the least normal number float64 has an exponent of its own for each value.
        tiny = (self._there & 0x7F80) == 0
        rest = self._apart(tiny)
        rest, zeros = rest[rest != 0], len(rest) - int(np.count_nonzero(rest))
        values = np.concatenate([self._first[~tiny], rest, np.zeros(1, np.float32)])
        weights = np.concatenate([self._counts[~tiny], np.ones(len(rest), np.int64), [zeros]])
        digits, at = np.unique(sortable_bits(values) >> np.uint64(64 - DIGIT_BITS), return_inverse=True)
        sums = np.zeros(len(digits), np.int64)
        np.add.at(sums, at, weights)
        return {digit: count for digit, count in zip(digits.tolist(), sums.tolist()) if count}

    def bins(self, low: float, high: float) -> I64:
        """Return counts (BINS,) of the values, all in [low, high], in equal bins, those that numpy.histogram gives.

        A bin holds its lower edge, the last one both; the bins of one value alone are those of a range of 1 around it.
        """
        if low == high:
            counts = np.zeros(BINS, np.int64)
            counts[BINS // 2] = len(self.values)
            return counts
        edges = np.linspace(low, high, BINS + 1)[1:-1]
        # A value is at or above an edge where it is at or above the next float32.
        above = edges.astype(np.float32)
        above = np.where(above < edges, np.nextafter(above, np.float32(np.inf)), above)
        split = np.isin(self._there, above.view(np.uint32) >> np.uint32(16))
        bins = np.searchsorted(edges, self._first[~split], side="right")
        counts = np.histogram(self._apart(split).astype(np.float64), BINS, (low, high))[0].astype(np.int64)
        np.add.at(counts, bins, self._counts[~split])
        return counts


def sampled_rows(ids: I64, share: float) -> I64:
    """Return the rows (M,) whose ids are in the hash sample of a share of all: a function of the ids alone."""
    if share >= 1:
        return np.arange(len(ids))
    limit = np.uint64(int(share * 2.0**64))
    starts = range(0, len(ids), CHUNK)
    found = [np.flatnonzero(hash64("rank-sample", 0, ids[at : at + CHUNK]) < limit) + at for at in starts]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def seed_columns(columns: Sequence[str]) -> dict[str, list[str]]:
    """Return the columns of single proxies by score, for scores of two proxies or more."""
    out: dict[str, list[str]] = {}
    for name in columns:
        of_seeds = [f"{name}_s{number}" for number in range(len(columns)) if f"{name}_s{number}" in columns]
        if len(of_seeds) > 1:
            out[name] = of_seeds
    return out


def spearman(columns: Sequence[npt.NDArray[Any]]) -> list[list[float | None]]:
    """Return the matrix of Spearman correlations to 6 decimals, ties at their mean rank; null where a column is constant."""
    ranks = []
    for column in columns:
        centred = _mean_ranks(column)
        centred -= centred.mean() if len(centred) else 0.0
        length = float(np.sqrt(centred @ centred))
        ranks.append(centred / length if length > 0 else None)
    return [
        [None if one is None or other is None else round(float(one @ other), 6) for other in ranks] for one in ranks
    ]


def _mean_ranks(column: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the rank of each value from 1, the mean of theirs for equal values."""
    _, at, counts = np.unique(column, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[at]
    return ranks
