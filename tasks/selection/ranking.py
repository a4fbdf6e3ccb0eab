"""The rows of one selection in order: their keys and ties, and passes over them that count what has no place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import CorruptError
from tasks.hashing import I64, hash64
from tasks.selection.missing import EXPLORE, Missing, is_missing
from tasks.selection.order import U64, kept_first, kept_first_counts, refuse_missing
from tasks.selection.rows import Batch, RowSource, over_pieces
from tasks.selection.threshold import Counted, KeyedRows

I32 = npt.NDArray[np.int32]

# Rows that may wait, undecided, in memory: 20 bytes each.
OPEN_ROWS = 2**20
# What is hashed at once stays in a core's own cache: 4 ns a row, 8 at 2^16.
_HASHED_ROWS = 2**15
_LAST = np.uint64(2**64 - 1)


class Ranking:
    """Order the rows of a source for one seed: by score from its kept end, then by hash.

    `codes_a_group` says how many neighbouring codes make a group, None that all rows are one group. `explored` rows have no
    score and come last; any other NaN is refused.
    """

    def __init__(
        self,
        rows: RowSource,
        seed: int,
        direction: str,
        *,
        codes_a_group: int | None = None,
        explored: Missing,
        policy: str,
        threads: int,
    ) -> None:
        self.rows, self.seed, self.direction, self.codes_a_group = rows, seed, direction, codes_a_group
        self.explored, self.policy, self.threads = explored, policy, threads

    def tie(self, ids: I64) -> U64:
        """Return the hash (N,) that orders rows of one score."""
        return hash64("tie", self.seed, ids)

    def explore(self, ids: I64) -> U64:
        """Return the hash (N,) by which exploration is drawn."""
        if len(ids) <= _HASHED_ROWS:
            return hash64("explore", self.seed, ids)
        out = np.empty(len(ids), dtype=np.uint64)
        for start in range(0, len(ids), _HASHED_ROWS):
            part = slice(start, start + _HASHED_ROWS)
            out[part] = hash64("explore", self.seed, ids[part])
        return out

    def groups(self, code: I32 | None) -> I32 | None:
        """Return the groups (N,) of codes (N,), None where there is one group."""
        if self.codes_a_group is None or code is None:
            return None
        return code if self.codes_a_group == 1 else code // np.int32(self.codes_a_group)

    def keyed(self, batch: Batch) -> tuple[KeyedRows, int]:
        """Return a batch with its keys, and the number of rows without a score."""
        group = self.groups(batch.code)
        if batch.score is None:
            return KeyedRows(np.zeros(len(batch.example_id), dtype=np.uint64), batch.example_id, group), 0
        key, missing = kept_first(batch.score, self.direction)
        if missing and self.explored.rows:
            # The last word of the order, which no number has.
            key[is_missing(batch.score)] = _LAST
        return KeyedRows(key, batch.example_id, group), missing

    def passes(self, count: Callable[[KeyedRows], Counted], needs_ids: bool) -> Iterable[Counted]:
        """Make one pass and yield the counts of its pieces."""
        read = self.rows.read if needs_ids else self.rows.read_keys
        missing = 0

        def work(batches: Iterator[Batch]) -> tuple[Counted | None, int]:
            total: Counted | None = None
            lost = 0
            for batch in batches:
                keyed, nans = self.keyed(batch)
                lost += nans
                part = count(keyed)
                total = part if total is None else total.add(part)
            return total, lost

        for total, lost in over_pieces(self.rows.pieces(), read, work, self.threads):
            missing += lost
            if total is not None:
                yield total
        self.check_missing(missing)

    def check_missing(self, found: int) -> None:
        """Raise InputError or CorruptError where a pass found other rows without a score than there are to be."""
        if found == self.explored.rows:
            return
        if self.policy != EXPLORE:
            refuse_missing(found, self.rows.num_rows)
        raise CorruptError(f"{found} rows without a score were read, {self.explored.rows} counted: the table changed meanwhile")

    def check_seen(self, seen: int) -> None:
        """Raise CorruptError where a pass read other rows than the source announced."""
        if seen != self.rows.num_rows:
            raise CorruptError(f"{seen} rows were read, {self.rows.num_rows} announced: the table changed meanwhile")

    def top_counts(self, histogram: Mapping[Any, int] | None) -> npt.NDArray[np.int64] | None:
        """Return the counts (65536,) of the keys' top 16 bits from another stage's of the scores', None without them."""
        if histogram is None or self.codes_a_group is not None:
            return None
        first = kept_first_counts(histogram, self.direction)
        first[-1] += self.explored.rows
        if int(first.sum()) != self.rows.num_rows:
            raise CorruptError(
                f"the score table's histogram counts {int(first.sum())} rows, the table has {self.rows.num_rows}"
            )
        return first


def count_codes(rows: RowSource, threads: int) -> npt.NDArray[np.int64]:
    """Return how many rows have each code (num_codes,), from one pass where it is not known."""
    known = rows.code_counts
    if known is not None:
        return known
    none = np.zeros(rows.num_codes, dtype=np.int64)

    def count(batches: Iterator[Batch]) -> npt.NDArray[np.int64]:
        return np.asarray(np.sum([none, *(codes_of(batch, rows.num_codes) for batch in batches)], axis=0), dtype=np.int64)

    return np.asarray(np.sum([none, *over_pieces(rows.pieces(), rows.read_keys, count, threads)], axis=0), dtype=np.int64)


def codes_of(batch: Batch, num_codes: int) -> npt.NDArray[np.int64]:
    """Return how many rows of a batch have each code (num_codes,)."""
    if batch.code is None:
        return np.zeros(num_codes, dtype=np.int64)
    return np.bincount(batch.code, minlength=num_codes)
