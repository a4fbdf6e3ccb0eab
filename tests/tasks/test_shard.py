"""The shard stage: splits, ids, labels and limits are what the specification says, and wrong data leave no trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_case import TEST, TRAIN, UNUSED, VALIDATION, index, own, own_cache, refused, table_of, vectors, write_parquet
from pydantic import ValidationError

from cluster.errors import CorruptError, InputError
from cluster.record import Unit
from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.hashing import hash64
from tasks.pool import SerialPool
from tasks.seeding import hash63
from tasks.shard import shard_key, shard_stage
from tasks.sources import DataSpec, data_digest
from tasks.sources.protocol import row_ids

__all__ = ["own_cache"]


def digits(**more: Any) -> DataSpec:
    return DataSpec(source="sklearn", train="digits", **more)


def test_digits_index_has_every_row_once_in_its_split(tmp_path: Path) -> None:
    seal, dataset, _ = index(tmp_path, digits())
    rows = table_of(dataset)
    assert len(rows) == seal.meta["num_rows"] == 1797
    counts = {split: sum(row[0] == split for row in rows.values()) for split in (TRAIN, VALIDATION, TEST, UNUSED)}
    assert counts == {
        TRAIN: seal.meta["num_train"], VALIDATION: seal.meta["num_validation"], TEST: seal.meta["num_test"], UNUSED: 0
    }
    # Binomial: 20 % of 1797 has a standard deviation of 17, 10 % of the rest one of 11.
    assert abs(counts[TEST] - 359) < 70 and abs(counts[VALIDATION] - 144) < 45
    assert all((label == -1) == (split == TEST) for split, label, _ in rows.values())
    assert sorted(position for _, _, position in rows.values()) == list(range(1797))
    assert seal.meta["num_classes"] == 10 and seal.meta["shape"] == [1, 8, 8] and seal.meta["dtype"] == "float32"


def test_ids_are_the_hash_of_the_name_plus_the_row() -> None:
    ids = row_ids("train", "a/b.parquet", 5, 3)
    assert ids.dtype == np.int64
    assert ids.tolist() == [(hash63("a/b.parquet") + 5 + i) % 2**63 for i in range(3)]
    assert not np.intersect1d(row_ids("train", "x", 0, 1000), row_ids("test", "x", 0, 1000)).size


def test_ids_wrap_at_2_to_the_63(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.seeding.hash63", lambda text: 2**63 - 2)
    assert row_ids("train", "any", 0, 4).tolist() == [2**63 - 2, 2**63 - 1, 0, 1]


@pytest.mark.parametrize("shard_rows", [7, 100, 65536])
def test_ids_splits_and_labels_do_not_depend_on_the_sharding(tmp_path: Path, shard_rows: int) -> None:
    whole = index(tmp_path, digits(limit=900), "whole")[1]
    cut = index(tmp_path, digits(limit=900, shard_rows=shard_rows), "cut")[1]
    assert table_of(cut) == table_of(whole)
    for split in (TRAIN, VALIDATION, TEST):
        one, other = whole.load(split), cut.load(split)
        assert np.array_equal(one.example_id, other.example_id) and np.array_equal(one.x, other.x)
        assert np.array_equal(one.y, other.y) and np.array_equal(one.position, other.position)


def test_split_seed_changes_the_split_and_nothing_else(tmp_path: Path) -> None:
    one = table_of(index(tmp_path, digits(), "one")[1])
    two = table_of(index(tmp_path, digits(split_seed=1), "two")[1])
    assert one.keys() == two.keys()
    both = sum(one[i][0] == TEST == two[i][0] for i in one)
    # Independent draws of 20 % share 4 % of 1797 rows, 72, with a standard deviation of 8.
    assert 35 < both < 110


def test_rows_keep_id_and_split_when_a_file_is_appended(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data/m.parquet", seed=1, rows=200)
    spec = DataSpec(source="parquet", train=str(tmp_path / "data"), shard_rows=32)
    before = index(tmp_path, spec)[1]
    rows, shards = table_of(before), {shard.part_name for shard in before.shards()}
    # One sorts before the file that was there, one after it.
    write_parquet(tmp_path / "data/a.parquet", seed=2, rows=50)
    write_parquet(tmp_path / "data/z.parquet", seed=3, rows=50)
    after = index(tmp_path, spec)[1]
    grown = table_of(after)
    assert len(grown) == 300 and after.index.key != before.index.key
    assert {i: row[:2] for i, row in rows.items()} == {i: grown[i][:2] for i in rows}
    assert shards < {shard.part_name for shard in after.shards()}, "the old shards keep their names: scores are reused"


def test_limit_takes_the_rows_of_smallest_hash(tmp_path: Path) -> None:
    seal, dataset, _ = index(tmp_path, digits(limit=500, shard_rows=100))
    rows = table_of(dataset)
    ids = np.array(sorted(rows), dtype=np.int64)
    expected = set(ids[np.argsort(hash64("limit", 0, ids))[:500]].tolist())
    assert {i for i, row in rows.items() if row[0] != UNUSED} == expected
    assert seal.meta["limit"] == 500 and seal.meta["num_unused"] == 1297
    meta = seal.meta
    assert meta["num_train"] + meta["num_validation"] + meta["num_test"] == 500
    assert len(dataset.ids(UNUSED)) == 1297
    unlimited = table_of(index(tmp_path, digits(), "unlimited")[1])
    assert all(rows[i][0] == unlimited[i][0] for i in expected)


def test_limit_above_the_rows_uses_all_and_leaves_the_test_location_alone(tmp_path: Path) -> None:
    assert index(tmp_path, digits(limit=10**6))[0].meta["num_unused"] == 0
    for name, seed in (("train", 1), ("test", 2)):
        write_parquet(tmp_path / name / "part.parquet", seed=seed, rows=300)
    spec = DataSpec(source="parquet", train=str(tmp_path / "train"), test=str(tmp_path / "test"), shard_rows=16)
    meta = index(tmp_path, spec.model_copy(update={"limit": 100}))[0].meta
    assert (meta["num_test"], meta["num_train"] + meta["num_validation"], meta["num_unused"]) == (300, 100, 200)


def test_equal_file_names_in_train_and_test_have_ids_of_their_own(tmp_path: Path) -> None:
    for name, seed in (("train", 1), ("test", 2)):
        write_parquet(tmp_path / name / "part.parquet", seed=seed)
    for train, test in (("train", "test"), ("train/part.parquet", "test/part.parquet")):
        spec = DataSpec(source="parquet", train=str(tmp_path / train), test=str(tmp_path / test))
        dataset = index(tmp_path, spec)[1]
        assert len(table_of(dataset)) == 120 and len(dataset.ids(TEST)) == 60


def test_a_finished_stage_reads_nothing_again(tmp_path: Path) -> None:
    seal, _, store = index(tmp_path, digits())

    class NoPool(SerialPool):
        def map(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("work was started")

    assert shard_stage(digits(), store, NoPool()) == seal


class DyingPool(SerialPool):
    """Die after `left` index parts, as a machine would."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left, self.labels = left, []  # type: ignore[var-annotated]

    def map(self, make_worker: Any, items: Any, *, label: str, resources: Any, done: int = 0) -> Any:
        self.labels.append((label, len(items), done))
        for number, pair in enumerate(super().map(make_worker, items, label=label, resources=resources, done=done)):
            yield pair
            if label == "shard" and number + 1 == self.left:
                raise KeyboardInterrupt


def test_a_killed_stage_resumes_with_the_missing_parts_only(tmp_path: Path) -> None:
    spec = digits(shard_rows=200, limit=1000)
    whole, _, _ = index(tmp_path, spec, "whole")
    store = Store(str(tmp_path / "killed"))
    with pytest.raises(KeyboardInterrupt):
        shard_stage(spec, store, DyingPool(4))
    unit = Unit(store, "shard", whole.key)
    assert unit.seal() is None and len(store.list(f"{unit.folder}/parts")) == 4
    second = DyingPool(-1)
    assert shard_stage(spec, store, second).to_bytes() == whole.to_bytes()
    assert second.labels == [("shard", 5, 4)], "the check pass is not repeated, nor are the four parts"


def test_a_killed_check_leaves_nothing(tmp_path: Path) -> None:
    class Killed(SerialPool):
        def map(self, *args: Any, **kwargs: Any) -> Any:
            yield from list(super().map(*args, **kwargs))[:2]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shard_stage(digits(shard_rows=200), Store(str(tmp_path / "store")), Killed())
    assert not (tmp_path / "store").exists()


def test_data_that_change_while_they_are_checked_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    class Meddling(SerialPool):
        def map(self, *args: Any, **kwargs: Any) -> Any:
            yield from super().map(*args, **kwargs)
            write_parquet(tmp_path / "a.parquet", seed=1)

    write_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="changed while they were checked"):
        shard_stage(DataSpec(source="parquet", train=str(tmp_path / "a.parquet")), Store(str(tmp_path / "store")), Meddling())
    assert not (tmp_path / "store").exists()


def test_a_part_of_another_shard_is_not_adopted(tmp_path: Path) -> None:
    spec = digits(shard_rows=200)
    whole, _, _ = index(tmp_path, spec, "whole")
    store = Store(str(tmp_path / "killed"))
    with pytest.raises(KeyboardInterrupt):
        shard_stage(spec, store, DyingPool(4))
    unit = Unit(store, "shard", whole.key)
    there = store.list(f"{unit.folder}/parts")
    sizes = {part.name: part.rows for part in whole.parts}
    one, other = [name for name in there if sizes[name] == 200][:2]
    (tmp_path / "killed" / one).write_bytes((tmp_path / "killed" / other).read_bytes())
    with pytest.raises(CorruptError, match="belongs elsewhere"):
        shard_stage(spec, store, SerialPool())
    (tmp_path / "killed" / one).unlink()
    assert shard_stage(spec, store, SerialPool()).to_bytes() == whole.to_bytes()


def test_accept_can_refuse_before_anything_is_written(tmp_path: Path) -> None:
    def accept(meta: dict[str, Any]) -> None:
        raise InputError(f"no model for {meta['shape']}")

    with pytest.raises(InputError, match=r"no model for \[1, 8, 8\]"):
        shard_stage(digits(), Store(str(tmp_path / "store")), SerialPool(), accept=accept)
    assert not (tmp_path / "store").exists()


def test_a_spoilt_plan_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "killed"))
    with pytest.raises(KeyboardInterrupt):
        shard_stage(digits(shard_rows=200), store, DyingPool(1))
    (plan,) = [name for name in store.list("stages") if name.endswith("checked.json")]
    store.replace(plan, b"{}")
    with pytest.raises(CorruptError, match=r"checked\.json"):
        shard_stage(digits(shard_rows=200), store, SerialPool())


def test_the_seal_names_no_place_on_this_machine(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data/one.parquet")
    seal, _, store = index(tmp_path, DataSpec(source="parquet", train=str(tmp_path / "data")))
    assert str(tmp_path).encode() not in seal.to_bytes()
    assert json.loads(seal.to_bytes())["meta"]["shards"][0]["relative"] == "one.parquet"
    assert store.exists(seal.parts[0].name)


def test_the_key_follows_contents_and_settings_but_not_the_place(tmp_path: Path) -> None:
    def key(folder: str, **more: Any) -> str:
        spec = DataSpec(source="parquet", train=str(tmp_path / folder), **more)
        return shard_key(spec, data_digest(spec))

    write_parquet(tmp_path / "one/a.parquet", seed=1)
    write_parquet(tmp_path / "two/a.parquet", seed=1)
    write_parquet(tmp_path / "three/a.parquet", seed=2)
    base = key("one")
    assert base == key("two") == key("one", resources={"workers": 3})
    assert len({base, key("three"), key("one", split_seed=1), key("one", limit=9), key("one", shard_rows=9)}) == 5


# What is wrong is said, and nothing is written.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite(tmp_path: Path, value: float) -> None:
    x = vectors(60)
    x[41, 2] = value
    message = refused(tmp_path, own(tmp_path, features=list(x)), "NaN or infinity", "1 of", "row 41")
    assert "bad.parquet" in message


def test_text_labels_without_a_map_show_how_to_write_one(tmp_path: Path) -> None:
    labels = ["cat", "dog", "eel"] * 20
    message = refused(tmp_path, own(tmp_path, label=labels), "'cat', 'dog', 'eel'")
    assert "data.label_map: {'cat': 0, 'dog': 1, 'eel': 2}" in message


def test_labels_with_gaps(tmp_path: Path) -> None:
    labels = np.array([1, 2, 7] * 20)
    refused(tmp_path, own(tmp_path, label=labels), "1, 2, 7", "{'1': 0, '2': 1, '7': 2}", "num_classes")
    assert index(tmp_path, own(tmp_path, label=labels).model_copy(update={"num_classes": 8}))[0].meta["num_classes"] == 8


def test_negative_labels(tmp_path: Path) -> None:
    refused(tmp_path, own(tmp_path, label=np.array([-1, 1, 0] * 20)), "not 0..K-1", "'-1'", "{'-1': 0, '0': 1, '1': 2}")


def test_labels_beyond_num_classes(tmp_path: Path) -> None:
    spec = own(tmp_path).model_copy(update={"num_classes": 2})
    refused(tmp_path, spec, "labels 2", "num_classes is 2")


@pytest.mark.parametrize("labels", [np.array([0.5, 1.0, 2.0] * 20), np.array([0.0, np.nan, 1.0] * 20)])
def test_labels_that_are_no_classes(tmp_path: Path, labels: Any) -> None:
    refused(tmp_path, own(tmp_path, label=labels), "label")


def test_one_class(tmp_path: Path) -> None:
    refused(tmp_path, own(tmp_path, label=np.zeros(60, dtype=np.int64)), "at least 2 classes")


def test_empty_dataset(tmp_path: Path) -> None:
    refused(tmp_path, own(tmp_path, rows=0), "no rows")


@pytest.mark.parametrize(("rows", "more", "words"), [
    (12, {"test_fraction": 0.001}, ("test split is empty", "0.001")),
    (12, {"validation": 0.001}, ("validation split is empty", "0.001")),
    (12, {"validation": 0.999}, ("train split is empty",)),
    (60, {"limit": 1}, ("split is empty", "data.limit 1")),
])
def test_empty_splits(tmp_path: Path, rows: int, more: dict[str, Any], words: tuple[str, ...]) -> None:
    refused(tmp_path, own(tmp_path, rows=rows).model_copy(update=more), *words)


def test_a_train_split_of_one_class(tmp_path: Path) -> None:
    labels = np.zeros(60, dtype=np.int64)
    # The only row of class 1 is the last one that a limit takes.
    labels[int(np.argsort(hash64("limit", 0, row_ids("train", "bad.parquet", 0, 60)))[59])] = 1
    spec = own(tmp_path, label=labels).model_copy(update={"limit": 40})
    refused(tmp_path, spec, "holds only class 0", "data.limit 40")


def test_test_labels_are_checked_but_not_indexed(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", seed=1)
    write_parquet(tmp_path / "test.parquet", seed=2, label=np.arange(60) % 3)
    spec = DataSpec(source="parquet", train=str(tmp_path / "train.parquet"), test=str(tmp_path / "test.parquet"))
    dataset = index(tmp_path, spec)[1]
    assert {row[1] for row in table_of(dataset).values() if row[0] == TEST} == {-1}
    assert dataset.load(TEST).y[np.argsort(dataset.load(TEST).position)].tolist() == (np.arange(60) % 3).tolist()
    write_parquet(tmp_path / "test.parquet", seed=2, label=np.arange(60) % 4)
    refused(tmp_path, spec, "data.test has labels 3", "0 to 2")
    write_parquet(tmp_path / "test.parquet", seed=2, label=["a", "b", "c"] * 20)
    refused(tmp_path, spec, "data.test", "'a', 'b', 'c'")


def test_label_map(tmp_path: Path) -> None:
    labels = ["cat", "dog", "eel"] * 20
    spec = own(tmp_path, label=labels).model_copy(update={"label_map": {"cat": 0, "dog": 1, "eel": 1}})
    seal, dataset, _ = index(tmp_path, spec)
    assert seal.meta["num_classes"] == 2 and seal.meta["class_names"] == ["cat", "dog|eel"]
    train = dataset.load(TRAIN)
    assert np.array_equal(train.y, (train.position % 3 > 0).astype(np.int64))
    refused(tmp_path, spec.model_copy(update={"label_map": {"cat": 0, "dog": 1}}), "'eel' (20 rows)", "'cat', 'dog'")


def test_label_map_compares_whole_numbers_as_text(tmp_path: Path) -> None:
    spec = own(tmp_path, label=np.array([10.0, 20.0, 30.0] * 20))
    mapped = DataSpec(**{**spec.model_dump(), "label_map": {10: 0, 20: 1, 30: 2}})
    assert index(tmp_path, mapped)[0].meta["class_names"] == ["10", "20", "30"]


def test_shapes_and_types_that_differ(tmp_path: Path) -> None:
    write_parquet(tmp_path / "d/a.parquet", seed=1)
    write_parquet(tmp_path / "d/b.parquet", seed=2, features=list(vectors(60, 2, width=5)))
    spec = DataSpec(source="parquet", train=str(tmp_path / "d"))
    refused(tmp_path, spec, "a.parquet", "b.parquet", "(6,)", "(5,)")
    write_parquet(tmp_path / "d/b.parquet", seed=2, features=[row.astype(np.uint8) for row in np.abs(vectors(60, 2))])
    refused(tmp_path, spec, "uint8", "float32")


def test_train_and_test_are_the_same_file(tmp_path: Path) -> None:
    spec = own(tmp_path)
    refused(tmp_path, spec.model_copy(update={"test": spec.train}), "both data.train and data.test")


@pytest.mark.parametrize(("fields", "word"), [
    ({"test": "x", "test_fraction": 0.2}, "test_fraction"),
    ({"test_fraction": 1.0}, "test_fraction"),
    ({"validation": 0.0}, "validation"),
    ({"limit": 0}, "limit"),
    ({"num_classes": 1}, "num_classes"),
    ({"label_map": {"a": -1}}, "label_map"),
    ({"label_map": {1: 0, "1": 1}}, "same text"),
    ({"shards": 3}, "shards"),
])
def test_settings_that_contradict_or_do_not_exist(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        digits(**fields)


def test_every_field_is_marked_and_a_name_is_a_source() -> None:
    identity = digits().identity()
    assert identity["source"] == {"use": "sklearn", "args": {}}
    assert not {"train", "test", "resources"}.intersection(identity)


def test_dataset_survives_pickling(tmp_path: Path) -> None:
    import pickle

    dataset = index(tmp_path, digits())[1]
    again: Dataset = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(again.load(TRAIN).example_id, dataset.load(TRAIN).example_id)
