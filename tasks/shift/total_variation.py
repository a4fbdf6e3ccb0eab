"""Total variation between the kept and the full train split: over classes, score bins, and signal against the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import CorruptError
from tasks.hashing import I64, hash64
from tasks.samplers.registry import SIZE, SPLIT, protocol_info
from tasks.selection.rows import RowSource

F64 = npt.NDArray[np.float64]

EDGE_ROWS = 2**22
"""Rows up to which the edges of bins are taken from all rows; beyond, from a hash sample of about as many."""


@dataclass(frozen=True)
class Tally:
    """Hold the full split's counts by class (K,) and by bin, and class and bin of each kept row (M,) in ascending id."""

    full_class: I64
    full_bin: I64
    code: I64
    bin: I64


def total_variation(mass: Sequence[float] | npt.NDArray[Any], other: Sequence[float] | npt.NDArray[Any]) -> float:
    """Return half the sum of |p - q| over cells, of two masses that are divided by their sums."""
    whole, whole_other = math.fsum(mass), math.fsum(other)
    return 0.5 * math.fsum(abs(p / whole - q / whole_other) for p, q in zip(mass, other))


def bin_edges(rows: RowSource, bins: int) -> npt.NDArray[np.float32]:
    """Return ascending edges of `bins` bins of equal mass; bin b holds edges[b - 1] <= score < edges[b].

    Ties stay together, so equal edges are one and the bins fewer. Examples without a score (NaN) have no part in it.
    """
    share = min(1.0, EDGE_ROWS / max(rows.num_rows, 1))
    found = []
    for piece in rows.pieces():
        for batch in rows.read(piece):
            assert batch.score is not None
            score = batch.score.astype(np.float32)
            if share < 1:
                score = score[hash64("shift-edges", 0, batch.example_id) < np.uint64(int(share * 2.0**64))]
            found.append(score[~np.isnan(score)])
    ordered = np.sort(np.concatenate(found)) if found else np.empty(0, np.float32)
    if not len(ordered):
        return ordered
    ranks = [len(ordered) * number // bins for number in range(1, bins)]
    edges = np.unique(ordered[ranks])
    # Below the least value there is nothing.
    return np.asarray(edges[edges > ordered[0]], dtype=np.float32)


def tally(rows: RowSource, kept: I64, edges: npt.NDArray[np.float32]) -> Tally:
    """Count the rows, of which `kept` (M,) ascending ids are a part. Examples without a score are a bin of their own, the last.

    Raises CorruptError where a kept id is not among the rows.
    """
    full_class = np.zeros(rows.num_codes, dtype=np.int64)
    full_bin = np.zeros(len(edges) + 2, dtype=np.int64)
    code, place = np.full(len(kept), -1, dtype=np.int64), np.full(len(kept), -1, dtype=np.int64)
    for piece in rows.pieces():
        for batch in rows.read(piece):
            assert batch.score is not None and batch.code is not None
            score = batch.score.astype(np.float32)
            bins = np.where(np.isnan(score), len(edges) + 1, np.searchsorted(edges, score, side="right"))
            full_class += np.bincount(batch.code, minlength=len(full_class))
            full_bin += np.bincount(bins, minlength=len(full_bin))
            at = np.minimum(np.searchsorted(kept, batch.example_id), len(kept) - 1)
            here = kept[at] == batch.example_id
            code[at[here]], place[at[here]] = batch.code[here], bins[here]
    absent = int(np.count_nonzero(code < 0))
    if absent:
        raise CorruptError(f"{absent} of {len(kept)} kept examples are not in the score table: the selection is of other data")
    return Tally(full_class, full_bin, code, place)


def variations(cells: I64, full: I64, weight: F64) -> dict[str, float]:
    """Return the total variation of the kept rows, whose cells (M,) these are, to the full counts: raw and weighted.

    Weights are divided by their sum.
    """
    return {
        "raw": total_variation(np.bincount(cells, minlength=len(full)), full),
        "weighted": total_variation(np.bincount(cells, weights=weight, minlength=len(full)), full),
    }


def partition_variation(meta: Mapping[str, Any], signal: npt.NDArray[np.bool_], weight: F64) -> dict[str, float] | None:
    """Return the total variation on the partition signal against the rest, measured on the rows of a selection.

    `meta` are the facts of its seal, `signal` (M,) says which rows are signal. None for protocols without signal.
    """
    if protocol_info(meta["protocol"]).draws != SPLIT:
        return None
    whole = [meta["num_signal"], meta["n"] - meta["num_signal"]]
    return variations((~signal).astype(np.int64), np.array(whole, dtype=np.int64), weight)


def closed_form(meta: Mapping[str, Any]) -> dict[str, float | None]:
    """Return what theory says of the law that the design draws, raw and weighted: its total variation on signal and rest.

    alpha (1 - r) without weights, whatever the protocol, and 0 where the weights are those of Horvitz and Thompson: zero
    in expectation on any partition, not in one draw. An upper bound on coarser ones. None where no closed form exists.
    methods.md, section 2.
    """
    protocol = str(meta["protocol"])
    n, m, signal = meta["n"], meta["num_kept"], meta["num_signal"]
    explored = m - signal
    covered = meta.get("covered", n) == n
    draws = protocol_info(protocol).draws
    if draws == SIZE:
        return {"raw": None, "weighted": 0.0}
    if draws != SPLIT:
        return {"raw": None, "weighted": None}
    raw = abs(signal / m - signal / n)
    if protocol in ("topk", "approximate"):
        return {"raw": raw, "weighted": raw}
    if protocol in ("random", "rs2", "exact", "rotate"):
        return {"raw": raw, "weighted": 0.0 if covered else None}
    if protocol == "tempered" and meta.get("classes") is None:
        ratio = ((n - signal) / explored) ** meta["gamma"] if explored else 0.0
        return {"raw": raw, "weighted": abs(signal / (signal + explored * ratio) - signal / n)}
    return {"raw": raw, "weighted": None}
