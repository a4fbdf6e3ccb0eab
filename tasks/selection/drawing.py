"""The drawing itself: signal by rank and exploration by hash, in every group, for budgets that are given."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from cluster.errors import CorruptError
from tasks.hashing import I64
from tasks.samplers.design import Budget
from tasks.selection.filling import Filling
from tasks.selection.order import U64
from tasks.selection.ranking import OPEN_ROWS, Ranking, codes_of
from tasks.selection.rows import Batch, over_pieces
from tasks.selection.threshold import Bounds, KeyedRows, find_bounds, last_resort

I32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

# Margin of the exploration's first cut, in standard deviations: too small once in 10^9 selections, and then widened.
_SIGMAS = 6.0


@dataclass(frozen=True)
class Drawn:
    """Hold the rows of either arm with their codes, the rows of each code (num_codes,), and the last key of the signal."""

    signal: Filling
    explore: Filling
    full: npt.NDArray[np.int64]
    top: int

    def counts(self) -> tuple[I64, I64, I64]:
        """Return the rows of each code (num_codes,): all, signal, exploration."""
        signal, explore = (np.bincount(arm.codes(), minlength=len(self.full)) for arm in (self.signal, self.explore))
        return self.full, signal, explore


@dataclass
class _Emitted:
    """Hold what one piece gives in the last pass."""

    rows: int
    missing: int
    counts: npt.NDArray[np.int64]
    below: list[I64]
    below_code: list[I32]
    top: int
    open_id: list[I64]
    open_key: list[U64]
    open_code: list[I32]
    candidate: list[I64]
    candidate_code: list[I32]


class Drawing:
    """Carry out one selection: `budgets`, one a group of the ranking, are spent to the last row."""

    def __init__(self, ranking: Ranking, budgets: Sequence[Budget]) -> None:
        self.ranking, self.rows, self.budgets = ranking, ranking.rows, budgets
        self.grouped = ranking.codes_a_group is not None
        self.sizes = [budget.n for budget in budgets]

    def run(self, first: npt.NDArray[np.int64] | None = None) -> Drawn:
        """Return the rows drawn. `first` are the counts (65536,) of the keys' top digit where they are known."""
        limit = max(OPEN_ROWS, sum(budget.kept for budget in self.budgets) // 2)
        signal = [budget.signal for budget in self.budgets]
        bounds = find_bounds(signal, self.sizes, self.ranking.passes, self.ranking.tie, limit, first=first)
        sigmas = _SIGMAS
        while True:
            drawn = self._draw(bounds, sigmas)
            if drawn is not None:
                return drawn
            sigmas *= 4

    def _cuts(self, sigmas: float) -> tuple[U64, npt.NDArray[np.bool_]]:
        """Return hashes below which each group's exploration surely lies (G,), and whether it has any (G,)."""
        cuts = []
        for budget in self.budgets:
            margin = budget.exploration + sigmas * math.sqrt(budget.exploration) + 64
            share = margin / budget.complement if budget.complement else 1.0
            cuts.append(2**64 - 1 if share >= 1 else int(share * 2.0**64))
        return np.array(cuts, dtype=np.uint64), np.array([budget.exploration > 0 for budget in self.budgets])

    def _candidates(self, ids: I64, code: I32 | None, cuts: U64, any_cut: Bools) -> Bools:
        groups = self.ranking.groups(code)
        group = 0 if groups is None else groups
        return (self.ranking.explore(ids) <= cuts[group]) & any_cut[group]

    def _emit(self, batches: Iterator[Batch], bounds: Bounds, cuts: U64, any_cut: Bools) -> _Emitted:
        out = _Emitted(0, 0, np.zeros(self.rows.num_codes, dtype=np.int64), [], [], 0, [], [], [], [], [])
        exploring = bool(any_cut.any())
        for batch in batches:
            keyed, missing = self.ranking.keyed(batch)
            out.rows += len(batch.example_id)
            out.missing += missing
            if batch.code is not None:
                out.counts += codes_of(batch, self.rows.num_codes)
            below, inside = bounds.classify(keyed, self.ranking.tie)
            if below.any():
                out.below.append(batch.example_id[below])
                out.top = max(out.top, int(keyed.key[below].max()))
                if batch.code is not None:
                    out.below_code.append(batch.code[below])
            at = np.flatnonzero(inside)
            if len(at):
                out.open_id.append(batch.example_id[at])
                out.open_key.append(keyed.key[at])
                if batch.code is not None:
                    out.open_code.append(batch.code[at])
            if exploring:
                wanted = self._candidates(batch.example_id, batch.code, cuts, any_cut)
                wanted &= ~below
                wanted &= ~inside
                out.candidate.append(batch.example_id[wanted])
                if batch.code is not None:
                    out.candidate_code.append(batch.code[wanted])
        return out

    def _draw(self, bounds: Bounds, sigmas: float) -> Drawn | None:
        """Make the last pass and return the selection, or None where the exploration's first cut was too small."""
        cuts, any_cut = self._cuts(sigmas)
        signal = Filling(sum(budget.signal for budget in self.budgets))
        candidates = Filling(int(sum(b.exploration + 2 * sigmas * math.sqrt(b.exploration) + 128 for b in self.budgets
                                      if b.exploration)))
        open_id: list[I64] = []
        open_key: list[U64] = []
        open_code: list[I32] = []
        seen = missing = top = 0
        full = np.zeros(self.rows.num_codes, dtype=np.int64)
        emit = partial(self._emit, bounds=bounds, cuts=cuts, any_cut=any_cut)
        for out in over_pieces(self.rows.pieces(), self.rows.read, emit, self.ranking.threads):
            seen, missing, top, full = seen + out.rows, missing + out.missing, max(top, out.top), full + out.counts
            signal.extend(out.below, out.below_code)
            candidates.extend(out.candidate, out.candidate_code)
            open_id += out.open_id
            open_key += out.open_key
            open_code += out.open_code
        self.ranking.check_missing(missing)
        self.ranking.check_seen(seen)
        if open_id:
            ids, key = np.concatenate(open_id), np.concatenate(open_key)
            del open_id, open_key
            code = np.concatenate(open_code) if open_code else None
            chosen = bounds.settle(KeyedRows(key, ids, self.ranking.groups(code)), self.ranking.tie)
            if chosen.any():
                top = max(top, int(key[chosen].max()))
            signal.extend([ids[chosen]], [code[chosen]] if code is not None else [])
            if any_cut.any():
                rest = ~chosen
                rest &= self._candidates(ids, code, cuts, any_cut)
                candidates.extend([ids[rest]], [code[rest]] if code is not None else [])
            del ids, key, code, chosen
        if not self._matches(signal, [budget.signal for budget in self.budgets], exact=True):
            raise CorruptError(
                f"{signal.size} signal rows were found, the rule is {sum(b.signal for b in self.budgets)}: the score "
                "table does not agree with its histogram, or changed meanwhile"
            )
        if not self._matches(candidates, [budget.exploration for budget in self.budgets], exact=False):
            return None
        self._explore_exactly(candidates)
        return Drawn(signal, candidates, full, top)

    def _groups(self, found: Filling) -> I32 | None:
        return self.ranking.groups(found.codes()) if self.grouped else None

    def _matches(self, found: Filling, wanted: Sequence[int], exact: bool) -> bool:
        groups = self._groups(found)
        if groups is None:
            return found.size == wanted[0] if exact else found.size >= wanted[0]
        sizes = np.bincount(groups, minlength=len(wanted))
        return bool((sizes == wanted).all() if exact else (sizes >= np.array(wanted)).all())

    def _explore_exactly(self, candidates: Filling) -> None:
        """Leave the k_E candidates of smallest hash in each group."""
        wanted = [budget.exploration for budget in self.budgets]
        ids = candidates.ids()
        code = self._groups(candidates)
        sizes = [len(ids)] if code is None else np.bincount(code, minlength=len(wanted)).tolist()

        def slices() -> Iterator[tuple[int, KeyedRows]]:
            for start in range(0, len(ids), 2**17):
                part = ids[start : start + 2**17]
                group = None if code is None else code[start : start + 2**17]
                yield start, KeyedRows(self.ranking.explore(part), part, group)

        bounds = find_bounds(wanted, sizes, lambda count, _: (count(rows) for _, rows in slices()), last_resort, 2**14)
        keep = np.zeros(len(ids), dtype=np.bool_)
        left: list[npt.NDArray[np.int64]] = []
        for start, rows in slices():
            below, inside = bounds.classify(rows, last_resort)
            keep[start : start + len(below)] = below
            left.append(np.flatnonzero(inside) + start)
        if left:
            at = np.concatenate(left)
            group = None if code is None else code[at]
            keep[at[bounds.settle(KeyedRows(self.ranking.explore(ids[at]), ids[at], group), last_resort)]] = True
        candidates.compress(keep)
