"""Calibrated selection: signal from the top of the ranking, exploration uniformly from the rest, weights to match."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import CorruptError, InputError
from tasks.hashing import I64, hash64
from tasks.samplers.design import (
    Budget,
    Design,
    covered,
    design_effect,
    proportional,
    split_budget,
    total_budget,
    weight_counts,
    weight_figures,
)
from tasks.samplers.registry import design_of
from tasks.selection.filling import Filling
from tasks.selection.missing import EXCLUDE, EXPLORE, REFUSE, Missing, ScoredRows, cap_signal, count_missing, is_missing
from tasks.selection.order import U64, kept_first, kept_first_counts, refuse_missing, value_of
from tasks.selection.rows import Batch, RowSource, over_pieces
from tasks.selection.spec import SelectionSpec
from tasks.selection.table import SelectionTable
from tasks.selection.threshold import Bounds, Counted, KeyedRows, find_bounds

I32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

# Rows that may wait, undecided, in memory: 20 bytes each.
_OPEN_ROWS = 2**20
# Margin of the exploration's first cut, in standard deviations: too small once in 10^9 selections, and then widened.
_SIGMAS = 6.0
_LAST = np.uint64(2**64 - 1)


def calibrated_selection(
    rows: RowSource,
    spec: SelectionSpec,
    seed: int,
    *,
    histogram: Mapping[Any, int] | None = None,
    by: str | None = None,
    score_table_key: str | None = None,
    threads: int = 1,
    missing: Missing | None = None,
) -> SelectionTable:
    """Return the selection that `spec` and `seed` draw from the rows; the same for any order or split of the rows.

    `histogram` is the sparse count of the scores' top 16 sortable bits, where another stage has made it: it saves a
    pass. `by` names what the rows' codes group: the budget is then proportional to the groups, by largest remainder,
    and the protocol is carried out in each; selections of growing `keep` are then nested only in the groups whose
    budgets grow. Without it codes are classes, counted for the record. Passes over the
    rows are repeated; memory is that of the selected rows and of at most max(2^20, m/2) undecided ones.

    Rows with the score NaN have none, and `spec.missing` says what is done with them; `missing` counts them where that is
    known, which saves a pass. Excluded, they are no part of the population that n and the weights are of; explored, they
    are part of it and of the complement, never of the signal.

    Raises InputError on NaN scores that are refused, repeated ids among the selected rows, an empty budget, or an
    undefined design.
    """
    none = Missing(0, np.zeros(rows.num_codes, dtype=np.int64))
    if spec.missing == REFUSE or not rows.has_scores:
        missing = none
    elif missing is None:
        missing = count_missing(rows, threads)
    explored = missing if spec.missing == EXPLORE else none
    if spec.missing == EXCLUDE and missing.rows:
        rows = ScoredRows(rows, missing)
    drawing = _Drawing(rows, spec, seed, by, score_table_key=score_table_key, threads=threads, explored=explored)
    table = drawing.run(histogram)
    table.facts.update(missing=spec.missing, n_missing=missing.rows)
    return table


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


class _Drawing:
    """Carry out one selection."""

    def __init__(
        self,
        rows: RowSource,
        spec: SelectionSpec,
        seed: int,
        by: str | None,
        *,
        score_table_key: str | None,
        threads: int,
        explored: Missing,
    ) -> None:
        self.explored = explored
        self.rows, self.spec, self.seed, self.by, self.threads = rows, spec, seed, by, threads
        self.score_table_key = score_table_key
        n = rows.num_rows
        if n < 1:
            raise InputError("there are no rows to select from; give a table with at least one")
        if spec.score is not None and not rows.has_scores:
            raise InputError(f"protocol {spec.protocol} ranks by {spec.score!r}, but the rows have no scores")
        if by is not None and not rows.num_codes:
            raise InputError(f"rows are to be grouped by {by!r}, but have no codes")
        self.direction = spec.kept_end or "high"
        self.m = total_budget(spec.keep, n)
        self.sizes = self._group_sizes() if by is not None else [n]
        self.budgets = self._budgets()
        self.design: Design = design_of(spec.protocol, self.budgets, spec.gamma)

    def _group_sizes(self) -> list[int]:
        known = self.rows.code_counts
        if known is not None:
            return [int(count) for count in known]
        none = np.zeros(self.rows.num_codes, dtype=np.int64)

        def count(batches: Iterator[Batch]) -> npt.NDArray[np.int64]:
            return np.asarray(np.sum([none, *map(self._code_counts, batches)], axis=0), dtype=np.int64)

        found = over_pieces(self.rows.pieces(), self.rows.read_keys, count, self.threads)
        return [int(number) for number in np.sum([none, *found], axis=0)]

    def _budgets(self) -> list[Budget]:
        if self.by is None:
            whole = split_budget(self.sizes[0], self.m, self.spec.signal_share)
            return [cap_signal(whole, self.sizes[0] - self.explored.rows, self.spec.protocol)]
        ranks = hash64("tie", self.seed, np.arange(len(self.sizes), dtype=np.int64)).tolist()
        shares = proportional(self.m, self.sizes, ranks)
        return [
            cap_signal(split_budget(size, share, self.spec.signal_share), size - int(gone), self.spec.protocol)
            for size, share, gone in zip(self.sizes, shares, self.explored.by_code)
        ]

    def _code_counts(self, batch: Batch) -> npt.NDArray[np.int64]:
        if batch.code is None:
            return np.zeros(self.rows.num_codes, dtype=np.int64)
        return np.bincount(batch.code, minlength=self.rows.num_codes)

    def _tie(self, ids: I64) -> U64:
        return hash64("tie", self.seed, ids)

    def _explore(self, ids: I64) -> U64:
        return hash64("explore", self.seed, ids)

    def _keyed(self, batch: Batch) -> tuple[KeyedRows, int]:
        group = batch.code if self.by is not None else None
        if batch.score is None:
            return KeyedRows(np.zeros(len(batch.example_id), dtype=np.uint64), batch.example_id, group), 0
        key, missing = kept_first(batch.score, self.direction)
        if missing and self.explored.rows:
            # The last word of the order, which no number has.
            key[is_missing(batch.score)] = _LAST
        return KeyedRows(key, batch.example_id, group), missing

    def _passes(self, count: Callable[[KeyedRows], Counted], needs_ids: bool) -> Iterable[Counted]:
        read = self.rows.read if needs_ids else self.rows.read_keys
        missing = 0

        def work(batches: Iterator[Batch]) -> tuple[Counted | None, int]:
            total: Counted | None = None
            lost = 0
            for batch in batches:
                keyed, nans = self._keyed(batch)
                lost += nans
                part = count(keyed)
                total = part if total is None else total.add(part)
            return total, lost

        for total, lost in over_pieces(self.rows.pieces(), read, work, self.threads):
            missing += lost
            if total is not None:
                yield total
        self._check_missing(missing)

    def _check_missing(self, found: int) -> None:
        if found == self.explored.rows:
            return
        if self.spec.missing != EXPLORE:
            refuse_missing(found, self.rows.num_rows)
        raise CorruptError(f"{found} rows without a score were read, {self.explored.rows} counted: the table changed meanwhile")

    def run(self, histogram: Mapping[Any, int] | None) -> SelectionTable:
        first = None
        if histogram is not None and self.by is None:
            first = kept_first_counts(histogram, self.direction)
            first[-1] += self.explored.rows
            if int(first.sum()) != self.rows.num_rows:
                raise CorruptError(
                    f"the score table's histogram counts {int(first.sum())} rows, the table has {self.rows.num_rows}"
                )
        limit = max(_OPEN_ROWS, self.m // 2)
        signal = [budget.signal for budget in self.budgets]
        bounds = find_bounds(signal, self.sizes, self._passes, self._tie, limit, first=first)
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
        group = 0 if self.by is None or code is None else code
        return (self._explore(ids) <= cuts[group]) & any_cut[group]

    def _emit(self, batches: Iterator[Batch], bounds: Bounds, cuts: U64, any_cut: Bools) -> _Emitted:
        out = _Emitted(0, 0, np.zeros(self.rows.num_codes, dtype=np.int64), [], [], 0, [], [], [], [], [])
        exploring = bool(any_cut.any())
        for batch in batches:
            keyed, missing = self._keyed(batch)
            out.rows += len(batch.example_id)
            out.missing += missing
            if batch.code is not None:
                out.counts += self._code_counts(batch)
            below, inside = bounds.classify(keyed, self._tie)
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

    def _draw(self, bounds: Bounds, sigmas: float) -> SelectionTable | None:
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
        for out in over_pieces(self.rows.pieces(), self.rows.read, emit, self.threads):
            seen, missing, top, full = seen + out.rows, missing + out.missing, max(top, out.top), full + out.counts
            signal.extend(out.below, out.below_code)
            candidates.extend(out.candidate, out.candidate_code)
            open_id += out.open_id
            open_key += out.open_key
            open_code += out.open_code
        self._check_missing(missing)
        if seen != self.rows.num_rows:
            raise CorruptError(f"{seen} rows were read, {self.rows.num_rows} announced: the table changed meanwhile")
        if open_id:
            ids, key = np.concatenate(open_id), np.concatenate(open_key)
            del open_id, open_key
            code = np.concatenate(open_code) if open_code else None
            chosen = bounds.settle(KeyedRows(key, ids, code if self.by is not None else None), self._tie)
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
        return self._finish(signal, candidates, full, top)

    def _matches(self, found: Filling, wanted: Sequence[int], exact: bool) -> bool:
        if self.by is None:
            return found.size == wanted[0] if exact else found.size >= wanted[0]
        sizes = np.bincount(found.codes(), minlength=len(wanted))
        return bool((sizes == wanted).all() if exact else (sizes >= np.array(wanted)).all())

    def _explore_exactly(self, candidates: Filling) -> None:
        """Leave the k_E candidates of smallest hash in each group."""
        wanted = [budget.exploration for budget in self.budgets]
        ids = candidates.ids()
        code = candidates.codes() if self.by is not None else None
        sizes = [len(ids)] if code is None else np.bincount(code, minlength=len(wanted)).tolist()

        def slices() -> Iterator[tuple[int, KeyedRows]]:
            for start in range(0, len(ids), 2**17):
                part = ids[start : start + 2**17]
                group = None if code is None else code[start : start + 2**17]
                yield start, KeyedRows(self._explore(part), part, group)

        # The hash is a bijection of the id; the id itself, its sign bit flipped, is the tie of last resort.
        def last(part: I64) -> U64:
            return part.view(np.uint64) ^ np.uint64(1 << 63)

        bounds = find_bounds(wanted, sizes, lambda count, _: (count(rows) for _, rows in slices()), last, 2**14)
        keep = np.zeros(len(ids), dtype=np.bool_)
        left: list[npt.NDArray[np.int64]] = []
        for start, rows in slices():
            below, inside = bounds.classify(rows, last)
            keep[start : start + len(below)] = below
            left.append(np.flatnonzero(inside) + start)
        if left:
            at = np.concatenate(left)
            group = None if code is None else code[at]
            keep[at[bounds.settle(KeyedRows(self._explore(ids[at]), ids[at], group), last)]] = True
        candidates.compress(keep)

    def _finish(self, signal: Filling, explore: Filling, full: npt.NDArray[np.int64], top: int) -> SelectionTable:
        budgets, classes = self.budgets, self.rows.num_codes
        counts: dict[str, list[int]] | None = None
        if classes:
            counts = {"full": full.tolist()}
            for name, found in (("signal", signal), ("exploration", explore)):
                counts[name] = np.bincount(found.codes(), minlength=classes).tolist()
        effect = None
        if classes and self.by is None and counts is not None:
            effect = design_effect(budgets[0], self.design, full, np.array(counts["signal"], dtype=np.int64))
        facts = self._facts(top, effect, counts)
        if self.by is None:
            return SelectionTable(signal.sorted_ids(), explore.sorted_ids(), self.design, facts)
        (signal_id, signal_group), (explore_id, explore_group) = signal.sorted_both(), explore.sorted_both()
        return SelectionTable(signal_id, explore_id, self.design, facts, signal_group, explore_group)

    def _facts(self, top: int, effect: float | None, counts: dict[str, list[int]] | None) -> dict[str, Any]:
        spec, budgets = self.spec, self.budgets
        num_signal = sum(budget.signal for budget in budgets)
        threshold: float | None = None
        if num_signal and self.by is None:
            threshold = value_of(top ^ (2**64 - 1) if self.direction == "high" else top)
        return {
            "n": self.rows.num_rows,
            "keep": spec.keep,
            "alpha": spec.signal_share,
            "protocol": spec.protocol,
            "gamma": spec.gamma,
            "seed": self.seed,
            "score": spec.score,
            "direction": spec.kept_end,
            "score_table_key": self.score_table_key,
            # Every weight is d times a constant of the design, never over the realised sum of weights.
            "estimator": "ht",
            "by": self.by,
            "num_kept": self.m,
            "num_signal": num_signal,
            "num_exploration": self.m - num_signal,
            "covered": covered(budgets),
            "uncovered_groups": sum(1 for budget in budgets if budget.n and not budget.kept),
            **weight_figures(weight_counts(budgets, self.design)),
            "design_effect": effect,
            # JSON has no infinity.
            "threshold": threshold if threshold is not None and math.isfinite(threshold) else None,
            "class_counts": counts,
        }
