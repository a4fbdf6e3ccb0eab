"""The IDX source: MNIST's format, plain or packed, as a folder or a prefix."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from data_case import TEST, TRAIN, index, own_cache, pictures, refused, table_of, write_idx

from tasks.sources import DataSpec

__all__ = ["own_cache"]

LABELS = (np.arange(60) % 3).astype(np.uint8)


def folder(tmp_path: Path, *, pack: bool = False, test: bool = True, name: str = "idx") -> Path:
    write_idx(tmp_path / name, "train", pictures(60), LABELS, pack=pack)
    if test:
        write_idx(tmp_path / name, "t10k", pictures(30, 1), LABELS[:30], pack=pack)
    return tmp_path / name


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("shard_rows", [7, 1000])
def test_a_folder_with_its_test_pair(tmp_path: Path, pack: bool, shard_rows: int) -> None:
    dataset = index(tmp_path, DataSpec(source="idx", train=str(folder(tmp_path, pack=pack)), shard_rows=shard_rows))[1]
    assert dataset.shape == (1, 5, 5) and dataset.dtype == "uint8"
    assert dataset.num_test == 30 and dataset.num_train + dataset.num_validation == 60
    for split, x in ((TRAIN, pictures(60)), (TEST, pictures(30, 1))):
        loaded = dataset.load(split)
        assert np.array_equal(loaded.x[:, 0], x[loaded.position])
        assert np.array_equal(loaded.y, LABELS[loaded.position])


def test_packing_changes_no_id(tmp_path: Path) -> None:
    plain = index(tmp_path, DataSpec(source="idx", train=str(folder(tmp_path))), "plain")[1]
    packed = index(tmp_path, DataSpec(source="idx", train=str(folder(tmp_path, pack=True, name="gz"))), "packed")[1]
    assert table_of(plain) == table_of(packed)


def test_naming_the_folder_as_test_is_the_same_data(tmp_path: Path) -> None:
    place = str(folder(tmp_path))
    one = index(tmp_path, DataSpec(source="idx", train=place), "one")[0]
    two = index(tmp_path, DataSpec(source="idx", train=place, test=place), "two")[0]
    assert one.key == two.key


def test_a_fraction_ignores_the_test_pair(tmp_path: Path) -> None:
    spec = DataSpec(source="idx", train=str(folder(tmp_path)), test_fraction=0.3)
    dataset = index(tmp_path, spec)[1]
    assert len(table_of(dataset)) == 60 and dataset.shards("test") == [] and dataset.num_test > 0


def test_without_a_test_pair_a_fraction_is_split_off(tmp_path: Path) -> None:
    dataset = index(tmp_path, DataSpec(source="idx", train=str(folder(tmp_path, test=False))))[1]
    assert len(table_of(dataset)) == 60 and 0 < dataset.num_test < 30


def test_prefixes(tmp_path: Path) -> None:
    write_idx(tmp_path / "d", "letters-train", pictures(60), LABELS, pack=True)
    write_idx(tmp_path / "d", "letters-test", pictures(30, 1), LABELS[:30], pack=True)
    spec = DataSpec(source="idx", train=str(tmp_path / "d/letters-train"), test=str(tmp_path / "d/letters-test"))
    dataset = index(tmp_path, spec)[1]
    assert dataset.num_test == 30 and dataset.shards()[0].relative == "letters-train-images-idx3-ubyte"


def test_files_that_are_not_there(tmp_path: Path) -> None:
    refused(tmp_path, DataSpec(source="idx", train=str(tmp_path / "none")), "-images-idx3-ubyte", "data.train")
    place = folder(tmp_path, test=False)
    refused(tmp_path, DataSpec(source="idx", train=str(place), test=str(place)), "t10k-images-idx3-ubyte", "data.test")
    (place / "train-labels-idx1-ubyte").unlink()
    refused(tmp_path, DataSpec(source="idx", train=str(place)), "train-labels-idx1-ubyte")


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("spoil", ["short", "long", "magic", "header", "count", "empty"])
def test_damaged_files(tmp_path: Path, spoil: str, pack: bool) -> None:
    place = folder(tmp_path, test=False)
    path = place / "train-images-idx3-ubyte"
    data = path.read_bytes()
    spoilt = {
        "short": data[:-1], "long": data + b"\0", "magic": b"\1" + data[1:], "header": data[:9],
        "count": data[:7] + b"\x3b" + data[8:], "empty": b"",
    }[spoil]
    path.unlink()
    (place / (path.name + ".gz" if pack else path.name)).write_bytes(gzip.compress(spoilt) if pack else spoilt)
    refused(tmp_path, DataSpec(source="idx", train=str(place)), "train-images-idx3-ubyte")


def test_gzip_cut_short(tmp_path: Path) -> None:
    place = folder(tmp_path, test=False, pack=True)
    path = place / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    refused(tmp_path, DataSpec(source="idx", train=str(place)), "cannot be decompressed")
    path.write_bytes(b"not gzip at all")
    refused(tmp_path, DataSpec(source="idx", train=str(place)), "cannot be decompressed")


def test_mnist(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    place = Path(os.environ.get("SECATEUR_MNIST") or root / "../shared/data/mnist").resolve()
    if not (place / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"no MNIST in {place}: set SECATEUR_MNIST to the folder of its four .gz files")
    meta = index(tmp_path, DataSpec(source="idx", train=str(place), shard_rows=20_000))[0].meta
    assert (meta["num_train"] + meta["num_validation"], meta["num_test"]) == (60_000, 10_000)
    # 10 % of 60,000 has a standard deviation of 73.
    assert abs(meta["num_validation"] - 6000) < 300
    assert (meta["num_classes"], meta["shape"], meta["dtype"]) == (10, [1, 28, 28], "uint8")
