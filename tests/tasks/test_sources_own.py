"""Bundled sets, sources of the user's own, and names that are neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_case import TEST, TRAIN, index, own_cache, refused
from sklearn import datasets

from tasks.sources import DataSpec, Source, open_source

__all__ = ["own_cache"]


@pytest.mark.parametrize("name", ["digits", "iris", "wine", "breast_cancer"])
def test_bundled_sets_are_scikit_learns(tmp_path: Path, name: str) -> None:
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    dataset = index(tmp_path, DataSpec(source="sklearn", train=name))[1]
    loaded = dataset.load(TRAIN)
    scale = 16.0 if name == "digits" else 1.0
    assert np.array_equal(loaded.x.reshape(len(loaded), -1), (x / scale).astype(np.float32)[loaded.position])
    assert np.array_equal(loaded.y, y[loaded.position])


@pytest.mark.parametrize(("name", "words"), [("digit", ("did you mean 'digits'?",)), ("faces", ("known:", "digits"))])
def test_sets_that_are_not_bundled(tmp_path: Path, name: str, words: tuple[str, ...]) -> None:
    refused(tmp_path, DataSpec(source="sklearn", train=name), repr(name), *words)


def own(train: str = "ring", **more: Any) -> DataSpec:
    args = more.pop("args", {})
    return DataSpec(source={"use": "own_source:Ring", "args": args}, train=train, shard_rows=15, **more)


def test_a_source_of_the_users_own(tmp_path: Path) -> None:
    assert isinstance(open_source(own(), "train"), Source)
    dataset = index(tmp_path, own(test="other"))[1]
    assert dataset.num_test == 40 and dataset.shape == (2,) and dataset.dtype == "float32"
    loaded = dataset.load(TEST)
    assert np.allclose((loaded.x**2).sum(axis=1), 1.0) and (loaded.example_id >= 1_000_000).all()


def test_its_arguments_and_contents_are_part_of_the_key(tmp_path: Path) -> None:
    keys = {index(tmp_path, own(args={"rows": rows}))[0].key for rows in (40, 41)}
    assert len(keys) == 2


@pytest.mark.parametrize(("spoil", "words"), [
    ("rows", ("14 rows of features", "15")),
    ("ids", ("ids are float32", "integer")),
])
def test_a_source_that_breaks_the_protocol(tmp_path: Path, spoil: str, words: tuple[str, ...]) -> None:
    refused(tmp_path, own(args={"spoil": spoil}), *words)


@pytest.mark.parametrize(("use", "words"), [
    ("own_source:not_a_source", ("list", "files, shards, read, read_labels")),
    ("own_source:Rong", ("cannot be imported",)),
    ("no_such_module:Ring", ("cannot be imported", "`code`")),
    ("parquets", ("did you mean 'parquet'?",)),
    ("own_source:np", ("not something to call",)),
])
def test_names_of_no_source(tmp_path: Path, use: str, words: tuple[str, ...]) -> None:
    refused(tmp_path, DataSpec(source=use, train="x"), *words)
