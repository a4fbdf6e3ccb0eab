"""Shards and findings as the driver keeps them: small, and what was put in comes out."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.fingerprint import canonical_json, sha256
from tasks.checked_shards import Checked, CheckedShards
from tasks.shard_records import Shards, pack_shards, unpack_shards
from tasks.sources.protocol import Shard


def shard(location: str, relative: str, start: int, rows: int, position: int) -> Shard:
    return Shard(location, relative, "", start, rows, position, sha256(f"{location}{relative}{start}".encode()))


@settings(derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(["train", "test"]), st.sampled_from("ab"), *[st.integers(0, 3)] * 3), max_size=12))
def test_any_shards_come_back_in_their_order(fields: list[tuple[str, str, int, int, int]]) -> None:
    shards = [shard(*each) for each in fields]
    assert list(unpack_shards(pack_shards(shards))) == shards
    assert list(Shards(shards)) == shards and Shards(shards) == shards


def test_shards_are_a_list_of_what_was_put_in() -> None:
    """Digests and files of a user's own source too, which may be anything."""
    plain = [shard("train", "part-0.parquet", 8 * number, 8, 8 * number) for number in range(5)]
    odd = [replace(plain[number], digest=digest) for number, digest in enumerate(["", "A" * 64, "0" * 63, " " * 128])]
    images = replace(plain[1], files=("a/1.png", "b.png"), uri="s3://b/c")
    given = [*plain, *odd, images, shard("test", "t.parquet", 2**40, 8, 2**41)]
    kept = Shards(given)
    assert kept == given and list(reversed(kept)) == given[::-1] and kept != given[1:] and Shards() == []
    assert kept[-1] == given[-1] and kept[2:9:3] == given[2:9:3] and kept[9].files == images.files
    with pytest.raises(IndexError):
        kept[len(given)]
    assert pickle.loads(pickle.dumps(kept)) == kept and hash(Shards(given)) == hash(kept)
    names = [sha256(one.digest.encode()) for one in given]
    assert kept.renamed(names) == [replace(one, digest=name) for one, name in zip(given, names)]
    assert kept == given and kept.renamed(names[::-1]) != kept


def test_many_shards_are_small() -> None:
    shards = Shards(shard("train", "part-0.parquet", 8 * number, 8, 8 * number) for number in range(2000))
    assert len(pickle.dumps(shards)) < 65 * len(shards)


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
        {"bad_label": ["row 0"]} if bad else {}, f"{number:032x}",
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
        assert one.content == other.content
        assert (one.unknown, one.candidates, one.bad, one.examples) == (other.unknown, None, other.bad, other.examples)
