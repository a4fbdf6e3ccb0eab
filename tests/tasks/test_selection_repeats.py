"""Ids that occur more than once are found, however many there are and in whatever order they come."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError, StageError
from tasks.hashing import I64
from tasks.selection.parquet_rows import ParquetRows
from tasks.selection.repeats import find_repeats


def slow(ids: I64) -> tuple[int, int]:
    """Count by a dictionary."""
    twice = [one for one, count in Counter(ids.tolist()).items() if count > 1]
    return len(twice), min(twice, default=0)


@pytest.mark.parametrize("sorted_rows", [7, 100, 999, 1000, 10_000])
@pytest.mark.parametrize("spread", ["none", "few", "many", "one", "extremes"])
def test_as_a_dictionary_counts_them(sorted_rows: int, spread: str) -> None:
    generator = np.random.default_rng(sorted_rows)
    ids = generator.permutation(10**6)[:1000].astype(np.int64) - 5000
    if spread == "few":
        ids[[3, 500, 999]] = ids[[700, 701, 702]]
    elif spread == "many":
        ids = generator.integers(-40, 40, 1000)
    elif spread == "one":
        ids[:] = -7
    elif spread == "extremes":
        ids[[1, 50, 600, 601]] = [-(2**63), -(2**63), 2**63 - 1, 2**63 - 1]
    batches = np.split(ids.copy(), [0, 1, 130, 130, 640])
    assert find_repeats(batches, len(ids), sorted_rows) == slow(ids)


def test_select_finds_them_beyond_what_is_sorted_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_repeats, "__defaults__", (64,))
    folder = tmp_path / "scores"
    folder.mkdir()
    ids = np.random.default_rng(1).permutation(1000).astype(np.int64)
    for number, part in enumerate(np.split(ids, 4)):
        pq.write_table(pa.table({"example_id": part, "score": np.ones(len(part))}), folder / f"{number}.parquet")
    ParquetRows(str(folder), None, "score").check_unique()
    pq.write_table(pa.table({"example_id": ids[[5, 900]], "score": np.ones(2)}), folder / "again.parquet")
    with pytest.raises(InputError, match=f"2 ids occur more than once in 'example_id', {min(ids[5], ids[900])} for example"):
        ParquetRows(str(folder), None, "score").check_unique()


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert find_repeats([np.arange(500), np.arange(499, 600)], 601, 50) == (1, 499)

    def broken() -> I64:
        raise OSError(28, "No space left on device")

    with pytest.raises(StageError, match=r"temporary folder .* is full: 601 ids"):
        find_repeats((broken() for _ in range(1)), 601, 50)
    assert list(tmp_path.iterdir()) == []
