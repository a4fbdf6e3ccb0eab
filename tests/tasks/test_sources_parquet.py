"""The Parquet source: layouts of features, row groups, folders, and files that are not what they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_case import TRAIN, index, own_cache, refused, vectors, write_parquet

from tasks.sources import DataSpec
from tasks.sources.parquet import ParquetSource, pack_groups
from tasks.sources.registry import open_source

__all__ = ["own_cache"]


def spec_of(path: Path, **args: Any) -> DataSpec:
    return DataSpec(source={"use": "parquet", "args": args}, train=str(path), shard_rows=20)


def all_rows(spec: DataSpec) -> np.ndarray[Any, Any]:
    source = open_source(spec, "train")
    return np.concatenate([source.read(shard).x for shard in source.shards(spec.shard_rows)])


@pytest.mark.parametrize(("groups", "rows", "ranges"), [
    ([10, 10, 10], 20, [(0, 20), (20, 10)]),
    ([10, 10, 10], 30, [(0, 30)]),
    ([10, 10, 10], 9, [(0, 5), (5, 5), (10, 5), (15, 5), (20, 5), (25, 5)]),
    ([3, 100, 3], 40, [(0, 3), (3, 33), (36, 33), (69, 34), (103, 3)]),
    ([0, 5, 0], 4, [(0, 2), (2, 3)]),
    ([], 4, []),
    ([0], 4, []),
])
def test_pack_groups(groups: list[int], rows: int, ranges: list[tuple[int, int]]) -> None:
    assert pack_groups(groups, rows) == ranges


@pytest.mark.parametrize("groups", [[7, 1, 0, 50, 12], [1] * 9, [1000]])
@pytest.mark.parametrize("rows", [1, 3, 10, 10_000])
def test_pack_groups_covers_every_row_once(groups: list[int], rows: int) -> None:
    ranges = pack_groups(groups, rows)
    edges = [0, *(start + n for start, n in ranges)]
    assert [start for start, _ in ranges] == edges[:-1] and edges[-1] == sum(groups)
    assert all(0 < n <= rows for _, n in ranges)


@pytest.mark.parametrize("group", [1, 16, 60])
@pytest.mark.parametrize("kind", ["fixed", "list", "large", "nested", "tensor"])
def test_layouts_of_a_list_column(tmp_path: Path, kind: str, group: int) -> None:
    x = vectors(60)
    flat = pa.array(x.reshape(-1))
    columns: dict[str, Any] = {
        "fixed": pa.FixedSizeListArray.from_arrays(flat, 6),
        "list": pa.array(list(x), pa.list_(pa.float32())),
        "large": pa.array(list(x), pa.large_list(pa.float32())),
        "nested": pa.array(x.reshape(60, 2, 3).tolist(), pa.list_(pa.list_(pa.float32()))),
        "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(x.reshape(60, 2, 3)),
    }
    write_parquet(tmp_path / "a.parquet", group=group, features=columns[kind])
    got = all_rows(spec_of(tmp_path / "a.parquet"))
    assert got.dtype == np.float32
    assert np.array_equal(got, x.reshape(60, 2, 3) if kind in ("nested", "tensor") else x)


def test_shape_arranges_a_flat_list(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (60, 12), dtype=np.uint8)
    write_parquet(tmp_path / "a.parquet", features=list(x))
    dataset = index(tmp_path, spec_of(tmp_path / "a.parquet", shape=[1, 3, 4]))[1]
    assert dataset.shape == (1, 3, 4) and dataset.dtype == "uint8"
    loaded = dataset.load(TRAIN)
    assert np.array_equal(loaded.x, x.reshape(60, 1, 3, 4)[loaded.position])
    refused(tmp_path, spec_of(tmp_path / "a.parquet", shape=[1, 3, 5]), "12 numbers", "15")


def test_numeric_columns(tmp_path: Path) -> None:
    a, b = np.arange(60, dtype=np.int64), np.linspace(0, 1, 60)
    write_parquet(tmp_path / "a.parquet", features=None, a=a, b=b, c=a % 2 == 0)
    got = all_rows(spec_of(tmp_path / "a.parquet", features=["a", "b", "c"]))
    assert np.allclose(got, np.stack([a, b, a % 2 == 0], axis=1))
    assert index(tmp_path, spec_of(tmp_path / "a.parquet", features=["a", "b", "c"]))[1].dtype == "float32"
    assert all_rows(spec_of(tmp_path / "a.parquet", features="b")).shape == (60, 1)


def test_whole_numbers_that_float32_would_change(tmp_path: Path) -> None:
    a = np.arange(60, dtype=np.int64)
    a[7] = 2**24 + 1
    write_parquet(tmp_path / "a.parquet", features=None, a=a, b=a)
    refused(tmp_path, spec_of(tmp_path / "a.parquet", features=["a", "b"]), "2^24", "row 7")


def test_doubles_beyond_float32(tmp_path: Path) -> None:
    a = np.ones(60)
    a[9] = 1e39
    write_parquet(tmp_path / "a.parquet", features=None, a=a)
    refused(tmp_path, spec_of(tmp_path / "a.parquet", features=["a"]), "beyond float32", "row 9")


def test_only_the_row_groups_of_the_shard_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    x = write_parquet(path, rows=64, group=16)
    source = ParquetSource(str(path), "train")
    first, second, *_ = source.shards(16)
    # Spoil the bytes of every group but the second: a reader of the whole file would stumble.
    metadata = pq.read_metadata(path)
    data = bytearray(path.read_bytes())
    for group in (0, 2, 3):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
    assert np.array_equal(source.read(second).x, x[16:32])
    refused(tmp_path, spec_of(path), "a.parquet", "not readable Parquet")
    assert first.start == 0


@pytest.mark.parametrize("labels", [
    pa.array(["0", "1", "2"] * 20).dictionary_encode(),
    pa.array([b"0", b"1", b"2"] * 20),
    pa.array(["0", "1", "2"] * 20, pa.large_string()),
    np.arange(60, dtype=np.int8) % 3,
    np.arange(60, dtype=np.uint64) % 3,
    np.arange(60).astype(np.float32) % 3,
])
def test_types_of_labels(tmp_path: Path, labels: Any) -> None:
    write_parquet(tmp_path / "a.parquet", label=labels)
    spec = spec_of(tmp_path / "a.parquet").model_copy(update={"label_map": {"0": 0, "1": 1, "2": 2}})
    loaded = index(tmp_path, spec)[1].load(TRAIN)
    assert np.array_equal(loaded.y, loaded.position % 3)


def test_boolean_labels_are_two_classes(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", label=np.arange(60) % 2 == 1)
    loaded = index(tmp_path, spec_of(tmp_path / "a.parquet"))[1].load(TRAIN)
    assert np.array_equal(loaded.y, loaded.position % 2)


def test_folder_leaves_out_metadata_and_takes_subfolders(tmp_path: Path) -> None:
    for name in ("d/a.parquet", "d/sub/b.parquet", "d/_metadata.parquet", "d/.hidden.parquet", "d/_tmp/c.parquet"):
        write_parquet(tmp_path / name)
    (tmp_path / "d/_SUCCESS").write_text("")
    source = ParquetSource(str(tmp_path / "d"), "train")
    assert [file.relative for file in source.files()] == ["a.parquet", "sub/b.parquet"]
    positions = [shard.position for shard in source.shards(1000)]
    assert positions == [0, 60]


@pytest.mark.parametrize(("args", "words"), [
    ({"label": "lable"}, ("'lable'", "did you mean 'label'?")),
    ({"features": "feature"}, ("'feature'", "did you mean 'features'?")),
    ({"id_column": "example"}, ("'example'", "known:")),
    ({"features": ["features", "x1"]}, ("'x1'",)),
    ({"features": []}, ("no column",)),
    ({"features": ["label"]}, ("the answer",)),
    ({"shape": [0]}, ("shape",)),
    ({"fetures": "x"}, ("'fetures'", "did you mean 'features'?")),
])
def test_columns_and_arguments_that_are_not_there(tmp_path: Path, args: dict[str, Any], words: tuple[str, ...]) -> None:
    write_parquet(tmp_path / "a.parquet")
    refused(tmp_path, spec_of(tmp_path / "a.parquet", **args), *words)


def test_a_column_missing_in_one_file_of_many(tmp_path: Path) -> None:
    write_parquet(tmp_path / "d/a.parquet")
    write_parquet(tmp_path / "d/b.parquet", label=None, labels=np.arange(60) % 3)
    refused(tmp_path, spec_of(tmp_path / "d"), "b.parquet", "'label'", "did you mean 'labels'?")


@pytest.mark.parametrize("spoil", ["text", "truncated", "empty"])
def test_unreadable_files(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path)
    data = path.read_bytes()
    path.write_bytes({"text": b"id,label\n1,2\n" * 9, "truncated": data[: len(data) // 2], "empty": b""}[spoil])
    refused(tmp_path, spec_of(path), "a.parquet", "not readable Parquet")


def test_places_that_are_not_there(tmp_path: Path) -> None:
    refused(tmp_path, spec_of(tmp_path / "nothing.parquet"), "no file or folder", "nothing.parquet", "data.train")
    (tmp_path / "bare").mkdir()
    refused(tmp_path, spec_of(tmp_path / "bare"), "no .parquet file")
    refused(tmp_path, DataSpec(source="parquet", train="gopher://x/y"), "scheme")
    write_parquet(tmp_path / "a.parquet")
    spec = spec_of(tmp_path / "a.parquet").model_copy(update={"test": str(tmp_path / "missing")})
    refused(tmp_path, spec, "data.test")


@pytest.mark.parametrize(("columns", "words"), [
    ({"features": [[1.0, 2.0]] * 59 + [[1.0]]}, ("wrong_shape", "another length")),
    ({"features": [[1.0, 2.0]] * 59 + [None]}, ("wrong_shape", "is null")),
    ({"features": [[1.0, 2.0]] * 59 + [[1.0, None]]}, ("non_finite_feature", "is null")),
    ({"features": [["a", "b"]] * 60}, ("string",)),
    ({"features": ["a"] * 60}, ("string",)),
    ({"features": pa.array([[]] * 60, pa.list_(pa.float32()))}, ("at least one number",)),
    ({"label": pa.array([0, 1, None] * 20)}, ("bad_label", "20 of 60", "is missing")),
    ({"label": [[0], [1], [2]] * 20}, ("'label'", "list")),
])
def test_columns_that_hold_the_wrong_things(tmp_path: Path, columns: dict[str, Any], words: tuple[str, ...]) -> None:
    write_parquet(tmp_path / "a.parquet", **columns)
    refused(tmp_path, spec_of(tmp_path / "a.parquet"), *words)


def test_null_ids(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", id=pa.array([None, *range(59)]))
    refused(tmp_path, spec_of(tmp_path / "a.parquet", id_column="id"), "'id'", "null in 1")


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.table([pa.array(list(vectors(60))), pa.array([0, 1] * 30), pa.array([1, 0] * 30)],
                     names=["features", "label", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    refused(tmp_path, spec_of(tmp_path / "a.parquet"), "2 columns 'label'")
