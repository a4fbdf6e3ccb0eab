"""What the merge stage knows of the whole table, added up part by part: its memory does not grow with the shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.record import Part, Parts

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Summary:
    """Hold what one part tells of each column: least and greatest value, and counts of the top 16 sortable bits."""

    part: Part
    low: dict[str, float]
    high: dict[str, float]
    sortable: dict[str, dict[int, int]]


class Totals:
    """Add up summaries, in whatever order parts are done."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.parts = Parts()
        self._low: dict[str, float] = {}
        self._high: dict[str, float] = {}
        self._sortable: dict[str, Counter[int]] = {name: Counter() for name in columns}

    def add(self, summary: Summary) -> None:
        """Take one part in."""
        self.parts.append(summary.part)
        for name, counts in summary.sortable.items():
            self._sortable[name].update(counts)
        for name, low in summary.low.items():
            self._low[name] = min(low, self._low.get(name, low))
            self._high[name] = max(summary.high[name], self._high.get(name, low))

    def bounds(self, name: str) -> tuple[float, float]:
        """Return the least and greatest value of a column, (0, 0) where no part has a row."""
        return (self._low[name], self._high[name]) if name in self._low else (0.0, 0.0)

    def sortable(self, name: str) -> dict[str, int]:
        """Return the counts of a column by its top 16 sortable bits, ascending."""
        return {str(digit): count for digit, count in sorted(self._sortable[name].items())}


@dataclass(frozen=True)
class Detail:
    """Hold one part's counts in the bins of the whole table, and the sampled values that seeds are compared on."""

    counts: dict[str, list[int]]
    ids: I64
    seeds: dict[str, npt.NDArray[np.float32]]


class Details:
    """Add up the counts of the parts, and keep their samples: as many rows as EXACT_ROWS in all, whatever the shards."""

    def __init__(self, columns: Sequence[str], bins: int) -> None:
        self.counts = {name: np.zeros(bins, np.int64) for name in columns}
        self._ids: list[I64] = []
        self._seeds: dict[str, list[npt.NDArray[np.float32]]] = {}

    def add(self, detail: Detail) -> None:
        """Take one part in."""
        for name, counts in detail.counts.items():
            self.counts[name] += counts
        if len(detail.ids):
            self._ids.append(detail.ids)
            for name, values in detail.seeds.items():
                self._seeds.setdefault(name, []).append(values)
        if len(self._ids) >= 256:
            # An array of a few rows is mostly its header.
            self._ids = [np.concatenate(self._ids)]
            self._seeds = {name: [np.concatenate(values)] for name, values in self._seeds.items()}

    def sample(self) -> tuple[I64, dict[str, npt.NDArray[np.float32]]]:
        """Return the sampled ids, ascending, and the seeds' values in that order: the same for any shards."""
        ids = np.concatenate(self._ids) if self._ids else np.zeros(0, np.int64)
        order = np.argsort(ids)
        return ids[order], {name: np.concatenate(values)[order] for name, values in self._seeds.items()}
