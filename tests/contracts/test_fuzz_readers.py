"""Damaged Parquet and IDX files, hundreds of them by a fixed seed: a dataset, a quarantine, or one InputError."""

from __future__ import annotations

import gzip
import io
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import InputError
from cluster.storage import Store
from tasks.own_scores import read_own_scores
from tasks.pool import SerialPool
from tasks.shard import shard_stage
from tasks.sources.spec import DataSpec
from tasks.standalone import select_file

pytestmark = pytest.mark.timeout(600)

ROWS = 60
BOUNDED = settings(
    derandomize=True, deadline=None, max_examples=150, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)  # fmt: skip

Change = tuple[str, int, int]


def parquet_bytes() -> bytes:
    x = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
    features = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 4)
    sink = io.BytesIO()
    table = pa.table({"features": features, "label": np.arange(ROWS) % 3, "id": np.arange(ROWS) * 7})
    pq.write_table(table, sink, row_group_size=20)
    return sink.getvalue()


def idx_bytes(array: np.ndarray[Any, Any]) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def scores_bytes() -> bytes:
    sink = io.BytesIO()
    score = [None, float("nan"), *np.random.default_rng(2).random(ROWS - 2).tolist()]
    pq.write_table(pa.table({"example_id": np.arange(ROWS) * 3, "s": score}), sink, row_group_size=20)
    return sink.getvalue()


PARQUET, SCORES = parquet_bytes(), scores_bytes()
IMAGES = idx_bytes(np.random.default_rng(1).integers(0, 256, (ROWS, 4, 4), dtype=np.uint8))
LABELS = idx_bytes((np.arange(ROWS) % 3).astype(np.uint8))


def changes(size: int) -> st.SearchStrategy[list[Change]]:
    """Return up to four changes of a file: a byte set, a stretch cut out or doubled, the rest thrown away."""
    at = st.one_of(st.integers(0, size - 1), st.integers(0, 40), st.integers(max(0, size - 700), size - 1))
    one = st.tuples(st.sampled_from(["set", "set", "flip", "cut", "double", "end"]), at, st.integers(0, 255))
    return st.lists(one, min_size=1, max_size=4)


def changed(data: bytes, how: list[Change]) -> bytes:
    for what, where, value in how:
        at = where % max(len(data), 1)
        if what == "set":
            data = data[:at] + bytes([value]) + data[at + 1 :]
        elif what == "flip":
            data = data[:at] + bytes([data[at] ^ (1 << value % 8)]) + data[at + 1 :] if data else data
        elif what == "cut":
            data = data[:at] + data[at + value % 16 :]
        elif what == "double":
            data = data[:at] + data[at : at + value % 16] + data[at:]
        else:
            data = data[:at]
    return data


def holds(folder: Path, spec: DataSpec) -> None:
    """Assert that the shard stage makes a whole index, bad rows in quarantine, or refuses and writes nothing."""
    place = folder / "store"
    store = Store(str(place))
    try:
        seal = shard_stage(spec, store, SerialPool())
    except InputError as error:
        assert str(error) and not place.exists(), "something was written"
        return
    fact = seal.meta["quarantine"]
    assert sum(part.rows for part in seal.parts) == seal.meta["num_rows"]
    assert fact["rows"] == sum(fact["causes"].values()) == sum(part["rows"] for part in fact["parts"])


@BOUNDED
@given(changes(len(PARQUET)), st.sampled_from([None, "id"]))
def test_damaged_parquet(how: list[Change], id_column: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data" / "a.parquet"
        path.parent.mkdir()
        path.write_bytes(changed(PARQUET, how))
        source = {"use": "parquet", "args": {"id_column": id_column} if id_column else {}}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SECATEUR_CACHE", str(Path(folder) / "cache"))
            holds(Path(folder), DataSpec(source=source, train=str(path.parent), shard_rows=16, max_bad_fraction=0.5))


@BOUNDED
@given(changes(len(IMAGES)), changes(len(LABELS)), st.booleans(), st.booleans(), st.booleans())
def test_damaged_idx(images: list[Change], labels: list[Change], both: bool, pack: bool, inside: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        files = {"train-images-idx3-ubyte": (IMAGES, images), "train-labels-idx1-ubyte": (LABELS, labels if both else [])}
        for name, (whole, how) in files.items():
            if not pack:
                (data / name).write_bytes(changed(whole, how))
            else:
                # Damage within the packed file, or a whole packing of damaged bytes.
                packed = gzip.compress(changed(whole, how)) if inside else changed(gzip.compress(whole), how)
                (data / f"{name}.gz").write_bytes(packed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SECATEUR_CACHE", str(Path(folder) / "cache"))
            holds(Path(folder), DataSpec(source="idx", train=str(data), shard_rows=16, max_bad_fraction=0.5))


@BOUNDED
@given(changes(len(SCORES)), st.sampled_from(["refuse", "exclude", "explore"]))
def test_damaged_scores(how: list[Change], missing: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "scores.parquet", Path(folder) / "out.parquet"
        path.write_bytes(changed(SCORES, how))
        for read in (
            lambda: read_own_scores(str(path)),
            lambda: select_file(
                str(path), score="s", direction="high", keep=0.5, alpha=0.5, out=str(out), missing=missing, threads=1
            ),
        ):
            try:
                read()
            except InputError as error:
                assert str(error)
        assert not out.exists() or pq.read_table(out).num_rows
        assert not [name for name in Path(folder).iterdir() if name not in (path, out)], "a scratch file is left"
