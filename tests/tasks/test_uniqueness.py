"""Ids: unique over all shards, files and locations, whole numbers of 63 bits, and never pushed through a float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_case import TRAIN, index, own, own_cache, refused, table_of, write_parquet

from cluster.errors import InputError
from tasks.sources import DataSpec
from tasks.sources.protocol import Shard
from tasks.uniqueness import check_ids

__all__ = ["own_cache"]


def test_duplicate_ids_across_shards_files_and_locations(tmp_path: Path) -> None:
    args = {"id_column": "id"}
    ids = np.random.default_rng(0).permutation(10_000)[:120]
    write_parquet(tmp_path / "d/a.parquet", seed=1, id=ids[:60])
    write_parquet(tmp_path / "d/b.parquet", seed=2, id=np.r_[ids[60:119], ids[3]])
    spec = DataSpec(source={"use": "parquet", "args": args}, train=str(tmp_path / "d"), shard_rows=16)
    refused(tmp_path, spec, f"example_id {ids[3]} ", "a.parquet", "b.parquet", "unique")
    write_parquet(tmp_path / "d/b.parquet", seed=2, id=ids[60:])
    write_parquet(tmp_path / "t.parquet", seed=3, id=np.r_[ids[60], np.arange(20_000, 20_059)])
    with_test = spec.model_copy(update={"test": str(tmp_path / "t.parquet")})
    refused(tmp_path, with_test, f"example_id {ids[60]} ", "t.parquet")
    write_parquet(tmp_path / "t.parquet", seed=3, id=np.arange(20_000, 20_060))
    assert len(table_of(index(tmp_path, with_test)[1])) == 180


def _shards(*rows: int) -> list[Shard]:
    return [Shard("train", f"f{i}", "", 0, n, 0, "") for i, n in enumerate(rows)]


@pytest.mark.parametrize(("ids", "twice"), [
    ([(0, 10), (10, 10)], None),
    ([(0, 10), (9, 10)], 9),
    ([(2**63 - 5, 10), (4, 3)], 4),
    ([(2**63 - 5, 10), (5, 3)], None),
    ([(2**63 - 5, 10), np.array([2**63 - 1, 77])], 2**63 - 1),
    ([(100, 50), np.array([99, 150, -1])], None),
    ([(100, 50), np.array([7, 149, 3])], 149),
    ([np.array([5, 1]), np.array([9, 5])], 5),
    ([np.array([5, 1, 5])], 5),
])
def test_overlaps_of_ranges_and_loose_ids(ids: list[Any], twice: int | None) -> None:
    shards = _shards(*(one[1] if isinstance(one, tuple) else len(one) for one in ids))
    if twice is None:
        check_ids(shards, ids)
        return
    with pytest.raises(InputError, match=f"example_id {twice} is there more than once"):
        check_ids(shards, ids)


def test_ids_above_2_to_the_53_survive(tmp_path: Path) -> None:
    """Trap 14: ids beyond what float32, float64 or int32 hold stay what they are."""
    ids = 2**53 + np.arange(60) * 2 + 1
    spec = DataSpec(source={"use": "parquet", "args": {"id_column": "id"}}, train=own(tmp_path, id=ids).train)
    dataset = index(tmp_path, spec)[1]
    assert sorted(table_of(dataset)) == ids.tolist()
    loaded = dataset.load(TRAIN)
    assert loaded.example_id.dtype == np.int64 and np.isin(loaded.example_id, ids).all()


@pytest.mark.parametrize("ids", [np.arange(60).astype(np.float32), [str(i) for i in range(60)]])
def test_ids_that_are_not_integers(tmp_path: Path, ids: Any) -> None:
    spec = DataSpec(source={"use": "parquet", "args": {"id_column": "id"}}, train=own(tmp_path, id=ids).train)
    refused(tmp_path, spec, "'id'", "int64", "leave id_column out")


def test_ids_above_int64(tmp_path: Path) -> None:
    ids = np.arange(60, dtype=np.uint64) + np.uint64(2**63)
    spec = DataSpec(source={"use": "parquet", "args": {"id_column": "id"}}, train=own(tmp_path, id=ids).train)
    refused(tmp_path, spec, "2^63 - 1")
