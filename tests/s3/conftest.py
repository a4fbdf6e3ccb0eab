"""One Ceph Object Gateway for all tests against real S3, a faulty network before it, and a bucket for each test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import retrying, s3_files
from cluster.storage import Store
from tests.s3.gateway import ACCESS, SECRET, Gateway, missing, start_gateway
from tests.s3.proxy import FaultProxy


@pytest.fixture(scope="session")
def gateway() -> Iterator[Gateway]:
    """Return the gateway, running."""
    absent = missing()
    if absent:
        pytest.skip(f"no {', '.join(absent)}: install Debian's ceph-mon, ceph-mgr, ceph-osd and radosgw")
    gateway = start_gateway()
    try:
        yield gateway
    finally:
        gateway.close()


@pytest.fixture(scope="session")
def network(gateway: Gateway) -> Iterator[FaultProxy]:
    """Return the forwarder to the gateway."""
    proxy = FaultProxy(gateway.url)
    yield proxy
    proxy.close()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Set and return the environment with which the gateway is used; no other credentials of this machine are looked up."""
    words = {
        "AWS_ACCESS_KEY_ID": ACCESS,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "SECATEUR_CACHE": str(tmp_path / "cache"),
    }
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    return words


@pytest.fixture(scope="session")
def bucket(gateway: Gateway) -> str:
    """Return the name of the one bucket of all tests: making one takes a second or two."""
    import s3fs

    fs = s3fs.S3FileSystem(key=ACCESS, secret=SECRET, endpoint_url=gateway.url, skip_instance_cache=True)
    fs.mkdir("tests")
    return "tests"


@pytest.fixture
def direct(gateway: Gateway, bucket: str, credentials: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URI of a new store, with nothing between it and the gateway."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.url)
    return f"s3://{bucket}/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def store(network: FaultProxy, direct: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return a new store behind the faulty network, with short waits."""
    monkeypatch.setattr(s3_files, "READ_TIMEOUT_S", 2.0)
    monkeypatch.setattr(retrying, "LONGEST_DELAY_S", 0.2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", network.url)
    return Store(direct)
