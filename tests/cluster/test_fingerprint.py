"""Keys: stable bytes, golden values, refusals."""

from __future__ import annotations

import enum
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InputError
from cluster.fingerprint import canonical_json, sha256, stage_key

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(
    st.characters(exclude_categories=["Cs"])
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner), max_leaves=8)


def test_golden_key() -> None:
    """A change here is a change of every key: all stores would be computed again."""
    key = stage_key(
        "score",
        3,
        {"scores": [{"name": "el2n", "at": 0.1}], "forward_rows": 256, "note": "grün", "none": None, "flag": True},
        ["a" * 64, "b" * 64],
        {"code": "c" * 64, "torch": "2.13"},
    )
    assert key == sha256(
        b'{"digests":{"code":"' + b"c" * 64 + b'","torch":"2.13"},"identity":{"flag":true,"forward_rows":256,'
        b'"none":null,"note":"gr\xc3\xbcn","scores":[{"at":0.1,"name":"el2n"}]},"inputs":["' + b"a" * 64 + b'","'
        + b"b" * 64 + b'"],"stage":"score","version":3}'
    )
    assert key == "a410692c7cd6ef3fcceaf0ed8dd6b67a28e410199a3eae6499f7b0da7d698f3d"


@given(st.dictionaries(NAMES, VALUES, min_size=2), st.randoms())
def test_the_order_of_fields_does_not_matter(value: dict[str, Any], random: Any) -> None:
    names = list(value)
    random.shuffle(names)
    assert canonical_json({name: value[name] for name in names}) == canonical_json(value)


@given(VALUES)
def test_reading_the_bytes_back_gives_the_same_bytes(value: Any) -> None:
    import json

    data = canonical_json(value)
    assert canonical_json(json.loads(data)) == data


def test_the_order_of_lists_and_inputs_matters() -> None:
    assert canonical_json([1, 2]) != canonical_json([2, 1])
    assert stage_key("s", 1, {}, ["a", "b"]) != stage_key("s", 1, {}, ["b", "a"])


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (1, 1.0, True),
        (0.0, -0.0, True),
        ((1, 2), [1, 2], True),
        (np.float64(0.5), 0.5, True),
        (1, True, False),
        (0, None, False),
        ("1", 1, False),
        (0.1, math.nextafter(0.1, 1), False),
        (2**53, 2**53 + 1, False),
        (1e300, 10**300, False),
    ],
)
def test_which_values_are_one_setting(left: Any, right: Any, same: bool) -> None:
    assert (canonical_json(left) == canonical_json(right)) is same


@pytest.mark.parametrize("change", ["stage", "version", "identity", "inputs", "digests"])
def test_every_argument_is_part_of_the_key(change: str) -> None:
    arguments: dict[str, Any] = {"stage": "a", "version": 1, "identity": {"x": 1}, "inputs": ["k"], "digests": {"c": "d"}}
    other = {"stage": "b", "version": 2, "identity": {"x": 2}, "inputs": ["l"], "digests": {"c": "e"}}
    assert stage_key(**arguments) != stage_key(**{**arguments, change: other[change]})


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, r"x\.a\[0\] is nan: a key needs finite numbers"),
        (math.inf, "is inf"),
        ({1, 2}, r"x\.a\[0\] is a set: a value with no stable bytes"),
        (frozenset(), "is a frozenset"),
        (object(), "is a object"),
        (lambda: 0, "is a function"),
        (b"x", "is a bytes"),
        (bytearray(b"x"), "is a bytearray"),
        (np.arange(3), "is a ndarray"),
        (np.int64(3), "is a int64"),
        (Path("x"), "is a PosixPath"),
        (datetime(2026, 1, 1, tzinfo=UTC), "is a datetime"),
        (Colour.RED, "is a Colour"),
        (1j, "is a complex"),
        ("\ud800", "UTF-8 cannot hold"),
        ({1: "a", "1": "b"}, "two entries that are written '1'"),
    ],
)
def test_values_without_stable_bytes_are_refused_with_their_place(value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        canonical_json({"a": [value]}, "x")
