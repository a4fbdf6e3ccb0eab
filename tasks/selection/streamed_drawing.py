"""The drawing of one group: one pass finds the rows of both arms, a few open ones are decided after it, none are held.

Bounded memory: chosen rows go to a spool, and only rows near either end (signal's last score, exploration's last hash) wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from cluster.errors import CorruptError
from tasks.hashing import I64
from tasks.samplers.design import Budget
from tasks.selection.interval import Interval, guess, interval_of
from tasks.selection.order import U64
from tasks.selection.ranking import OPEN_ROWS, Ranking, codes_of
from tasks.selection.rows import Batch, over_pieces
from tasks.selection.spool import DROPPED, EXPLORE, OPEN, SIGNAL, U8, Spool
from tasks.selection.threshold import Bools, Bounds, KeyedRows, find_bounds, last_resort

I32 = npt.NDArray[np.int32]
Sampler = Callable[[], Sequence[Batch]]

# Margin of the exploration's cuts, in standard deviations: too small once in 10^9 selections, and then widened.
_SIGMAS = 6.0
_ALL = 2**64 - 1


@dataclass(frozen=True)
class StreamedDraw:
    """Hold the rows drawn as a spool with the states of its open rows, the counts by code, and the last key of the signal."""

    spool: Spool
    decided: U8
    full: I64
    signal_counts: I64
    explore_counts: I64
    top: int

    def counts(self) -> tuple[I64, I64, I64]:
        """Return the rows of each code (num_codes,): all, signal, exploration."""
        return self.full, self.signal_counts, self.explore_counts


@dataclass
class _Found:
    """Hold what one piece gives: counts by code of all rows and of either arm, and the open rows, decided later."""

    counts: I64
    signal_counts: I64
    explore_counts: I64
    rows: int = 0
    missing: int = 0
    ids: list[I64] = field(default_factory=list)
    states: list[U8] = field(default_factory=list)
    signal: int = 0
    explored: int = 0
    top: int = 0
    open_id: list[I64] = field(default_factory=list)
    open_key: list[U64] = field(default_factory=list)
    open_inside: list[Bools] = field(default_factory=list)
    open_code: list[I32] = field(default_factory=list)

    def add(self, other: _Found) -> None:
        """Take up what another piece gives, but for the rows of the spool."""
        self.counts = self.counts + other.counts
        self.signal_counts = self.signal_counts + other.signal_counts
        self.explore_counts = self.explore_counts + other.explore_counts
        self.rows, self.missing = self.rows + other.rows, self.missing + other.missing
        self.signal, self.explored = self.signal + other.signal, self.explored + other.explored
        self.top = max(self.top, other.top)
        self.open_id += other.open_id
        self.open_key += other.open_key
        self.open_inside += other.open_inside
        self.open_code += other.open_code


def _nothing(codes: int) -> _Found:
    zero = np.zeros(codes, dtype=np.int64)
    return _Found(zero, zero.copy(), zero.copy())


@dataclass(frozen=True)
class _Cuts:
    """Hold the hashes up to which a row of the complement is surely explored (None: none is), and may be."""

    sure: int | None
    most: int | None


class StreamedDrawing:
    """Carry out one selection of one group. `sample` gives some rows of the table: with them one pass is enough."""

    def __init__(self, ranking: Ranking, budget: Budget, sample: Sampler | None = None) -> None:
        self.ranking, self.rows, self.budget, self.sample = ranking, ranking.rows, budget, sample

    def run(self, first: npt.NDArray[np.int64] | None = None) -> StreamedDraw:
        """Return the rows drawn. `first` are the counts (65536,) of the keys' top digit where they are known."""
        interval, guessed = self._interval(first)
        sigmas = _SIGMAS
        while True:
            drawn = self._draw(interval, sigmas)
            if isinstance(drawn, StreamedDraw):
                return drawn
            if drawn == "signal":
                if not guessed:
                    raise CorruptError(
                        f"the {self.budget.signal} signal rows do not end where they were counted to end: the score table does "
                        "not agree with its histogram, or changed meanwhile"
                    )
                interval, guessed = self._counted(first), False
            else:
                sigmas *= 4

    def _interval(self, first: npt.NDArray[np.int64] | None) -> tuple[Interval, bool]:
        """Return where the signal ends, and whether that is a guess."""
        if self.budget.signal in (0, self.budget.n):
            return Interval(whole=self.budget.signal > 0), False
        if self.sample is not None and self.budget.n > OPEN_ROWS:
            guessed = guess(self.sample(), self.ranking, self.budget.signal, 4 * OPEN_ROWS)
            if guessed is not None:
                return guessed, True
        return self._counted(first), False

    def _counted(self, first: npt.NDArray[np.int64] | None) -> Interval:
        # Counts that are there already save the pass that would narrow further.
        limit = OPEN_ROWS if first is None else 4 * OPEN_ROWS
        signal, size = [self.budget.signal], [self.budget.n]
        bounds = find_bounds(signal, size, self.ranking.passes, self.ranking.tie, limit, first=first)
        return interval_of(bounds)

    def _cuts(self, sigmas: float) -> _Cuts:
        if not self.budget.exploration:
            return _Cuts(None, None)
        margin = sigmas * math.sqrt(self.budget.exploration) + 64
        shares = [(self.budget.exploration + side * margin) / self.budget.complement for side in (-1, 1)]
        if self.budget.exploration == self.budget.complement:
            return _Cuts(_ALL, _ALL)
        most = _ALL if shares[1] >= 1 else int(shares[1] * 2.0**64)
        return _Cuts(None if shares[0] <= 0 else min(most, int(shares[0] * 2.0**64)), max(0, most))

    def _find(self, batches: Iterator[Batch], interval: Interval, cuts: _Cuts) -> _Found:
        out = _nothing(self.rows.num_codes)
        for batch in batches:
            out.rows += len(batch.example_id)
            out.counts += codes_of(batch, self.rows.num_codes)
            if batch.score is not None and batch.score.dtype.kind == "f":
                out.missing += int(np.count_nonzero(np.isnan(batch.score)))
            some, hashes = self._near(batch, interval, cuts)
            keyed, _ = self.ranking.keyed(some)
            signal, inside = interval.classify(keyed, self.ranking.tie)
            states = np.full(len(signal), DROPPED, dtype=np.uint8)
            if hashes is not None and cuts.most is not None:
                np.copyto(states, OPEN, where=hashes <= np.uint64(cuts.most))
                if cuts.sure is not None:
                    np.copyto(states, EXPLORE, where=hashes <= np.uint64(cuts.sure))
            np.copyto(states, OPEN, where=inside)
            np.copyto(states, SIGNAL, where=signal)
            out.top = max(out.top, int(np.max(keyed.key, where=signal, initial=0)))
            self._take(some, keyed, inside, states, out)
        return out

    def _near(self, batch: Batch, interval: Interval, cuts: _Cuts) -> tuple[Batch, U64 | None]:
        """Return the rows of a batch that may be chosen, and perhaps others, with the hashes that exploration asks for."""
        ids, score, code = batch.example_id, batch.score, batch.code
        near: Bools | None = None
        if score is None or score.dtype.kind == "f":
            none = interval.whole is False
            near = np.zeros(len(ids), dtype=np.bool_) if none else interval.reach(score, self.ranking.direction)
        hashes = self.ranking.explore(ids) if cuts.most is not None else None
        if near is None:
            return batch, hashes
        if hashes is not None and cuts.most is not None:
            near |= hashes <= np.uint64(cuts.most)
        # A tenth of the rows, as a rule: all that follows costs a tenth.
        at = np.flatnonzero(near)
        some = Batch(ids[at], None if score is None else score[at], None if code is None else code[at])
        return some, None if hashes is None else hashes[at]

    def _take(self, some: Batch, keyed: KeyedRows, inside: Bools, states: U8, out: _Found) -> None:
        counts = np.bincount(states, minlength=DROPPED + 1).tolist()
        out.signal += counts[SIGNAL]
        out.explored += counts[EXPLORE]
        if counts[OPEN]:
            opened = np.flatnonzero(states == OPEN)
            out.open_id.append(some.example_id[opened])
            out.open_key.append(keyed.key[opened])
            out.open_inside.append(inside[opened])
            if some.code is not None:
                out.open_code.append(some.code[opened])
        if some.code is not None:
            out.signal_counts += np.bincount(some.code[states == SIGNAL], minlength=self.rows.num_codes)
            out.explore_counts += np.bincount(some.code[states == EXPLORE], minlength=self.rows.num_codes)
        if counts[DROPPED]:
            kept = np.flatnonzero(states != DROPPED)
            out.ids.append(some.example_id[kept])
            out.states.append(states[kept])
        else:
            out.ids.append(some.example_id)
            out.states.append(states)

    def _draw(self, interval: Interval, sigmas: float) -> StreamedDraw | str:
        """Make the pass that finds the rows; return the draw, or the name of the arm that ends where it was not expected to."""
        cuts, codes = self._cuts(sigmas), self.rows.num_codes
        spool, all_found = Spool(), _nothing(codes)
        find = partial(self._find, interval=interval, cuts=cuts)
        for found in over_pieces(self.rows.pieces(), self.rows.read, find, self.ranking.threads):
            spool.add(found.ids, found.states)
            all_found.add(found)
        self.ranking.check_missing(all_found.missing)
        self.ranking.check_seen(all_found.rows)
        states = self._decide(all_found, cuts)
        if isinstance(states, str):
            return states
        signal_counts, explore_counts = all_found.signal_counts, all_found.explore_counts
        if codes:
            code = np.concatenate([np.empty(0, dtype=np.int32), *all_found.open_code])
            signal_counts = signal_counts + np.bincount(code[states == SIGNAL], minlength=codes)
            explore_counts = explore_counts + np.bincount(code[states == EXPLORE], minlength=codes)
        return StreamedDraw(spool, states, all_found.counts, signal_counts, explore_counts, all_found.top)

    def _decide(self, found: _Found, cuts: _Cuts) -> U8 | str:
        """Return the states of the open rows, exactly, or the name of the arm whose end is not among them."""
        ids = np.concatenate([np.empty(0, dtype=np.int64), *found.open_id])
        key = np.concatenate([np.empty(0, dtype=np.uint64), *found.open_key])
        inside = np.flatnonzero(np.concatenate([np.empty(0, dtype=np.bool_), *found.open_inside]))
        states = np.full(len(ids), DROPPED, dtype=np.uint8)
        rank = self.budget.signal - found.signal
        if not 0 <= rank <= len(inside):
            return "signal"
        if rank:
            rows = KeyedRows(key[inside], ids[inside])
            chosen = inside[Bounds([rank], [len(inside)]).settle(rows, self.ranking.tie)]
            states[chosen] = SIGNAL
            found.top = max(found.top, int(key[chosen].max()))
        if cuts.most is None:
            return states
        hashes = self.ranking.explore(ids)
        free = (states != SIGNAL) & (hashes <= np.uint64(cuts.most))
        sure = 0 if cuts.sure is None else int(np.count_nonzero(free & (hashes <= np.uint64(cuts.sure))))
        left, at = self.budget.exploration - found.explored, np.flatnonzero(free)
        if not sure <= left <= len(at):
            return "exploration"
        if left:
            states[at[Bounds([left], [len(at)]).settle(KeyedRows(hashes[at], ids[at]), last_resort)]] = EXPLORE
        return states
