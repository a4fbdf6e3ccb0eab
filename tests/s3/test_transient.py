"""Each operation under each fault of network and server: the same outcome as without it."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import retrying
from cluster.errors import StoreError, StoreOutageError
from cluster.lease import take
from cluster.processes import Process
from cluster.storage import Store, filesystem, open_uri, read_uri, replace_uri
from flows.attempts import Attempt
from flows.stage_task import stage_task
from tests.s3.gateway import Gateway
from tests.s3.proxy import Fault, FaultProxy

pytestmark = pytest.mark.timeout(300)

DATA = bytes(range(256)) * 40


def _create(store: Store) -> None:
    assert store.create("x/new", DATA)
    assert store.read("x/new") == DATA


def _create_taken(store: Store) -> None:
    assert not store.create("x/here", b"other")
    assert store.read("x/here") == DATA


def _replace(store: Store) -> None:
    store.replace("x/here", DATA[::-1])
    assert store.read("x/here") == DATA[::-1]


def _read(store: Store) -> None:
    assert store.read("x/here") == DATA
    with pytest.raises(FileNotFoundError):
        store.read("x/none")


def _exists(store: Store) -> None:
    assert store.exists("x/here")
    assert not store.exists("x/none")


def _list(store: Store) -> None:
    assert store.list("x") == ["x/here", "x/there"]


def _remove(store: Store) -> None:
    store.remove("x/here")
    assert not store.exists("x/here")


def _open(store: Store) -> None:
    with store.open("x/here") as file:
        file.seek(1000)
        assert file.read(24) == DATA[1000:1024]


OPERATIONS = {
    "create": (_create, "PUT"),
    "create-taken": (_create_taken, "PUT"),
    "replace": (_replace, "PUT"),
    "read": (_read, "GET"),
    "exists": (_exists, "HEAD"),
    "list": (_list, "GET"),
    "remove": (_remove, "DELETE"),
    "open": (_open, "GET"),
}


@pytest.fixture
def filled(store: Store) -> Store:
    """Return the store with two objects in it."""
    for name in ("x/here", "x/there"):
        assert store.create(name, DATA)
    return store


@pytest.mark.parametrize("kind", ["503", "500", "reset", "lost", "hang", "slow"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_under_every_fault(filled: Store, network: FaultProxy, operation: str, kind: str) -> None:
    act, method = OPERATIONS[operation]
    with network.doing(Fault(kind, times=1 if kind in ("hang", "slow") else 3, method=method)):
        act(filled)
    assert filled.exists("x/there")


@pytest.mark.parametrize("operation", ["read", "list", "open"])
def test_a_body_that_breaks_off_is_read_again(filled: Store, network: FaultProxy, operation: str) -> None:
    with network.doing(Fault("cut", times=3, method="GET")):
        OPERATIONS[operation][0](filled)


def test_a_conflict_with_another_conditional_write_is_decided_by_a_later_try(filled: Store, network: FaultProxy) -> None:
    for operation in ("create", "create-taken"):
        with network.doing(Fault("409", times=2, method="PUT")):
            OPERATIONS[operation][0](filled)


def test_a_create_adopts_its_own_write_and_nobody_elses(filled: Store, network: FaultProxy) -> None:
    for times in (1, 2, 3):
        with network.doing(Fault("lost", times=times, method="PUT")):
            assert filled.create(f"x/mine{times}", b"mine")
        assert not filled.create(f"x/mine{times}", b"mine")
    filled.create("x/theirs", b"them")
    for sent in (b"mine", b"them"):
        with network.doing(Fault("lost", method="PUT")):
            assert not filled.create("x/theirs", sent)
    assert filled.read("x/theirs") == b"them"


def test_user_data_is_read_and_written_through_faults(filled: Store, network: FaultProxy) -> None:
    uri = f"{filled.uri}/mine/out.bin"
    for kind in ("503", "reset", "lost"):
        with network.doing(Fault(kind, times=2, method="PUT")):
            replace_uri(uri, kind.encode())
        with network.doing(Fault(kind, times=2, method="GET")):
            assert read_uri(uri) == kind.encode()
        with network.doing(Fault(kind, method="HEAD"), Fault("cut", times=2, method="GET")), open_uri(uri) as file:
            assert file.read(2) == kind.encode()[:2]


def test_parquet_is_read_by_ranges_through_faults(filled: Store, network: FaultProxy) -> None:
    table = pa.table({"a": np.arange(200_000), "b": np.random.default_rng(0).normal(size=200_000)})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=50_000)
    filled.create("x/table.parquet", sink.getvalue())
    fs, path = filesystem(f"{filled.uri}/x/table.parquet")
    faults = [Fault("cut"), Fault("reset"), Fault("503"), Fault("cut"), Fault("500")]
    for fault in faults:
        fault.method = "GET"
    with network.doing(*faults), fs.open(path, "rb", block_size=2**18) as file:
        assert pq.ParquetFile(file, pre_buffer=True).read().equals(table)


def _until_it_gives_up(act: Callable[[], object], match: str) -> str:
    with pytest.raises(StoreError, match=match) as caught:
        act()
    return str(caught.value)


def test_a_failure_that_stays_is_one_message_after_the_budget(
    filled: Store, network: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "BUDGET_S", 1.0)
    with network.doing(Fault("503", times=10_000, method="GET")):
        message = _until_it_gives_up(lambda: filled.read("x/here"), r"still failing after \d+ tries in \d+ s \(SlowDown\)")
    with network.doing(Fault("reset", times=10_000)):
        _until_it_gives_up(lambda: filled.list("x"), "ListObjectsV2 of .* still failing")
    # s3fs and boto below would have made 25 requests of each try.
    assert "GetObject of" in message and "x/here" in message and len(network.requests) < 200
    assert filled.read("x/here") == DATA


def test_after_an_outage_that_stays_a_stage_is_not_called_again_and_its_end_is_brief(
    filled: Store, network: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    said: list[str] = []
    lease = take(filled, "stages/proxy-0", Process.here())
    assert lease is not None

    def stage() -> None:
        calls.append(1)
        with lease:
            try:
                filled.read("x/here")
            finally:
                # What is tried for its whole budget from here on does not end before this test's time is up.
                monkeypatch.setattr(retrying, "BUDGET_S", 10_000.0)

    monkeypatch.setattr(retrying, "BUDGET_S", 1.0)
    monkeypatch.setattr(retrying, "LAST_WORDS_S", 0.5)
    with (
        contextlib.ExitStack() as away,
        pytest.raises(StoreOutageError, match=r"GetObject of .* still failing"),
        Attempt(filled, "run", warn=said.append),
    ):
        # To the end of the attempt and beyond.
        away.enter_context(network.doing(Fault("reset", times=100_000)))
        stage_task(stage, name="proxy", retry_delay_s=0.01)()
    assert len(calls) == 1
    assert len(said) == 1 and ".end.json: still failing" in said[0]
    assert filled.read("x/here") == DATA


def test_an_endpoint_that_never_answered_gets_less_patience(
    credentials: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "FIRST_CONTACT_S", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://name:pass-word@127.0.0.1:1")
    message = _until_it_gives_up(lambda: Store("s3://bucket/x").read("a"), r"check that the store at 127\.0\.0\.1:1 runs")
    assert "pass-word" not in message


def test_an_outage_of_the_server_passes(
    filled: Store, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retrying, "SILENT_S", 0.5)
    monkeypatch.setattr(retrying, "_said_at", -1000.0)
    with caplog.at_level(logging.WARNING, "secateur.store"):
        gateway.stop()
        try:
            with ThreadPoolExecutor(1) as thread:
                created = thread.submit(filled.create, "x/new", DATA)
                time.sleep(3)
                assert not created.done()
                # From the main thread: the daemon dies with the thread that started it.
                gateway.start()
                assert created.result(timeout=100)
        finally:
            gateway.restore()
    told = [record.getMessage() for record in caplog.records if record.name == "secateur.store"]
    assert len(told) == 1 and "PutObject" in told[0]
    assert filled.read("x/new") == DATA
