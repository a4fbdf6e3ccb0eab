"""MNIST-1D from its generator: the rows are the package's, the global streams and what is kept stay sound."""

from __future__ import annotations

import random
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_case import TEST, TRAIN, VALIDATION, index, own_cache, refused
from mnist1d.data import get_dataset_args, make_dataset
from training_case import global_numpy

from tasks.sources import DataSpec, data_digest
from tasks.sources.mnist1d import generate

__all__ = ["own_cache"]


def made(train: str = "mnist1d", **args: Any) -> DataSpec:
    return DataSpec(source={"use": "mnist1d", "args": {"rows": 120, "test": 80, "seed": 5, **args}}, train=train, shard_rows=50)


def test_rows_are_those_of_the_generator(tmp_path: Path) -> None:
    settings = get_dataset_args()
    settings.num_samples, settings.train_split, settings.seed = 200, 0.6, 5
    wanted = make_dataset(settings)
    dataset = index(tmp_path, made())[1]
    assert (dataset.shape, dataset.num_classes, dataset.num_test) == ((40,), 10, 80)
    assert dataset.num_train + dataset.num_validation == 120
    for split in (TRAIN, VALIDATION):
        rows = dataset.load(split)
        assert np.array_equal(rows.x, wanted["x"].astype(np.float32)[rows.position])
        assert np.array_equal(rows.y, wanted["y"][rows.position])
    rows = dataset.load(TEST)
    assert np.array_equal(rows.x, wanted["x_test"].astype(np.float32)[rows.position])
    assert np.array_equal(rows.y, wanted["y_test"][rows.position])


@pytest.mark.parametrize("rows", [10, 70, 3])
def test_every_row_is_train_or_test_whatever_the_share_rounds_to(rows: int) -> None:
    x, y = generate(rows, 90 - rows, 0)
    assert x.shape == (90, 40) and x.dtype == np.float32 and np.isfinite(x).all()
    assert (np.bincount(y) == 9).all()


def test_global_streams_are_left_as_they_were(tmp_path: Path) -> None:
    np.random.seed(3)
    random.seed(3)
    before = global_numpy(), random.getstate()
    index(tmp_path, made())
    assert (global_numpy(), random.getstate()) == before


def test_what_is_kept_is_used_and_what_is_broken_is_made_again(tmp_path: Path, own_cache: Path) -> None:
    wanted = index(tmp_path, made())[1].load(TRAIN).x
    (kept,) = (own_cache / "mnist1d").iterdir()
    whole = kept.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"no archive"):
        kept.write_bytes(broken)
        assert np.array_equal(index(tmp_path, made(), "again")[1].load(TRAIN).x, wanted)
        assert kept.read_bytes() != broken
    with np.load(kept) as rows:
        np.savez(kept, x=rows["x"] + 1, y=rows["y"])
    assert np.array_equal(index(tmp_path, made(), "kept")[1].load(TRAIN).x, wanted + 1)


def test_what_it_is_asked_for_and_its_version_are_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        return "9.9"

    specs = [made(), made(rows=130, test=90), made(rows=100, test=100), made(seed=6)]
    digests = {data_digest(spec) for spec in specs}
    assert len(digests) == 4 and data_digest(made()) in digests
    monkeypatch.setattr(metadata, "version", version)
    assert data_digest(made()) not in digests


def test_a_test_fraction_is_split_off_the_train_rows(tmp_path: Path) -> None:
    dataset = index(tmp_path, made().model_copy(update={"test_fraction": 0.5}))[1]
    assert 0 < dataset.num_test < 120 and dataset.num_train + dataset.num_validation + dataset.num_test == 120


@pytest.mark.parametrize(("spec", "words"), [
    (made("mnist"), ("'mnist'", "data.train: mnist1d")),
    (made(rows=0), ("rows is '0'", "from 1 to 1000000")),
    (made(rows="many"), ("rows is 'many'", "whole number")),
    (made(test=2.5), ("test is '2.5'", "whole number")),
    (made(seed=-1), ("seed is '-1'", "from 0")),
    (made(rows=121), ("201 together", "10 divides")),
    (made(row=5), ("no argument 'row'", "'rows'")),
])  # fmt: skip
def test_what_it_cannot_make_is_refused(tmp_path: Path, spec: DataSpec, words: tuple[str, ...]) -> None:
    refused(tmp_path, spec, *words)


def test_without_the_package_the_message_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    refused(tmp_path, made(), "not installed", "pip install mnist1d")


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from tasks.sources import DataSpec, data_digest\n"
        "print(data_digest(DataSpec(source={'use': 'mnist1d'}, train='mnist1d')))\n"
        "heavy = {'mnist1d', 'matplotlib', 'numpy', 'scipy', 'torch', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
