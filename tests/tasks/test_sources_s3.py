"""Sources in S3, against a server on the loopback: the same data as on disk, without reading more than needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_case import TEST, TRAIN, index, own_cache, pictures, refused, table_of, vectors, write_idx, write_parquet
from PIL import Image

from cluster.errors import InputError
from cluster.storage import Store, filesystem
from tasks.dataset import Dataset
from tasks.pool import SerialPool
from tasks.shard import shard_stage
from tasks.sources import DataSpec, data_digest

__all__ = ["own_cache"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Return the endpoint of a fresh server."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def bucket(
    server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> str:
    """Return the URI of an empty bucket."""
    caplog.set_level("ERROR", "werkzeug")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = f"b{abs(hash(request.node.name)):x}"
    filesystem(f"s3://{name}")[0].mkdir(name)
    return f"s3://{name}"


def upload(folder: Path, uri: str) -> None:
    fs, root = filesystem(uri)
    for path in folder.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"{root}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def agree(tmp_path: Path, bucket: str, source: Any, train: str, test: str | None = None) -> None:
    """Check that the data below tmp_path/data read the same from S3, up to the key, which has other digests."""
    upload(tmp_path / "data", f"{bucket}/data")
    read = []
    for root, name in ((str(tmp_path / "data"), "local"), (f"{bucket}/data", "remote")):
        place = {"train": f"{root}/{train}", "test": test and f"{root}/{test}"}
        # With 60 rows a share of 10 % may well be none.
        read.append(index(tmp_path, DataSpec(source=source, shard_rows=20, validation=0.3, **place), name)[1])
    local, remote = read
    assert table_of(local) == table_of(remote)
    for split in (TRAIN, TEST):
        assert np.array_equal(local.load(split).x, remote.load(split).x)
        assert np.array_equal(local.load(split).y, remote.load(split).y)


def test_parquet_folder_and_object(tmp_path: Path, bucket: str) -> None:
    write_parquet(tmp_path / "data/train/a.parquet", seed=1)
    write_parquet(tmp_path / "data/train/sub/b.parquet", seed=2)
    write_parquet(tmp_path / "data/test.parquet", seed=3)
    agree(tmp_path, bucket, "parquet", "train", "test.parquet")


def test_numpy(tmp_path: Path, bucket: str) -> None:
    (tmp_path / "data").mkdir()
    np.savez_compressed(tmp_path / "data/a.npz", x=vectors(60), y=np.arange(60) % 3)
    agree(tmp_path, bucket, "numpy", "a.npz")


def test_idx(tmp_path: Path, bucket: str) -> None:
    labels = (np.arange(60) % 3).astype(np.uint8)
    write_idx(tmp_path / "data/idx", "train", pictures(60), labels, pack=True)
    write_idx(tmp_path / "data/idx", "t10k", pictures(30), labels[:30], pack=False)
    agree(tmp_path, bucket, "idx", "idx")


def test_images(tmp_path: Path, bucket: str) -> None:
    for i, picture in enumerate(pictures(60)):
        path = tmp_path / f"data/pets/{('cat', 'dog')[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    agree(tmp_path, bucket, "images", "pets")
    (tmp_path / "data/pets/.fish").mkdir()
    picture = (tmp_path / "data/pets/cat/0.png").read_bytes()
    (tmp_path / "data/pets/.fish/0.png").write_bytes(picture)
    upload(tmp_path / "data", f"{bucket}/data")
    with pytest.raises(InputError, match=r"train: \.fish/0\.png is hidden by a dot"):
        data_digest(DataSpec(source="images", train=f"{bucket}/data/pets"))


def test_store_and_data_both_in_s3(tmp_path: Path, bucket: str) -> None:
    write_parquet(tmp_path / "data/a.parquet")
    upload(tmp_path / "data", f"{bucket}/data")
    spec, store = DataSpec(source="parquet", train=f"{bucket}/data"), Store(f"{bucket}/store")
    seal = shard_stage(spec, store, SerialPool())
    assert shard_stage(spec, store, SerialPool()) == seal
    dataset = Dataset(spec, seal, store)
    assert len(dataset.load(TRAIN)) == dataset.num_train


def test_digest_follows_the_etag(tmp_path: Path, bucket: str) -> None:
    spec = DataSpec(source="parquet", train=f"{bucket}/data")
    seen = set()
    for seed in (1, 2, 1):
        write_parquet(tmp_path / "data/a.parquet", seed=seed)
        upload(tmp_path / "data", f"{bucket}/data")
        seen.add(data_digest(spec))
    assert len(seen) == 2


def test_what_is_not_there(tmp_path: Path, bucket: str) -> None:
    refused(tmp_path, DataSpec(source="parquet", train=f"{bucket}/none"), "no file or folder", f"{bucket}/none")
    refused(tmp_path, DataSpec(source="parquet", train="s3://no-such-bucket-here/x"), "no file or folder")
    refused(tmp_path, DataSpec(source="idx", train=f"{bucket}/none"), "-images-idx3-ubyte")


def test_a_prefix_is_no_part_of_longer_names(tmp_path: Path, bucket: str) -> None:
    write_parquet(tmp_path / "data/set/a.parquet", seed=1)
    write_parquet(tmp_path / "data/set2/b.parquet", seed=2)
    upload(tmp_path / "data", f"{bucket}/data")
    for place in (f"{bucket}/data/set", f"{bucket}/data/set/"):
        seal = index(tmp_path, DataSpec(source="parquet", train=place))[0]
        assert [run["relative"] for run in seal.meta["shards"]] == ["a.parquet"]


def test_a_damaged_object(tmp_path: Path, bucket: str) -> None:
    write_parquet(tmp_path / "data/a.parquet")
    path = tmp_path / "data/a.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    upload(tmp_path / "data", f"{bucket}/data")
    refused(tmp_path, DataSpec(source="parquet", train=f"{bucket}/data"), "a.parquet", "not readable Parquet")
