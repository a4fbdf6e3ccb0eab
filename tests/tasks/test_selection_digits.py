"""Scores that float64 cannot tell apart are refused, however the rows are laid out in files."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError
from tasks.standalone import select_file

LARGE = [2**53 + 1] + [2**53] * 6 + [None]


def select(folder: Path, scores: pa.Array, group: int) -> list[int]:
    table = pa.table({"example_id": pa.array(range(len(scores))), "score": scores})
    pq.write_table(table, folder / "scores.parquet", row_group_size=group)
    out = folder / "out.parquet"
    select_file(
        str(folder / "scores.parquet"), score="score", direction="high", keep=0.25, protocol="topk", alpha=None, out=str(out),
        missing="exclude",
    )  # fmt: skip
    return pq.read_table(out).column("example_id").to_pylist()


@pytest.mark.parametrize("group", [1, 4, 8])
@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64(), pa.decimal128(20, 0), pa.decimal128(38, 0)])
def test_large_integers_are_refused_in_any_row_groups_beside_nulls_or_not(tmp_path: Path, kind: pa.DataType, group: int) -> None:
    # A null makes floats of a batch of integers, and then nothing shows that they were too large.
    values = [None if one is None else Decimal(one) if pa.types.is_decimal(kind) else one for one in LARGE]
    with pytest.raises(InputError, match=r"beyond 2\^53|more digits than float64 holds"):
        select(tmp_path, pa.array(values, kind), group)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]


def test_the_largest_decimals_of_all_are_refused_too(tmp_path: Path) -> None:
    # Their float is 10^38, which decimal128(38, 0) does not hold.
    with pytest.raises(InputError, match="more digits"):
        select(tmp_path, pa.array([Decimal(10**38 - 1), Decimal(10**38 - 2), Decimal(1), Decimal(2)], pa.decimal128(38, 0)), 4)


@pytest.mark.parametrize("kind", [pa.decimal128(10, 3), pa.decimal128(30, 3), pa.decimal128(38, 18), pa.decimal256(60, 40)])
def test_decimals_that_floats_hold_are_ordered(tmp_path: Path, kind: pa.DataType) -> None:
    values = [Decimal("0.3"), Decimal("0.125"), None, Decimal("1001.8"), Decimal("-3"), Decimal("1001.7"), Decimal(0), Decimal(9)]
    assert select(tmp_path, pa.array(values, kind), 3) == [3, 5]


def test_neighbouring_decimals_of_one_float_are_not_both_accepted(tmp_path: Path) -> None:
    values = [Decimal("0.3"), Decimal("0.300000000000000001"), Decimal(1), Decimal(2)]
    with pytest.raises(InputError, match="more digits"):
        select(tmp_path, pa.array(values, pa.decimal128(38, 18)), 1)


def test_integers_up_to_2_to_the_53_are_ordered_beside_nulls(tmp_path: Path) -> None:
    values = [2**53 - 1, None, 2**53, -(2**53), 0, 2**53 - 2, 5, 7]
    assert select(tmp_path, pa.array(values, pa.int64()), 8) == [0, 2]
