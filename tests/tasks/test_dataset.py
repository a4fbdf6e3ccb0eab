"""The reader of a sharded dataset: rows stay with their ids, and what changed under a run is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_case import TEST, TRAIN, UNUSED, VALIDATION, index, own_cache, write_parquet

from cluster.errors import CorruptError, InputError, ItemsError
from tasks.dataset import Dataset
from tasks.sources import DataSpec
from tasks.sources.contents import content_digest
from tasks.sources.protocol import BadRow, RawExamples

__all__ = ["own_cache"]


def test_rows_keep_their_features_and_labels(tmp_path: Path) -> None:
    """Trap 1: ids in shuffled order, with features and labels that name them."""
    ids = np.random.default_rng(3).permutation(5000)[:300]
    x = np.repeat(ids[:, None], 4, axis=1).astype(np.float32)
    path = tmp_path / "shuffled.parquet"
    write_parquet(path, rows=300, group=40, features=list(x), label=ids % 3, id=ids)
    spec = DataSpec(source={"use": "parquet", "args": {"id_column": "id"}}, train=str(path), shard_rows=50)
    dataset = index(tmp_path, spec)[1]
    seen = 0
    for split in (TRAIN, VALIDATION, TEST):
        loaded = dataset.load(split)
        seen += len(loaded)
        assert (np.diff(loaded.example_id) > 0).all(), "sorted, so that no order of the data is assumed"
        assert np.array_equal(loaded.x[:, 0], loaded.example_id.astype(np.float32))
        assert np.array_equal(loaded.y, loaded.example_id % 3)
        assert np.array_equal(ids[loaded.position], loaded.example_id)
        assert np.array_equal(loaded.example_id, dataset.ids(split))
    assert seen == 300


def test_a_shard_is_read_in_row_order(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", rows=100)
    dataset = index(tmp_path, DataSpec(source="parquet", train=str(tmp_path / "a.parquet"), shard_rows=30))[1]
    positions = np.concatenate([dataset.read(shard, TRAIN).position for shard in dataset.shards()])
    assert (np.diff(positions) > 0).all() and len(positions) == dataset.num_train
    assert len(dataset.read(dataset.shards()[0], UNUSED)) == 0
    assert dataset.load(UNUSED).x.shape == (0, 6) and dataset.load(UNUSED).x.dtype == np.float32


def test_facts_of_the_index(tmp_path: Path) -> None:
    dataset = index(tmp_path, DataSpec(source="sklearn", train="iris"))[1]
    assert dataset.class_names == ["setosa", "versicolor", "virginica"] and dataset.num_classes == 3
    assert dataset.shape == (4,) and dataset.dtype == "float32"
    assert (dataset.num_train, dataset.num_validation, dataset.num_test) == tuple(
        len(dataset.ids(split)) for split in (TRAIN, VALIDATION, TEST)
    )
    assert dataset.shards("test") == []


def test_data_may_move_between_runs(tmp_path: Path) -> None:
    write_parquet(tmp_path / "here/a.parquet")
    _, dataset, store = index(tmp_path, DataSpec(source="parquet", train=str(tmp_path / "here")))
    before = dataset.load(TRAIN)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = Dataset(DataSpec(source="parquet", train=str(tmp_path / "there")), dataset.index, store)
    assert np.array_equal(moved.load(TRAIN).x, before.x)


def test_changed_labels_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path)
    dataset = index(tmp_path, DataSpec(source="parquet", train=str(path)))[1]
    write_parquet(path, label=(np.arange(60) + 1) % 3)
    with pytest.raises(ItemsError, match="changed under the run"):
        dataset.load(TRAIN)


def test_changed_features_are_noticed_under_the_same_ids_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path)
    before = path.read_bytes()
    dataset = index(tmp_path, DataSpec(source="parquet", train=str(path)))[1]
    write_parquet(path, seed=1)
    with pytest.raises(ItemsError, match="features are not those that were checked: the data changed under the run"):
        dataset.load(TRAIN)
    path.write_bytes(before)
    assert len(dataset.load(TRAIN)) == dataset.num_train


def test_content_is_that_of_good_rows_with_shape_and_type() -> None:
    def content(x: Any, bad: list[int] | None = None) -> str:
        rows = [BadRow(row, "undecodable", "broken") for row in bad or []]
        return content_digest(RawExamples(np.arange(len(x)), x, np.arange(len(x)), rows))

    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    other = x.copy()
    other[1] = np.nan
    assert content(x, [1]) == content(other, [1]) != content(x)
    assert content(x) == content(np.asfortranarray(x)) == content(np.repeat(x, 2, axis=0)[::2])
    assert len({content(x), content(x.reshape(3, 2, 2)), content(x.astype(np.float64)), content(x.view(np.int32))}) == 4
    assert (x == np.arange(12).reshape(3, 4)).all(), "what was read is left as it was"
    # A source's filler for rows that could not be read may be of any type.
    assert content(np.full((2, 1), None), [0, 1]) != content(np.full((2, 2), None), [0, 1])


def test_rows_taken_away_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path)
    dataset = index(tmp_path, DataSpec(source="parquet", train=str(path)))[1]
    write_parquet(path, rows=59)
    with pytest.raises(ItemsError, match=r"fewer rows.*changed under the run"):
        dataset.load(TRAIN)
    path.unlink()
    with pytest.raises((InputError, ItemsError), match=r"a\.parquet"):
        dataset.load(TRAIN)


def test_a_changed_index_part_is_noticed(tmp_path: Path) -> None:
    dataset, store = index(tmp_path, DataSpec(source="sklearn", train="iris"))[1:]
    part = Path(store.uri) / dataset.index.parts[0].name
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(CorruptError, match="changed after it was published"):
        dataset.load(TRAIN)
