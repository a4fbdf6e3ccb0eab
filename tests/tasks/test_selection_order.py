"""Row groups that are read in several batches: their order, and ids that occur twice in them or at their ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError
from tasks.selection.rows import BATCH_ROWS
from tasks.standalone import select_file

ROWS = BATCH_ROWS + 20_000


def write(folder: Path, *groups: np.ndarray) -> str:
    """Write ids, each array a row group, with scores that do not follow them."""
    schema = pa.schema({"example_id": pa.int64(), "score": pa.float32()})
    with pq.ParquetWriter(folder / "scores.parquet", schema) as writer:
        for ids in groups:
            score = (ids * 2654435761 % 2**20).astype(np.float32)
            writer.write_table(pa.table([pa.array(ids), pa.array(score)], schema=schema), row_group_size=len(ids))
    assert pq.ParquetFile(folder / "scores.parquet").num_row_groups == len(groups)
    return str(folder / "scores.parquet")


def select(scores: str, out: Path) -> pa.Table:
    select_file(scores, score="score", direction="high", keep=0.1, protocol="exact", alpha=0.5, out=str(out))
    return pq.read_table(out)


def test_a_later_batch_of_a_row_group_that_lies_below_the_first_is_put_in_order(tmp_path: Path) -> None:
    ids = np.arange(ROWS)
    expected = select(write(tmp_path, ids), tmp_path / "ascending.parquet")
    # Both batches ascend, and the second begins below the end of the first.
    turned = np.concatenate([ids[ROWS - BATCH_ROWS :], ids[: ROWS - BATCH_ROWS]])
    found = select(write(tmp_path, turned), tmp_path / "turned.parquet")
    assert found.equals(expected)
    assert (np.diff(found.column("example_id").to_numpy()) > 0).all()


def test_a_later_batch_of_a_row_group_that_repeats_ids_of_the_first_is_refused(tmp_path: Path) -> None:
    scores = write(tmp_path, np.concatenate([np.arange(BATCH_ROWS), np.arange(20_000)]))
    with pytest.raises(InputError, match="20000 ids occur more than once"):
        select(scores, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_an_id_that_ends_one_row_group_and_begins_the_next_is_refused(tmp_path: Path) -> None:
    scores = write(tmp_path, np.arange(5_000), np.arange(4_999, 9_000))
    with pytest.raises(InputError, match="1 ids occur more than once in 'example_id', 4999 for example"):
        select(scores, tmp_path / "out.parquet")
