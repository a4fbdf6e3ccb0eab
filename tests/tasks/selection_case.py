"""What several tests of selections build on: sources cut in pieces, and selections as plain columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.selection import SelectionSpec, calibrated_selection
from tasks.selection.rows import ArrayRows, Batch

I64 = npt.NDArray[np.int64]
SCORE = "el2n"


class GeneratedRows:
    """Give n rows that are made anew in each pass: ids 0..n-1, scores (N,) as `score` makes them of ids (N,)."""

    num_codes = 0
    code_counts = None
    has_scores = True

    def __init__(self, n: int, score: Callable[[I64], npt.NDArray[np.float32]], piece_rows: int) -> None:
        self.num_rows, self.score, self.piece_rows = n, score, piece_rows

    def pieces(self) -> Sequence[int]:
        return range(0, self.num_rows, self.piece_rows)

    def read(self, piece: int) -> Iterator[Batch]:
        ids = np.arange(piece, min(piece + self.piece_rows, self.num_rows), dtype=np.int64)
        yield Batch(ids, self.score(ids), None)

    def read_keys(self, piece: int) -> Iterator[Batch]:
        return self.read(piece)


class CutRows:
    """Give rows in given pieces, in a given order."""

    code_counts = None

    def __init__(self, pieces: Sequence[Batch], num_codes: int = 0) -> None:
        self._pieces = list(pieces)
        self.num_rows = sum(len(piece.example_id) for piece in pieces)
        self.num_codes = num_codes
        self.has_scores = all(piece.score is not None for piece in pieces)

    def pieces(self) -> Sequence[Batch]:
        return self._pieces

    def read(self, piece: Batch) -> Iterator[Batch]:
        yield piece

    def read_keys(self, piece: Batch) -> Iterator[Batch]:
        ids = np.zeros(len(piece.example_id), dtype=np.int64)
        yield Batch(ids, piece.score, piece.code)


def cut(rows: ArrayRows, shards: int, order: int) -> CutRows:
    """Return the rows shuffled, cut into `shards` pieces of differing sizes, by the seed `order`."""
    generator = np.random.default_rng(order)
    shuffled = generator.permutation(rows.num_rows)
    cuts = np.sort(generator.integers(0, rows.num_rows + 1, shards - 1))
    return CutRows(
        [
            Batch(
                rows.example_id[part],
                None if rows.score is None else rows.score[part],
                None if rows.code is None else rows.code[part].astype(np.int32),
            )
            for part in np.split(shuffled, cuts)
        ],
        rows.num_codes,
    )


def spec(protocol: str, keep: float, alpha: float | None = None, **settings: Any) -> SelectionSpec:
    """Return a spec over the built-in score el2n; alpha is left out where the protocol fixes it."""
    fixed = protocol in ("random", "topk")
    score = None if protocol == "random" else SCORE
    return SelectionSpec(protocol=protocol, keep=keep, alpha=None if fixed else alpha, score=score, **settings)


def columns(rows: Any, chosen: SelectionSpec, seed: int, **options: Any) -> dict[str, Any]:
    """Return the columns of a selection as arrays, arms as text."""
    table = calibrated_selection(rows, chosen, seed, **options).table()
    return {
        "example_id": table.column("example_id").to_numpy(),
        "arm": np.array(table.column("arm").to_pylist()),
        "inclusion_prob": table.column("inclusion_prob").to_numpy(),
        "weight": table.column("weight").to_numpy(),
    }


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Return whether all columns are equal, to the last bit."""
    return all(np.array_equal(first[name], second[name]) for name in first)


def random_rows(n: int, seed: int, distinct: int | None = None, classes: int = 0) -> ArrayRows:
    """Return n rows with scattered ids and scores, `distinct` different values of them where given."""
    generator = np.random.default_rng(seed)
    ids = np.unique(generator.integers(-(2**63), 2**63 - 1, n + 8))[:n]
    generator.shuffle(ids)
    score = generator.random(n) if distinct is None else generator.integers(0, distinct, n) / 4 - 1
    code = generator.integers(0, classes, n) if classes else None
    return ArrayRows(ids, score.astype(np.float32), code, classes)
