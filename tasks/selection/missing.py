"""Examples without a score in a selection: refused, left out of the population, or left to exploration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import InputError
from tasks.hashing import I64
from tasks.samplers.design import Budget
from tasks.selection.rows import Batch, RowSource, over_pieces
from tasks.selection.spec import EXCLUDE, EXPLORE, REFUSE

__all__ = ["EXCLUDE", "EXPLORE", "REFUSE", "Missing", "ScoredRows", "cap_signal", "count_missing", "is_missing", "scored"]


@dataclass(frozen=True)
class Missing:
    """Count the rows without a score, in all and by code where rows have codes (num_codes,)."""

    rows: int
    by_code: I64


def is_missing(score: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which scores (N,) are NaN."""
    return np.isnan(score) if score.dtype.kind == "f" else np.zeros(len(score), dtype=bool)


def scored(batch: Batch) -> Batch:
    """Return the rows of a batch that have a score."""
    if batch.score is None or not (gone := is_missing(batch.score)).any():
        return batch
    left = ~gone
    return Batch(batch.example_id[left], batch.score[left], None if batch.code is None else batch.code[left])


def count_missing(rows: RowSource, threads: int = 1) -> Missing:
    """Return the counts of a table, from one pass over it."""
    codes = rows.num_codes

    def count(batches: Iterator[Batch]) -> tuple[int, I64]:
        found, by_code = 0, np.zeros(codes, dtype=np.int64)
        for batch in batches:
            if batch.score is None:
                continue
            gone = is_missing(batch.score)
            found += int(np.count_nonzero(gone))
            if batch.code is not None and found:
                by_code += np.bincount(batch.code[gone], minlength=codes)
        return found, by_code

    total, by_code = 0, np.zeros(codes, dtype=np.int64)
    for found, counts in over_pieces(rows.pieces(), rows.read_keys, count, threads):
        total, by_code = total + found, by_code + counts
    return Missing(total, by_code)


class ScoredRows:
    """Give the rows of another source that have a score: the population under `missing: exclude`."""

    has_scores = True

    def __init__(self, rows: RowSource, missing: Missing) -> None:
        self.rows, self.missing = rows, missing
        self.num_rows = rows.num_rows - missing.rows
        self.num_codes = rows.num_codes
        if self.num_rows < 1:
            raise InputError(f"none of {rows.num_rows} examples has a score: nothing is left to select from; mend the scores")

    @property
    def code_counts(self) -> I64 | None:
        """Return the number of scored rows of each code, where it is known without a pass."""
        known = self.rows.code_counts
        return None if known is None else known - self.missing.by_code

    def pieces(self) -> Sequence[Any]:
        """Return the pieces of the other source."""
        return self.rows.pieces()

    def read(self, piece: Any) -> Iterator[Batch]:
        """Yield the scored rows of a piece."""
        return self._scored(self.rows.read(piece))

    def read_keys(self, piece: Any) -> Iterator[Batch]:
        """Yield the scored rows of a piece, their ids perhaps zero."""
        return self._scored(self.rows.read_keys(piece))

    @staticmethod
    def _scored(batches: Iterator[Batch]) -> Iterator[Batch]:
        yield from map(scored, batches)


def cap_signal(budget: Budget, scored: int, protocol: str) -> Budget:
    """Return the budget with at most `scored` signal, the rest explored: what has no score is never signal.

    Raises InputError for topk, which explores nothing.
    """
    if budget.signal <= scored:
        return budget
    if protocol == "topk":
        raise InputError(
            f"protocol topk keeps {budget.signal} examples, and only {scored} of {budget.n} have a score; lower keep, set "
            "missing to exclude, or use a protocol that explores"
        )
    return Budget(budget.n, scored, budget.kept - scored)
