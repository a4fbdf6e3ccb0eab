"""The NumPy source: .npz and .npy, read without unpickling, a shard at a time."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_case import TEST, TRAIN, index, own_cache, pictures, refused, table_of, vectors

from tasks.sources import DataSpec

__all__ = ["own_cache"]

LABELS = np.arange(60) % 3


def spec_of(path: Path, **args: Any) -> DataSpec:
    return DataSpec(source={"use": "numpy", "args": args}, train=str(path), shard_rows=25)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Any) -> None:
    x = pictures(60)
    save(tmp_path / "a.npz", x=x, y=LABELS)
    seal, dataset, _ = index(tmp_path, spec_of(tmp_path / "a.npz"))
    assert seal.meta["shape"] == [5, 5] and seal.meta["dtype"] == "uint8" and len(seal.parts) == 3
    loaded = dataset.load(TRAIN)
    assert np.array_equal(loaded.x, x[loaded.position]) and np.array_equal(loaded.y, LABELS[loaded.position])


def test_npz_names_and_ids(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).permutation(1000)[:60]
    np.savez(tmp_path / "a.npz", images=vectors(60), targets=LABELS, number=ids.astype(np.int32))
    dataset = index(tmp_path, spec_of(tmp_path / "a.npz", x="images", y="targets", id_column="number"))[1]
    assert set(table_of(dataset)) == set(ids.tolist())
    refused(tmp_path, spec_of(tmp_path / "a.npz", x="image", y="targets"), "'image'", "did you mean 'images'?")


def test_npy_beside_its_labels(tmp_path: Path) -> None:
    for folder, seed in (("train", 1), ("test", 2)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "x.npy", vectors(60, seed).astype(np.float64))
        np.save(tmp_path / folder / "y.npy", np.array(["a", "b", "c"])[LABELS])
    spec = spec_of(tmp_path / "train/x.npy", labels="y.npy", test_labels=str(tmp_path / "test/y.npy"))
    spec = spec.model_copy(update={"test": str(tmp_path / "test/x.npy"), "label_map": {"a": 0, "b": 1, "c": 2}})
    dataset = index(tmp_path, spec)[1]
    assert dataset.dtype == "float32"
    test = dataset.load(TEST)
    assert np.array_equal(test.x, vectors(60, 2)[test.position]) and np.array_equal(test.y, LABELS[test.position])


def test_relative_locations_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", vectors(60))
    np.save(tmp_path / "y.npy", LABELS)
    monkeypatch.chdir(tmp_path)
    relative = DataSpec(source={"use": "numpy", "args": {"labels": "y.npy"}}, train="x.npy")
    absolute = relative.model_copy(update={"train": str(tmp_path / "x.npy")})
    assert index(tmp_path, relative, "one")[0].key == index(tmp_path, absolute, "two")[0].key


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int64, np.bool_, ">f4"])
def test_types_become_float32(tmp_path: Path, dtype: Any) -> None:
    x = np.random.default_rng(0).integers(0, 2, (60, 4)).astype(dtype)
    np.savez(tmp_path / "a.npz", x=x, y=LABELS)
    loaded = index(tmp_path, spec_of(tmp_path / "a.npz"))[1].load(TRAIN)
    assert loaded.x.dtype == np.float32 and np.array_equal(loaded.x, x[loaded.position].astype(np.float32))


@pytest.mark.parametrize(("arrays", "words"), [
    ({"x": vectors(60), "y": LABELS[:59]}, ("(60, 6)", "(59,)")),
    ({"x": vectors(60), "y": LABELS[:, None]}, ("(60, 1)",)),
    ({"x": np.float32(3), "y": LABELS}, ("()",)),
    ({"x": np.arange(60.0), "y": LABELS}, ("(N, ...)",)),
    ({"x": np.full((60, 2), "a"), "y": LABELS}, ("numbers are needed",)),
    ({"x": vectors(60).astype(complex), "y": LABELS}, ("complex",)),
    ({"x": np.full((60, 2), 2**40), "y": LABELS}, ("2^24",)),
    ({"x": np.full((60, 2), 1e300), "y": LABELS}, ("beyond float32",)),
    ({"x": np.full((60, 2), np.nan), "y": LABELS}, ("NaN", "60 of 60")),
    ({"x": np.asfortranarray(vectors(60)), "y": LABELS}, ("Fortran",)),
    ({"x": np.zeros(60, dtype=[("a", "f4")]), "y": LABELS}, ("fields",)),
    ({"x": vectors(0), "y": LABELS[:0]}, ("no rows",)),
    ({"x": vectors(60)}, ("no array 'y'",)),
    ({"x": vectors(60), "y": np.linspace(0, 1, 60)}, ("no class",)),
    ({"x": vectors(60), "y": LABELS.astype("datetime64[D]")}, ("datetime64",)),
])
def test_arrays_that_are_no_dataset(tmp_path: Path, arrays: dict[str, Any], words: tuple[str, ...]) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    refused(tmp_path, spec_of(tmp_path / "a.npz"), *words)


class Bomb:
    """Leave a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.touch, (self.mark,))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    x = np.empty(60, dtype=object)
    x[:] = [Bomb(mark)] * 60
    np.savez(tmp_path / "a.npz", allow_pickle=True, x=x, y=LABELS)
    refused(tmp_path, spec_of(tmp_path / "a.npz"), "pickle")
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb(mark)))
    np.save(tmp_path / "y.npy", LABELS)
    refused(tmp_path, spec_of(tmp_path / "b.npy", labels="y.npy"), "b.npy")
    assert not mark.exists()


@pytest.mark.parametrize("keep", [0, 5, 200, -40])
def test_files_cut_short(tmp_path: Path, keep: int) -> None:
    np.save(tmp_path / "x.npy", vectors(60))
    np.save(tmp_path / "y.npy", LABELS)
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:keep])
    refused(tmp_path, spec_of(tmp_path / "x.npy", labels="y.npy"), "x.npy")
    np.savez_compressed(tmp_path / "a.npz", x=vectors(60), y=LABELS)
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:keep])
    refused(tmp_path, spec_of(tmp_path / "a.npz"), "a.npz")


def test_a_damaged_member(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=vectors(60), y=LABELS)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[900] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(data)
    refused(tmp_path, spec_of(tmp_path / "a.npz"), "a.npz", "CRC")


def test_arguments(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", vectors(60))
    np.savez(tmp_path / "a.npz", x=vectors(60), y=LABELS)
    refused(tmp_path, spec_of(tmp_path / "x.npy"), "labels")
    refused(tmp_path, spec_of(tmp_path / "x.npy", labels="gone.npy"), "gone.npy")
    refused(tmp_path, spec_of(tmp_path / "x.csv"), ".npz")
    refused(tmp_path, spec_of(tmp_path / "a.npz", labels="y.npy"), "holds its labels itself")
    refused(tmp_path, spec_of(tmp_path / "x.npy", labels="y.npy", id_column="i"), "id_column")
    refused(tmp_path, spec_of(tmp_path / "a.npz", uri="b"), "'uri'")
