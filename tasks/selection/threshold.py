"""Exact thresholds out of core: the k smallest rows by (key, tie), found by radix histograms over repeated passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.hashing import I64
from tasks.selection.order import DIGIT_BITS, DIGITS, U64

I32 = npt.NDArray[np.int32]
Tie = Callable[[I64], U64]
Bools = npt.NDArray[np.bool_]

_LEVELS = 8
_KEY_LEVELS = 4
_ALL = 2**64 - 1
_SLICE = 2**17
_SORTED_ROWS = 2**14


@dataclass(frozen=True)
class KeyedRows:
    """Hold rows to be ordered: key (N,) uint64, example_id (N,) int64, group (N,) int32 or None where there is one."""

    key: U64
    example_id: I64
    group: I32 | None = None

    def part(self, start: int, stop: int) -> KeyedRows:
        """Return a range of the rows, sharing their memory."""
        group = None if self.group is None else self.group[start:stop]
        return KeyedRows(self.key[start:stop], self.example_id[start:stop], group)


def last_resort(ids: I64) -> U64:
    """Return the ids, their sign bit flipped: the tie of an order by hash, which is a bijection of the id."""
    return ids.view(np.uint64) ^ np.uint64(1 << 63)


class Bounds:
    """Hold, for each group, the interval of (key, tie) in which its threshold lies.

    Rows below the interval are among the `k` smallest of the group, rows above are not, `rank` of the `inside` rows
    within it are. An interval narrows by 16 bits of key or tie a pass; for a group of equal keys it narrows in the tie.
    """

    def __init__(self, k: Sequence[int], sizes: Sequence[int]) -> None:
        groups = len(k)
        self.rank = np.array(k, dtype=np.int64)
        self.inside = np.array(sizes, dtype=np.int64)
        self.low_key = np.zeros(groups, dtype=np.uint64)
        self.high_key = np.full(groups, _ALL, dtype=np.uint64)
        self.low_tie = np.zeros(groups, dtype=np.uint64)
        self.high_tie = np.full(groups, _ALL, dtype=np.uint64)
        self.level = 0

    @property
    def groups(self) -> int:
        """Return the number of groups."""
        return len(self.rank)

    @property
    def open_rows(self) -> int:
        """Return how many rows lie within the intervals of groups whose interval still divides them."""
        return int(self.inside[self._divided].sum())

    @property
    def _divided(self) -> Bools:
        return (self.rank > 0) & (self.rank < self.inside)

    @property
    def needs_ids(self) -> bool:
        """Return whether the next digit to count is of the tie."""
        return self.level >= _KEY_LEVELS

    def classify(self, rows: KeyedRows, tie: Tie) -> tuple[Bools, Bools]:
        """Return (below, inside), both (N,): whether a row is surely among the smallest, or may be."""
        if rows.group is None:
            low, high = self.low_key[0], self.high_key[0]
        else:
            low, high = self.low_key[rows.group], self.high_key[rows.group]
        below = rows.key < low
        inside = rows.key <= high
        inside &= ~below
        group = 0 if rows.group is None else rows.group
        if self.level > _KEY_LEVELS:
            at = np.flatnonzero(inside)
            ties = tie(rows.example_id[at])
            of = 0 if rows.group is None else rows.group[at]
            early = ties < self.low_tie[of]
            below[at[early]] = True
            inside[at[early | (ties > self.high_tie[of])]] = False
        # An interval that is taken whole, or not at all, has nothing to settle.
        below |= inside & (self.rank == self.inside)[group]
        inside &= self._divided[group]
        return below, inside

    def _digit(self, words: U64) -> npt.NDArray[np.int64]:
        shift = np.uint64(64 - DIGIT_BITS * (self.level % _KEY_LEVELS + 1))
        return ((words >> shift) & np.uint64(DIGITS - 1)).astype(np.int64)

    def count(self, rows: KeyedRows, tie: Tie) -> Counted:
        """Return the counts by (group, next digit) of the rows inside, and the range of their keys."""
        if self.level == 0:
            key, ids, group = rows.key, rows.example_id, rows.group
        else:
            _, inside = self.classify(rows, tie)
            key, ids = rows.key[inside], rows.example_id[inside]
            group = None if rows.group is None else rows.group[inside]
        digits = self._digit(key if self.level < _KEY_LEVELS else tie(ids))
        if group is None:
            codes = np.arange(DIGITS)
            counts = np.bincount(digits, minlength=DIGITS)
        else:
            codes, counts = np.unique(group.astype(np.int64) * DIGITS + digits, return_counts=True)
        if not len(key):
            return Counted(codes, counts, _ALL, 0)
        return Counted(codes, counts, int(key.min()), int(key.max()))

    def narrow(self, counted: Counted) -> None:
        """Narrow every interval to the digit in which its threshold lies. Groups without rows stay as they are."""
        group_of = counted.codes // DIGITS
        edges = np.searchsorted(group_of, np.arange(self.groups + 1))
        on_key = self.level < _KEY_LEVELS
        shift = 64 - DIGIT_BITS * (self.level % _KEY_LEVELS + 1)
        low, high = (self.low_key, self.high_key) if on_key else (self.low_tie, self.high_tie)
        for group in range(self.groups):
            part = slice(edges[group], edges[group + 1])
            counts = counted.counts[part]
            if not counts.sum():
                continue
            running = np.cumsum(counts)
            # The first digit whose running count reaches the rank; rank 0 lands before the first row.
            at = int(np.searchsorted(running, self.rank[group], side="left"))
            digit = int(counted.codes[part][at]) % DIGITS
            self.rank[group] -= int(running[at] - counts[at])
            self.inside[group] = int(counts[at])
            start = int(low[group]) | (digit << shift)
            low[group], high[group] = start, start | ((1 << shift) - 1)
        self.level += 1
        if on_key and self.groups == 1 and counted.low_key == counted.high_key:
            # One value in all the interval: the rest of the key has nothing to tell, go on with the tie.
            self.low_key[0] = self.high_key[0] = counted.low_key
            self.level = _KEY_LEVELS

    def settle(self, rows: KeyedRows, tie: Tie) -> Bools:
        """Return which of the inside rows (N,), all of them given at once, are among the smallest.

        Narrows further in memory until few rows are left to sort.
        """
        parts = [rows.part(start, start + _SLICE) for start in range(0, len(rows.key), _SLICE)]
        while self.open_rows > _SORTED_ROWS and self.level < _LEVELS:
            self.narrow(counted(self.count(part, tie) for part in parts))
        chosen = np.zeros(len(rows.key), dtype=np.bool_)
        left: list[npt.NDArray[np.int64]] = []
        for number, part in enumerate(parts):
            below, inside = self.classify(part, tie)
            chosen[number * _SLICE : number * _SLICE + len(below)] = below
            left.append(np.flatnonzero(inside) + number * _SLICE)
        if not left:
            return chosen
        at = np.concatenate(left)
        group = np.zeros(len(at), dtype=np.int32) if rows.group is None else rows.group[at]
        ids = rows.example_id[at]
        order = np.lexsort((ids, tie(ids), rows.key[at], group))
        sizes = np.bincount(group, minlength=self.groups)
        starts = np.cumsum(sizes) - sizes
        place = np.arange(len(order)) - starts[group[order]]
        chosen[at[order[place < self.rank[group[order]]]]] = True
        return chosen


@dataclass
class Counted:
    """Hold counts by code = group * 65536 + digit (ascending codes), and the smallest and largest key counted."""

    codes: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    low_key: int
    high_key: int

    def add(self, other: Counted) -> Counted:
        """Return both together."""
        low, high = min(self.low_key, other.low_key), max(self.high_key, other.high_key)
        if len(self.codes) == len(other.codes) and np.array_equal(self.codes, other.codes):
            return Counted(self.codes, self.counts + other.counts, low, high)
        codes, where = np.unique(np.concatenate([self.codes, other.codes]), return_inverse=True)
        counts = np.zeros(len(codes), dtype=np.int64)
        np.add.at(counts, where, np.concatenate([self.counts, other.counts]))
        return Counted(codes, counts, low, high)


def counted(parts: Iterable[Counted]) -> Counted:
    """Return all counts of a pass together."""
    total: Counted | None = None
    for part in parts:
        total = part if total is None else total.add(part)
    if total is None:
        return Counted(np.arange(DIGITS), np.zeros(DIGITS, dtype=np.int64), _ALL, 0)
    return total


def given_counts(counts: npt.NDArray[np.int64]) -> Counted:
    """Return a first pass that another stage has counted already: counts (65536,) of the keys' top 16 bits."""
    return Counted(np.arange(DIGITS), counts, 0, _ALL)


def find_bounds(
    k: Sequence[int],
    sizes: Sequence[int],
    passes: Callable[[Callable[[KeyedRows], Counted], bool], Iterable[Counted]],
    tie: Tie,
    limit: int,
    *,
    first: npt.NDArray[Any] | None = None,
) -> Bounds:
    """Return bounds within which at most `limit` rows are left to settle (in all groups together).

    `passes(count, needs_ids)` makes one pass over all rows and yields counts of its pieces; without `needs_ids` it may
    leave the ids zero. `first` are the counts (65536,) of the
    keys' top digit where they are known, one group only. At most 8 passes; 1 or 2 for scores that mostly differ.
    """
    bounds = Bounds(k, sizes)
    if first is not None and bounds.open_rows > 0:
        bounds.narrow(given_counts(first))
    while bounds.open_rows > limit and bounds.level < _LEVELS:
        bounds.narrow(counted(passes(lambda rows: bounds.count(rows, tie), bounds.needs_ids)))
    return bounds
