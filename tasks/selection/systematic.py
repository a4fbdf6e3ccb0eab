"""The drawing in proportion to size: some passes that count, then the rows in ranges of their hash, one range at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cluster.errors import InputError
from tasks.hashing import I64, hash64
from tasks.samplers.pps import LEVELS, MARGIN, ONE, Sizes, TakeAll, even_out, exact_total, systematic, units
from tasks.selection.ranking import Ranking, codes_of
from tasks.selection.rows import Batch, over_pieces

F64 = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int32]
Result = TypeVar("Result")

# Rows of one range of the hash, in memory together at some 70 bytes each.
_RANGE_ROWS = 2**22


@dataclass(frozen=True)
class Sample:
    """Hold the ids of either arm, ascending, the probability of each explored one, and the counts by class (K,)."""

    signal_id: I64
    explore_id: I64
    explore_prob: F64
    full: I64
    signal_counts: I64
    explore_counts: I64


@dataclass(frozen=True)
class _Rest:
    """Hold what all rows that are not certain share."""

    least: int
    draws: int
    total: int
    even: int
    more: int


def _values(batch: Batch) -> npt.NDArray[Any]:
    assert batch.score is not None
    return batch.score


class SystematicDrawing:
    """Draw m rows of a source by one start; `ranking` says in which order its rows lie."""

    def __init__(self, ranking: Ranking, m: int, floor: float) -> None:
        self.ranking, self.rows, self.m, self.floor = ranking, ranking.rows, m, floor
        self.n = ranking.rows.num_rows

    def run(self) -> Sample:
        """Return the sample. Raises InputError on scores that are no sizes, with their count."""
        plain = Sizes(self._greatest(), self.floor)
        total = sum(self._pass(lambda batch: exact_total(plain.plain(_values(batch)))))
        sizes = plain.raise_by(total, self.n)
        return self._draw(sizes, self._rest(sizes))

    def _pass(self, work: Callable[[Batch], Result], *, ids: bool = False) -> Iterator[Result]:
        read = self.rows.read if ids else self.rows.read_keys
        for results in over_pieces(
            self.rows.pieces(), read, lambda batches: [work(batch) for batch in batches], self.ranking.threads
        ):
            yield from results

    def _greatest(self) -> float:
        def look(batch: Batch) -> tuple[int, int, int, int, float]:
            _, missing = self.ranking.keyed(batch)
            scores = _values(batch).astype(np.float64)
            infinite = int(np.count_nonzero(np.isinf(scores)))
            return len(scores), missing, infinite, int(np.count_nonzero(scores < 0)), float(np.max(scores, initial=0.0))

        seen = list(self._pass(look))
        self.ranking.check_missing(sum(one[1] for one in seen))
        self.ranking.check_seen(sum(one[0] for one in seen))
        infinite, negative = sum(one[2] for one in seen), sum(one[3] for one in seen)
        if infinite or negative:
            raise InputError(
                f"protocol pps: {negative} of {self.n} scores are negative and {infinite} infinite, and a score is the size that "
                "inclusion is in proportion to; give a column mapped by a monotone function to finite numbers from 0 on"
            )
        return max(one[4] for one in seen)

    def _rest(self, sizes: Sizes) -> _Rest:
        """Return which sizes are certain, and how the others' probabilities are rounded to add up to what is left."""
        if self.m == self.n:
            return _Rest(0, 0, 0, 0, 0)
        certain = TakeAll(self.m, int(sizes.of(np.array([sizes.greatest]))[0]))
        while certain.level < LEVELS:
            certain.narrow(reduce(np.add, self._pass(lambda batch: certain.count(sizes.of(_values(batch))))))
        least = certain.least

        def sums(batch: Batch) -> tuple[int, int]:
            size = sizes.of(_values(batch))
            rest = size[size < least]
            return len(rest), exact_total(rest)

        seen = list(self._pass(sums))
        count, total = sum(one[0] for one in seen), sum(one[1] for one in seen)
        draws = self.m - (self.n - count)

        def rounded(batch: Batch) -> tuple[int, int]:
            size = sizes.of(_values(batch))
            found = units(size[size < least], draws, total) if total else np.zeros(0, dtype=np.int64)
            return int(np.count_nonzero(found < MARGIN)), exact_total(found)

        seen = list(self._pass(rounded))
        never = sum(one[0] for one in seen) if total else count
        if never:
            raise InputError(
                f"protocol pps: {never} of {self.n} scores are 0, or so small beside the greatest that they are never drawn, "
                "and no weight makes the estimate unbiased for them; give a floor above 0 (--param floor=0.1)"
            )
        even, more = even_out(sum(one[1] for one in seen), draws, count)
        return _Rest(least, draws, total, even, more)

    def _draw(self, sizes: Sizes, rest: _Rest) -> Sample:
        ranges = -(-self.n // _RANGE_ROWS)
        classes = self.rows.num_codes
        signal: list[I64] = []
        explore: list[I64] = []
        chances: list[F64] = []
        counts = np.zeros((3, classes), dtype=np.int64)
        before = int(hash64("start", self.ranking.seed, np.zeros(1, dtype=np.int64))[0]) % ONE
        passed = 0
        for number in range(ranges):
            first, last = number * 2**64 // ranges, (number + 1) * 2**64 // ranges - 1

            def look(batch: Batch, first: int = first, last: int = last) -> tuple[I64, I64, Codes | None, I64]:
                place = self.ranking.explore(batch.example_id)
                inside = (place >= np.uint64(first)) & (place <= np.uint64(last))
                code = None if batch.code is None else batch.code[inside]
                return batch.example_id[inside], sizes.of(_values(batch)[inside]), code, codes_of(batch, classes)

            found = list(self._pass(look, ids=True))
            if number == 0:
                counts[0] = np.sum([one[3] for one in found], axis=0)
            ids, size = (np.concatenate([one[part] for one in found]) for part in (0, 1))
            codes = [one[2] for one in found if one[2] is not None]
            code = np.concatenate(codes) if codes else None
            certain = size >= rest.least
            signal.append(ids[certain])
            left = np.flatnonzero(~certain)
            left = left[np.argsort(self.ranking.explore(ids[left]))]
            if len(left):
                chance = units(size[left], rest.draws, rest.total) + rest.even
                chance[: max(0, rest.more - passed)] += 1
                drawn = systematic(chance, before)
                before, passed = (before + exact_total(chance)) % ONE, passed + len(left)
                explore.append(ids[left[drawn]])
                chances.append(chance[drawn] / ONE)
                left = left[drawn]
            if code is not None:
                counts[1] += np.bincount(code[certain], minlength=classes)
                counts[2] += np.bincount(code[left], minlength=classes)
        explored = np.concatenate([np.zeros(0, dtype=np.int64), *explore])
        order = np.argsort(explored, kind="stable")
        chances_of = np.concatenate([np.zeros(0), *chances])[order]
        return Sample(np.sort(np.concatenate(signal)), explored[order], chances_of, counts[0], counts[1], counts[2])
