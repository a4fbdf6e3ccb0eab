"""Shards and findings as the driver keeps them: small, and what was put in comes out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.fingerprint import canonical_json, sha256
from tasks.checked_shards import Checked, CheckedShards
from tasks.shard_records import pack_shards, unpack_shards
from tasks.sources.protocol import Shard


def shard(location: str, relative: str, start: int, rows: int, position: int) -> Shard:
    return Shard(location, relative, "", start, rows, position, sha256(f"{location}{relative}{start}".encode()))


@settings(derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(["train", "test"]), st.sampled_from("ab"), *[st.integers(0, 3)] * 3), max_size=12))
def test_any_shards_come_back_in_their_order(fields: list[tuple[str, str, int, int, int]]) -> None:
    shards = [shard(*each) for each in fields]
    assert list(unpack_shards(pack_shards(shards))) == shards


def test_shards_in_a_row_take_little() -> None:
    shards = [shard("train", "part-0.parquet", 8 * number, 8, 8 * number) for number in range(1000)]
    runs = pack_shards([*shards, shard("train", "part-0.parquet", 8000, 3, 8000)])
    assert [run["rows"] for run in runs] == [[[8, 1000], [3, 1]]]
    assert len(canonical_json(runs)) < 66 * len(shards)


def checked(number: int, *, bad: bool = False, loose: bool = False) -> Checked:
    by_split = Counter({(1, number % 3): 2, (2, 300_000): 1})
    return Checked(
        None if bad else (2, 2), "uint8", np.array([9, number]) if loose else (number, 3), by_split,
        Counter({"cat": 1}) if bad else Counter(), None, Counter({"bad_label": 1}) if bad else Counter(),
        {"bad_label": ["row 0"]} if bad else {},
    )  # fmt: skip


@pytest.mark.parametrize("order", [range(6), range(5, -1, -1)])
def test_findings_come_back_in_the_order_of_the_shards(order: range) -> None:
    kept = CheckedShards(6)
    given = [checked(number, bad=number == 2, loose=number == 4) for number in range(6)]
    for number in order:
        kept.put(number, checked(0, bad=True))
        kept.put(number, given[number])
    assert len(kept) == 6
    for one, other in zip(kept, given, strict=True):
        assert np.array_equal(one.ids, other.ids)
        assert (one.shape, one.dtype, one.by_split, one.classes) == (other.shape, other.dtype, other.by_split, other.classes)
        assert (one.unknown, one.candidates, one.bad, one.examples) == (other.unknown, None, other.bad, other.examples)
