"""A slice of the ranking as rows of its own: cut exactly at two places, its score range known, its cells counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import InputError
from tasks.hashing import I64
from tasks.samplers.ccs import stratum_of
from tasks.selection.order import value_of
from tasks.selection.ranking import OPEN_ROWS, Ranking, codes_of
from tasks.selection.rows import Batch, RowSource, over_pieces
from tasks.selection.threshold import Bounds, KeyedRows, find_bounds

Bools = npt.NDArray[np.bool_]


@dataclass
class _Waiting:
    """Hold the rows of a pass that one cut leaves undecided."""

    ids: list[I64]
    keys: list[npt.NDArray[np.uint64]]


@dataclass
class _Seen:
    """Hold what a piece gives in the pass that settles the cuts; keys are those of rows surely in the slice."""

    rows: int
    missing: int
    infinite: int
    codes: npt.NDArray[np.int64]
    low_key: int
    high_key: int
    waiting: list[_Waiting]


class Cut:
    """Tell the first `k` rows of a ranking from the others, to the row: by the interval, and by id within it."""

    def __init__(self, ranking: Ranking, k: int, first: npt.NDArray[np.int64] | None) -> None:
        self.ranking = ranking
        sizes = [ranking.rows.num_rows]
        # All rows or none lie before such a cut, whatever their keys.
        self.whole = k == sizes[0] if k in (0, sizes[0]) else None
        limit = max(OPEN_ROWS, k // 2)
        self.bounds: Bounds = find_bounds([k], sizes, ranking.passes, ranking.tie, limit, first=first)
        self.taken: I64 = np.empty(0, dtype=np.int64)

    def sure(self, keyed: KeyedRows) -> tuple[Bools, Bools]:
        """Return (before the cut, undecided), both (N,)."""
        if self.whole is not None:
            return np.full(len(keyed.key), self.whole), np.zeros(len(keyed.key), dtype=np.bool_)
        return self.bounds.classify(keyed, self.ranking.tie)

    def settle(self, keyed: KeyedRows) -> None:
        """Decide the undecided rows, all of them given at once."""
        if not len(keyed.key):
            return
        self.taken = np.sort(keyed.example_id[self.bounds.settle(keyed, self.ranking.tie)])

    def before(self, keyed: KeyedRows) -> Bools:
        """Return which rows (N,) lie before the cut."""
        before, inside = self.sure(keyed)
        if len(self.taken):
            at = np.flatnonzero(inside)
            ids = keyed.example_id[at]
            place = np.minimum(np.searchsorted(self.taken, ids), len(self.taken) - 1)
            before[at] = self.taken[place] == ids
        return before


class Slice:
    """Hold the rows from `start` to `stop` of a ranking, the least and greatest score among them, and all rows by code.

    `finite` refuses infinite scores, with their count.
    """

    def __init__(
        self, ranking: Ranking, start: int, stop: int, first: npt.NDArray[np.int64] | None, *, finite: bool
    ) -> None:
        self.ranking, self.start, self.stop, self.finite = ranking, start, stop, finite
        self.cuts = [Cut(ranking, k, first) for k in (start, stop)]
        self.codes = np.zeros(ranking.rows.num_codes, dtype=np.int64)
        self.low, self.high = self._settle()

    def inside(self, keyed: KeyedRows) -> Bools:
        """Return which rows (N,) lie in the slice."""
        return self.cuts[1].before(keyed) & ~self.cuts[0].before(keyed)

    def _look(self, batches: Iterator[Batch]) -> _Seen:
        num_codes = self.ranking.rows.num_codes
        out = _Seen(0, 0, 0, np.zeros(num_codes, dtype=np.int64), 2**64 - 1, 0, [_Waiting([], []), _Waiting([], [])])
        for batch in batches:
            keyed, missing = self.ranking.keyed(batch)
            out.rows += len(keyed.key)
            out.missing += missing
            out.codes += codes_of(batch, num_codes)
            if self.finite and batch.score is not None and batch.score.dtype.kind == "f":
                out.infinite += int(np.count_nonzero(np.isinf(batch.score)))
            dropped, low_open = self.cuts[0].sure(keyed)
            before, high_open = self.cuts[1].sure(keyed)
            for waiting, open_rows in zip(out.waiting, (low_open, high_open)):
                waiting.ids.append(keyed.example_id[open_rows])
                waiting.keys.append(keyed.key[open_rows])
            keys = keyed.key[before & ~dropped & ~low_open]
            if len(keys):
                out.low_key, out.high_key = min(out.low_key, int(keys.min())), max(out.high_key, int(keys.max()))
        return out

    def _settle(self) -> tuple[float, float]:
        rows, ranking = self.ranking.rows, self.ranking
        seen = list(over_pieces(rows.pieces(), rows.read, self._look, ranking.threads))
        ranking.check_missing(sum(one.missing for one in seen))
        ranking.check_seen(sum(one.rows for one in seen))
        self.codes = np.sum([self.codes, *(one.codes for one in seen)], axis=0, dtype=np.int64)
        infinite = sum(one.infinite for one in seen)
        if infinite:
            raise InputError(
                f"{infinite} of {rows.num_rows} scores are infinite: they have no place among strata of equal width; mend "
                "them, or use band, which only ranks"
            )
        waiting = []
        for number, cut in enumerate(self.cuts):
            empty = np.empty(0, dtype=np.int64)
            keyed = KeyedRows(
                np.concatenate([empty.view(np.uint64), *(key for one in seen for key in one.waiting[number].keys)]),
                np.concatenate([empty, *(ids for one in seen for ids in one.waiting[number].ids)]),
            )
            cut.settle(keyed)
            waiting.append(keyed)
        keys = [key for one in seen for key in (one.low_key, one.high_key) if one.low_key <= one.high_key]
        for keyed in waiting:
            # Rows that waited at one cut may lie before or behind the other.
            found = keyed.key[self.inside(keyed)]
            keys += [int(found.min()), int(found.max())] if len(found) else []
        ends = [value_of(key ^ (2**64 - 1) if ranking.direction == "high" else key) for key in (min(keys), max(keys))]
        return min(ends), max(ends)


class SliceRows:
    """Give the rows of a slice, without scores; a row's code is its cell: stratum times classes plus class."""

    has_scores = False

    def __init__(self, of: Slice, strata: int, classes: int) -> None:
        self.of, self.strata, self.classes = of, strata, classes
        self.num_rows = of.stop - of.start
        self.num_codes = strata * max(1, classes)
        # Known only after a pass.
        self.code_counts: I64 | None = None

    def pieces(self) -> Sequence[Any]:
        """Return the pieces of the whole table."""
        return self._source.pieces()

    @property
    def _source(self) -> RowSource:
        return self.of.ranking.rows

    def read(self, piece: Any) -> Iterator[Batch]:
        """Yield the rows of a piece that lie in the slice."""
        for batch in self._source.read(piece):
            keyed, _ = self.of.ranking.keyed(batch)
            inside = self.of.inside(keyed)
            ids = batch.example_id[inside]
            cell = np.zeros(len(ids), dtype=np.int32)
            if self.strata > 1 and batch.score is not None:
                cell = stratum_of(batch.score[inside], self.of.low, self.of.high, self.strata).astype(np.int32)
            if self.classes and batch.code is not None:
                cell = cell * np.int32(self.classes) + batch.code[inside]
            yield Batch(ids, None, cell)

    def read_keys(self, piece: Any) -> Iterator[Batch]:
        """Yield as `read` does: whether a row lies in the slice may hang on its id."""
        return self.read(piece)
