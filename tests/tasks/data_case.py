"""Small datasets in every format, and what tests of sources ask of an index."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError
from cluster.record import Seal
from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.pool import SerialPool
from tasks.shard import shard_stage
from tasks.sources.spec import DataSpec

TRAIN, VALIDATION, TEST, UNUSED = 0, 1, 2, 3


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keep the digest cache of each test to itself."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SECATEUR_CACHE", str(folder))
    yield folder


def index(tmp_path: Path, spec: DataSpec, name: str = "store") -> tuple[Seal, Dataset, Store]:
    """Run the shard stage serially."""
    store = Store(str(tmp_path / name))
    seal = shard_stage(spec, store, SerialPool())
    return seal, Dataset(spec, seal, store), store


def refused(tmp_path: Path, spec: DataSpec, *words: str) -> str:
    """Return the message of the InputError that the shard stage must raise, with `words` in it and nothing written."""
    store = Store(str(tmp_path / "refusing"))
    with pytest.raises(InputError) as caught:
        shard_stage(spec, store, SerialPool())
    assert not (tmp_path / "refusing").exists(), "something was written"
    message = str(caught.value)
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
    return message


def table_of(dataset: Dataset) -> dict[int, tuple[int, int, int]]:
    """Return {example_id: (split, label, position)} over all locations."""
    out = {}
    for location in ("train", "test"):
        for shard in dataset.shards(location):
            rows = dataset.index_table(shard).to_pydict()
            for example_id, *facts in zip(*(rows[name] for name in ("example_id", "split", "label", "position"))):
                assert example_id not in out
                out[example_id] = tuple(facts)
    return out


def vectors(rows: int, seed: int = 0, width: int = 6) -> np.ndarray[Any, Any]:
    """Return (rows, width) float32."""
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def write_parquet(
    path: Path, rows: int = 60, *, group: int = 16, seed: int = 0, **columns: Any
) -> np.ndarray[Any, Any]:
    """Write features (6 float32), label 0..2, in groups; `columns` replace or add. Returns the features."""
    x = vectors(rows, seed)
    features = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 6)
    data = {"features": features, "label": np.arange(rows) % 3, **columns}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({name: value for name, value in data.items() if value is not None})
    pq.write_table(table, path, row_group_size=group)
    return x


def write_idx(
    folder: Path, stem: str, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], *, pack: bool
) -> None:
    """Write a pair of ubyte IDX files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", labels)):
        data = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
        if pack:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)


def pictures(rows: int, seed: int = 0, side: int = 5) -> np.ndarray[Any, Any]:
    """Return (rows, side, side) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (rows, side, side), dtype=np.uint8)


def own(tmp_path: Path, **columns: Any) -> DataSpec:
    write_parquet(tmp_path / "bad.parquet", **columns)
    return DataSpec(source="parquet", train=str(tmp_path / "bad.parquet"), shard_rows=25)
