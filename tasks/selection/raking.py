"""Bins of the score as part of a row's code, and the calibration of a drawn selection to the totals of its cells."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cluster.errors import CorruptError
from tasks.hashing import I64
from tasks.samplers import raked
from tasks.samplers.design import Budget, Design
from tasks.selection.drawing import Drawn
from tasks.selection.order import DIGIT_BITS, DIGITS, U64, value_of
from tasks.selection.ranking import Ranking
from tasks.selection.rows import Batch
from tasks.selection.threshold import Counted, KeyedRows, counted

log = logging.getLogger("secateur.select")

# Bits looked at within a top digit: a bin ends within 2^-16 of its score of where its quantile lies.
_MORE_BITS = 12
_SHIFT = 64 - DIGIT_BITS - _MORE_BITS


def top_counts(ranking: Ranking) -> I64:
    """Return the counts (65536,) of the keys' top digit, from one pass."""

    def count(rows: KeyedRows) -> Counted:
        top = (rows.key >> np.uint64(64 - DIGIT_BITS)).astype(np.int64)
        return Counted(np.arange(DIGITS), np.bincount(top, minlength=DIGITS), 0, 0)

    return counted(ranking.passes(count, False)).counts


def bin_edges(ranking: Ranking, start: int, bins: int, first: I64) -> U64:
    """Return the keys (at most bins - 1, ascending) at which a bin begins: bins of like size of the ranking from `start` on.

    Equal scores are in one bin, so there are fewer bins where many are equal. `first` are the counts (65536,) of the keys' top
    digit; one pass more counts within the digits in which an edge lies.
    """
    n = ranking.rows.num_rows
    ranks = np.array([start + (n - start) * number // bins for number in range(1, bins)], dtype=np.int64)
    ranks = ranks[ranks < n]
    ends = np.cumsum(first)
    if int(ends[-1]) != n:
        raise CorruptError(f"{int(ends[-1])} rows were counted, {n} announced: the table changed meanwhile")
    digits = np.searchsorted(ends, ranks, side="right")
    opened = np.unique(digits)
    place_of = np.full(DIGITS, -1, dtype=np.int64)
    place_of[opened] = np.arange(len(opened))
    width = 1 << _MORE_BITS
    codes = np.arange(len(opened) * width)

    def count(rows: KeyedRows) -> Counted:
        place = place_of[(rows.key >> np.uint64(64 - DIGIT_BITS)).astype(np.int64)]
        inside = place >= 0
        more = (rows.key[inside] >> np.uint64(_SHIFT)).astype(np.int64) & (width - 1)
        return Counted(codes, np.bincount(place[inside] * width + more, minlength=len(codes)), 0, 0)

    if not len(opened):
        return np.zeros(0, dtype=np.uint64)
    within = counted(ranking.passes(count, False)).counts.reshape(-1, width)
    edges = set()
    for rank, digit in zip(ranks.tolist(), digits.tolist()):
        before = int(ends[digit] - first[digit])
        stops = before + np.cumsum(within[place_of[digit]])
        at = int(np.searchsorted(stops, rank, side="right"))
        low, high = int(stops[at] - within[place_of[digit], at]), int(stops[at])
        # Rows that lie together go to one side, the one that is nearer.
        at, here = (at, low) if rank - low <= high - rank else (at + 1, high)
        if start < here < n:
            edges.add((digit << (64 - DIGIT_BITS)) + (at << _SHIFT))
    return np.array(sorted(edges), dtype=np.uint64)


class BinnedRows:
    """Give the rows of a ranking, their code the cell: bin times classes plus class."""

    has_scores = True
    # Known only after a pass.
    code_counts: I64 | None = None

    def __init__(self, ranking: Ranking, edges: U64) -> None:
        self.ranking, self.edges = ranking, edges
        self.num_rows = ranking.rows.num_rows
        self.classes = max(1, ranking.rows.num_codes)
        self.num_codes = (len(edges) + 1) * self.classes

    def pieces(self) -> Sequence[Any]:
        """Return the pieces of the rows."""
        return self.ranking.rows.pieces()

    def read(self, piece: Any) -> Iterator[Batch]:
        """Yield the rows of a piece with their cells."""
        for batch in self.ranking.rows.read(piece):
            keyed, _ = self.ranking.keyed(batch)
            cell = np.searchsorted(self.edges, keyed.key, side="right").astype(np.int32)
            if batch.code is not None:
                cell = cell * np.int32(self.classes) + batch.code
            yield Batch(batch.example_id, batch.score, cell)

    def read_keys(self, piece: Any) -> Iterator[Batch]:
        """Yield the rows of a piece as they are: a pass over keys looks at no cell."""
        return self.ranking.rows.read_keys(piece)


class Raking:
    """Hold the calibrated design of a drawn selection, one weight a cell and arm, and what its record says of it."""

    def __init__(self, drawn: Drawn, budget: Budget, params: Mapping[str, Any], edges: U64, direction: str) -> None:
        self.budget, self.edges, self.direction = budget, edges, direction
        self.bound = float(params["bound"])
        self.full, cells = drawn.full, len(drawn.full)
        self.signal = np.bincount(drawn.signal.codes(), minlength=cells)
        self.explored = np.bincount(drawn.explore.codes(), minlength=cells)
        rest = self.full - self.signal
        margins = raked.make_margins(rest.reshape(len(edges) + 1, -1), budget.exploration, params["margins"])
        self.found = raked.calibrate(margins, self.explored, rest, self.bound)
        self.design: Design = raked.design(budget, self.found.factor)
        log.info("%s", raking_note(self.facts(), int(params["bins"])))

    def budgets(self) -> list[Budget]:
        """Return what was drawn in each cell, for figures of the weights."""
        return [Budget(*cell) for cell in zip(self.full.tolist(), self.signal.tolist(), self.explored.tolist())]

    def _deviation(self, dtype: type[np.float32 | np.float64]) -> float:
        """Return the greatest relative deviation of a margin's weighted total, weights of `dtype`, from the population's."""
        signal, explore = (
            weight.astype(dtype).astype(np.float64) for weight in (self.design.signal_weight, self.design.explore_weight)
        )
        total = (self.signal * signal + self.explored * explore) * (self.budget.n / self.budget.kept)
        # A cell without rows has no margin of its own, but may have a number.
        there = self.full > 0
        worst = 0.0
        for family in self.found.margins.families:
            wanted, met = np.bincount(family[there], self.full[there]), np.bincount(family[there], total[there])
            worst = max(worst, float(np.abs(met / wanted - 1).max()))
        return worst

    def _ends(self) -> list[float | None]:
        """Return the scores that part the bins, from the kept end on; null where one is not finite."""
        used = self.edges
        families = self.found.margins.families
        if len(families) > 1:
            used = used[np.flatnonzero(np.diff(families[1].reshape(len(used) + 1, -1)[:, 0]))]
        words = [word ^ (2**64 - 1) if self.direction == "high" else word for word in used.tolist()]
        values = [value_of(word) for word in words]
        return [value if math.isfinite(value) else None for value in values]

    def facts(self) -> dict[str, Any]:
        """Return the record of the calibration. `rows_a_margin` are explored rows; factors are of the design's weights."""
        margins, factor = self.found.margins, self.found.factor
        classes, bins = margins.sizes if len(margins.families) > 1 else (None, None)
        drawn = factor[self.explored > 0]
        outer = (factor >= self.bound) | (factor <= 1 / self.bound)
        return {
            "num_margins": margins.count,
            "class_margins": classes,
            "bin_margins": bins,
            "pooled_classes": margins.pooled,
            "joined_margins": margins.joined,
            "bin_edges": self._ends(),
            "rows_a_margin": self.budget.exploration / margins.count,
            "bounds": [1 / self.bound, self.bound],
            "factors": [float(drawn.min()), float(drawn.max())] if len(drawn) else None,
            "rows_at_bounds": int(self.explored[outer].sum()),
            "newton_steps": self.found.steps,
            "deviation": self._deviation(np.float64),
            "deviation_float32": self._deviation(np.float32),
        }


def raking_note(found: Mapping[str, Any], bins: int) -> str:
    """Return what a calibration came to, in one clause; `bins` are those asked for."""
    rule = f"a margin takes {raked.ROWS_A_MARGIN} explored rows by expectation"
    if found["num_margins"] == 1:
        return f"nothing is calibrated, {rule}: the weights are those of exact"
    said = f"weights are calibrated to {count_of(found)}, {found['rows_a_margin']:.1f} explored rows each on average"
    less = []
    if found["pooled_classes"]:
        less.append(f"{found['pooled_classes']} small classes are pooled")
    if found["bin_margins"] is not None and found["bin_margins"] < bins:
        less.append(f"{bins} bins were asked for")
    if found["joined_margins"]:
        less.append(f"{found['joined_margins']} margins could not be met within the bound and were joined to their neighbours")
    return f"{said}; {', '.join(less)} ({rule})" if less else said


def count_of(found: Mapping[str, Any]) -> str:
    """Return the number of margins in words."""
    if found["bin_margins"] is None:
        return f"{found['num_margins']} margins (bins of the score within classes)"
    return f"{found['num_margins']} margins ({found['class_margins']} of classes, {found['bin_margins']} of bins of the score)"
