"""Calibrated selection: signal from the top of the ranking, exploration uniformly from the rest, weights to match."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cluster.errors import InputError
from tasks.hashing import hash64
from tasks.samplers import pps
from tasks.samplers.ccs import cell_budgets
from tasks.samplers.design import Budget, design_effect, group_budgets, split_budget, total_budget
from tasks.samplers.registry import SIZE, SLICE, SPLIT, design_of
from tasks.selection.cutting import Slice, SliceRows
from tasks.selection.drawing import Drawing, Drawn
from tasks.selection.facts import budget_facts, class_counts, sample_facts, stated_facts, threshold
from tasks.selection.missing import EXCLUDE, EXPLORE, REFUSE, Missing, ScoredRows, cap_signal, count_missing
from tasks.selection.prototypes import FeatureReader, draw_prototypes
from tasks.selection.raking import BinnedRows, Raking, bin_edges, top_counts
from tasks.selection.ranking import Ranking, count_codes
from tasks.selection.rows import RowSource
from tasks.selection.spec import NOMINAL, RAKED, SelectionSpec
from tasks.selection.streamed_drawing import Sampler, StreamedDraw, StreamedDrawing
from tasks.selection.systematic import SystematicDrawing
from tasks.selection.table import HeldTable, SelectionTable, StreamedTable


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
    features: FeatureReader | None = None,
    sample: Sampler | None = None,
) -> SelectionTable:
    """Return the selection that `spec` and `seed` draw from the rows; the same for any order or split of the rows.

    `histogram` is the sparse count of the scores' top 16 sortable bits, where another stage has made it: it saves a
    pass. `by` names what the rows' codes group: each group then has a budget, as `spec.classes` says (proportional by
    default, by largest remainder), and the protocol is carried out in each; selections of growing `keep` are then nested
    only in the groups whose budgets grow. Without it codes are classes: counted for the record, and given budgets where
    `spec.classes` is set or the protocol's default; for raked codes are always classes, whose totals are margins, and `by` names
    them. Passes over the rows are repeated. In one group, memory does not grow with the selection: its rows go to the temporary
    folder, 9 bytes each, and `sample`, some rows from all over the table, saves all passes but one. In several, memory is that
    of the selected rows and of at most max(2^20, m/2) undecided ones; for pps, of the selected rows and 2^22 others; for
    prototype_band, of the band's rows. `features`, which only prototype_band reads, gives it the features of the band's members.

    Rows with the score NaN have none, and `spec.missing` says what is done with them; `missing` counts them where that is
    known, which saves a pass. Excluded, they are no part of the population that n and the weights are of; explored, they
    are part of it and of the complement, never of the signal.

    Raises InputError on NaN scores that are refused, infinite ones in ccs and pps, repeated ids among the selected rows,
    an empty budget, or an undefined design.
    """
    none = Missing(0, np.zeros(rows.num_codes, dtype=np.int64))
    if spec.missing == REFUSE or not rows.has_scores:
        missing = none
    elif missing is None:
        missing = count_missing(rows, threads)
    explored = missing if spec.missing == EXPLORE else none
    if spec.missing == EXCLUDE and missing.rows:
        rows = ScoredRows(rows, missing)
    selecting = _Selecting(rows, spec, seed, by, explored=explored, threads=threads, histogram=histogram, features=features,
                           sample=sample)
    table = selecting.run()
    table.facts.update(missing=spec.missing, n_missing=missing.rows, score_table_key=score_table_key)
    return table


class _Selecting:
    """Make one selection: find its budgets, have it drawn, and state it."""

    def __init__(
        self, rows: RowSource, spec: SelectionSpec, seed: int, by: str | None, *, explored: Missing, threads: int,
        histogram: Mapping[Any, int] | None, features: FeatureReader | None, sample: Sampler | None,
    ) -> None:  # fmt: skip
        self.rows, self.spec, self.seed, self.threads, self.histogram = rows, spec, seed, threads, histogram
        self.explored, self.features, self.sample = explored, features, sample
        if rows.num_rows < 1:
            raise InputError("there are no rows to select from; give a table with at least one")
        if spec.score is not None and not rows.has_scores:
            raise InputError(f"protocol {spec.protocol} ranks by {spec.score!r}, but the rows have no scores")
        params = spec.params()
        if by is not None and not rows.num_codes:
            raise InputError(f"rows are to be grouped by {by!r}, but have no codes")
        if spec.classes is not None and not rows.num_codes:
            raise InputError(f"classes: {spec.classes} needs the class of every row; name it with `by`, or leave classes out")
        calibrated = spec.protocol == RAKED
        if by is not None and "classes" not in params and not calibrated:
            raise InputError(f"protocol {spec.protocol} is not carried out in groups; leave `by` out (got {by!r})")
        if "features" in params and features is None:
            raise InputError(
                f"protocol {spec.protocol} reads features of the examples, and none are given; give `features`, make it an arm "
                "of a run, or use band"
            )
        self.classes: str | None = None
        if (by is not None and not calibrated) or (params.get("classes") is not None and rows.num_codes):
            self.classes = params["classes"] or "proportional"
        self.by = by or ("class" if self.classes else None)
        self.m = total_budget(spec.keep, rows.num_rows)

    def _ranking(self, rows: RowSource, codes_a_group: int | None) -> Ranking:
        return Ranking(
            rows, self.seed, self.spec.kept_end or "high", codes_a_group=codes_a_group, explored=self.explored,
            policy=self.spec.missing, threads=self.threads,
        )  # fmt: skip

    def _ranks(self, groups: int) -> list[int]:
        """Return by what equal claims of groups are told apart."""
        return [int(rank) for rank in hash64("tie", self.seed, np.arange(groups, dtype=np.int64))]

    def run(self) -> SelectionTable:
        """Return the selection."""
        draw = {SPLIT: self._split, SLICE: self._slice, SIZE: self._in_proportion}
        return draw[self.spec.draws]()

    def _split(self) -> SelectionTable:
        share = self.spec.signal_share
        assert share is not None
        if self.classes is None:
            sizes, shares, scored = [self.rows.num_rows], [self.m], [self.rows.num_rows - self.explored.rows]
        else:
            sizes = [int(size) for size in count_codes(self.rows, self.threads)]
            shares = group_budgets(self.classes, self.m, sizes, self._ranks(len(sizes)))
            scored = [size - int(gone) for size, gone in zip(sizes, self.explored.by_code)]
        budgets = [
            cap_signal(split_budget(size, m, share), there, self.spec.protocol)
            for size, m, there in zip(sizes, shares, scored)
        ]
        if self.spec.protocol == RAKED:
            return self._raked(budgets[0])
        return self._draw(self.rows, budgets, codes_a_group=None if self.classes is None else 1)

    def _raked(self, budget: Budget) -> SelectionTable:
        ranking, params = self._ranking(self.rows, None), self.spec.params()
        first = ranking.top_counts(self.histogram)
        if first is None:
            first = top_counts(ranking)
        edges = bin_edges(ranking, budget.signal, params["bins"], first)
        drawn = Drawing(self._ranking(BinnedRows(ranking, edges), None), [budget]).run(first)
        raking = Raking(drawn, budget, params, edges, ranking.direction)
        facts = self._facts() | budget_facts(raking.budgets(), raking.design)
        # Margins speak for cells of which nothing was drawn.
        facts |= {"covered": budget.n, "uncovered_groups": 0, "calibration": raking.facts()}
        facts["threshold"] = threshold(drawn.top, self.spec.kept_end) if budget.signal else None
        if self.rows.num_codes:
            facts["class_counts"] = class_counts(drawn.counts(), self.rows.num_codes)
        (signal_id, signal_cell), (explore_id, explore_cell) = drawn.signal.sorted_both(), drawn.explore.sorted_both()
        return HeldTable(raking.design, facts, signal_id, explore_id, signal_cell, explore_cell)

    def _slice(self) -> SelectionTable:
        spec, n, params = self.spec, self.rows.num_rows, self.spec.params()
        start = round(params["beta"] * n)
        stop = n if "width" not in params else min(n, start + round(params["width"] * n))
        if self.m > stop - start:
            raise InputError(
                f"protocol {spec.protocol} keeps {self.m} examples, and only {stop - start} of {n} are left to draw from; lower "
                f"keep{', raise width' if stop < n else ''}, or lower beta"
            )
        ranking = self._ranking(self.rows, None)
        strata = params.get("strata", 1)
        part = Slice(ranking, start, stop, ranking.top_counts(self.histogram), finite="strata" in params)
        rows = SliceRows(part, strata, self.rows.num_codes)
        # Cells of one stratum lie side by side, so that strata alone are groups of them.
        width = 1 if self.classes is not None else max(1, self.rows.num_codes)
        sizes = count_codes(rows, self.threads).reshape(-1, width).sum(axis=1)
        budgets = cell_budgets(self.classes, self.m, sizes.reshape(strata, -1), self._ranks)
        pick = self._draw if self.features is None or "features" not in params else self._pick
        table = pick(rows, budgets, width)
        table.facts.update(dropped=start, drawn_from=stop - start, score_range=[part.low, part.high])
        if table.facts["class_counts"] is not None:
            table.facts["class_counts"]["full"] = part.codes.tolist()
        return table

    def _draw(self, rows: RowSource, budgets: list[Budget], codes_a_group: int | None) -> SelectionTable:
        ranking = self._ranking(rows, codes_a_group)
        first = ranking.top_counts(self.histogram) if rows is self.rows else None
        if codes_a_group is None:
            return self._stated(ranking, StreamedDrawing(ranking, budgets[0], self.sample).run(first), budgets)
        return self._stated(ranking, Drawing(ranking, budgets).run(first), budgets)

    def _pick(self, rows: RowSource, budgets: list[Budget], codes_a_group: int | None) -> SelectionTable:
        assert self.features is not None
        ranking = self._ranking(rows, codes_a_group)
        drawn, facts = draw_prototypes(ranking, budgets, self.features)
        table = self._stated(ranking, drawn, budgets)
        table.facts.update(facts, inclusion=NOMINAL)
        return table

    def _stated(self, ranking: Ranking, drawn: Drawn | StreamedDraw, budgets: list[Budget]) -> SelectionTable:
        params, codes_a_group = self.spec.params(), ranking.codes_a_group
        design = design_of(self.spec.protocol, budgets, params.get("gamma"), params.get("weights"))
        facts = self._facts() | budget_facts(budgets, design)
        facts["threshold"] = threshold(drawn.top, self.spec.kept_end) if facts["num_signal"] and self.classes is None else None
        classes = self.rows.num_codes
        if classes:
            counts = facts["class_counts"] = class_counts(drawn.counts(), classes)
            if self.spec.draws == SPLIT and self.classes is None:
                facts["design_effect"] = design_effect(
                    budgets[0], design, np.array(counts["full"]), np.array(counts["signal"])
                )
        if isinstance(drawn, StreamedDraw):
            return StreamedTable(design, facts, drawn.spool, drawn.decided)
        if codes_a_group is None:
            return HeldTable(design, facts, drawn.signal.sorted_ids(), drawn.explore.sorted_ids())
        (signal_id, signal_code), (explore_id, explore_code) = drawn.signal.sorted_both(), drawn.explore.sorted_both()
        groups = ranking.groups(signal_code), ranking.groups(explore_code)
        return HeldTable(design, facts, signal_id, explore_id, *groups)

    def _in_proportion(self) -> SelectionTable:
        n = self.rows.num_rows
        sample = SystematicDrawing(self._ranking(self.rows, None), self.m, self.spec.params()["floor"]).run()
        budget = Budget(n, len(sample.signal_id), len(sample.explore_id))
        constant = self.m / n
        weight = constant / sample.explore_prob
        facts = self._facts() | sample_facts(budget, constant, weight)
        if self.rows.num_codes:
            facts["class_counts"] = {
                "full": sample.full.tolist(), "signal": sample.signal_counts.tolist(),
                "exploration": sample.explore_counts.tolist(),
            }  # fmt: skip
        return HeldTable(
            pps.design([budget]), facts, sample.signal_id, sample.explore_id, explore_prob=sample.explore_prob,
            explore_weight=weight,
        )  # fmt: skip

    def _facts(self) -> dict[str, Any]:
        return stated_facts(self.spec, self.seed, self.rows.num_rows, self.m, self.by, self.classes)
