"""What the merge stage counts of a column, beside the plain ways of counting it; ranges from footers; the check of a part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import CorruptError
from cluster.fingerprint import sha256
from cluster.record import Part
from cluster.storage import Store
from tasks.hashing import hash64
from tasks.merge_columns import Counts, part_ranges, ranges_of, sampled_rows, wider
from tasks.merge_totals import Summary, Totals
from tasks.selection.order import sortable_bits
from tasks.tables import decode_table, encode_table

RANDOM = np.random.default_rng(5)
TINY = float(np.finfo(np.float32).tiny)
COLUMNS: dict[str, Any] = {
    "scores": RANDOM.gamma(2.0, 0.2, 100_000),
    "signed": RANDOM.normal(size=20_000),
    "counts": RANDOM.integers(0, 11, 5_000),
    "on every edge": np.arange(-64, 65) / 64,
    "zeros of both signs": [0.0, -0.0, 0.0],
    "one negative value": [-2.5, -2.5],
    "below the least normal number": np.concatenate([RANDOM.normal(size=2_000) * TINY, [0.0, -0.0, 1e-45, -1e-45]]),
    "the whole range": [3.4e38, -3.4e38, 1.0, 0.0],
    "neighbours": [1.0, 1.0 + 2.0**-23],
}


@pytest.mark.parametrize("name", COLUMNS)
def test_counts_are_those_of_sorting_and_of_numpys_histogram(name: str) -> None:
    values = np.asarray(COLUMNS[name], dtype=np.float32)
    low, high = ranges_of({name: values})[name]
    counts = Counts(values)
    words, times = np.unique(sortable_bits(values) >> np.uint64(48), return_counts=True)
    assert counts.digits() == dict(zip(words.tolist(), times.tolist()))
    assert counts.bins(low, high).tolist() == np.histogram(values.astype(np.float64), 64, (low, high))[0].tolist()


def test_no_rows_have_no_counts_and_no_range() -> None:
    none = np.zeros(0, np.float32)
    assert Counts(none).digits() == {} and not Counts(none).bins(0.0, 1.0).any() and ranges_of({"a": none}) == {}


def test_sampled_rows_are_those_of_small_hash() -> None:
    ids = RANDOM.integers(-(2**62), 2**62, 100_000)
    expected = np.flatnonzero(hash64("rank-sample", 0, ids) < np.uint64(2**64 // 8))
    assert sampled_rows(ids, 0.125).tolist() == expected.tolist()
    assert len(sampled_rows(ids, 1.0)) == len(ids) and len(sampled_rows(ids[:0], 0.125)) == 0


def stored(store: Store, data: bytes, name: str) -> Part:
    store.create(name, data)
    return Part(name, 0, len(data), sha256(data))


def scores(*columns: list[float]) -> pa.Table:
    values = {f"c{number}": pa.array(column, pa.float32()) for number, column in enumerate(columns)}
    return pa.table({"example_id": pa.array(range(len(columns[0])), pa.int64()), **values})


def test_ranges_come_from_footers_or_where_they_say_none_from_the_rows(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    table = scores([3.0, -1.0, 2.0], [-0.0, 0.0, 0.0])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_statistics=False)
    expected = {"c0": (-1.0, 3.0), "c1": (0.0, 0.0)}
    plain = stored(store, bytes(sink.getvalue()), "plain.parquet")
    made = stored(store, encode_table(table, "k"), "made.parquet")
    assert part_ranges(store, ["c0", "c1"], plain) == part_ranges(store, ["c0", "c1"], made) == expected
    assert part_ranges(store, ["c0"], stored(store, encode_table(scores([]), "k"), "empty.parquet")) == {}
    assert wider({"c0": (0.0, 5.0)}, {"c0": (-1.0, 3.0), "c1": (0.0, 0.0)}) == {"c0": (-1.0, 5.0), "c1": (0.0, 0.0)}


def test_ranges_of_a_part_that_is_gone_or_damaged_are_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    part = stored(store, encode_table(scores([1.0, 2.0]), "k"), "part.parquet")
    (tmp_path / "part.parquet").write_bytes(b"no Parquet")
    with pytest.raises(CorruptError, match="changed after it was published"):
        part_ranges(store, ["c0"], part)
    store.remove("part.parquet")
    with pytest.raises(CorruptError, match="is gone"):
        part_ranges(store, ["c0"], part)


def test_totals_refuse_values_outside_the_ranges_their_bins_were_made_for() -> None:
    totals = Totals(("a",))
    none: npt.NDArray[np.int64] = np.zeros(0, np.int64)
    part = Part("p", 1, 1, sha256(b""))
    totals.add(Summary(part, {"a": (0.0, 2.0)}, {"a": {}}, {"a": np.zeros(64, np.int64)}, none, {}))
    assert totals.facts({"a": (-0.0, 2.0)})["num_rows"] == 1
    with pytest.raises(CorruptError, match=r"the values of a do not have .*\(0.0, 2.0\), not \(0.0, 1.0\)"):
        totals.facts({"a": (0.0, 1.0)})


def test_numbers_of_few_and_of_many_values_come_back_as_they_were() -> None:
    rows = 50_000
    ids = RANDOM.permutation(rows) + 2**61
    columns = {"el2n@0.1": RANDOM.random(rows).astype(np.float32), "few": RANDOM.integers(0, 5, rows).astype(np.float32)}
    table = pa.table({"example_id": ids, "label": RANDOM.integers(0, 9, rows), "known": ids % 3 == 0, **columns})
    assert decode_table(encode_table(table, "k"), "").replace_schema_metadata(None).equals(table)
