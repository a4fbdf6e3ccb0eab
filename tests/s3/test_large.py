"""Objects above the limit of one PUT: content under its own sha256, and a create-only record that names it."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import s3, s3_files
from cluster.errors import CorruptError
from cluster.fingerprint import sha256
from cluster.record import Unit, read_part
from cluster.self_digest import BLANK, MARK, filled
from cluster.storage import Store, read_uri, replace_uri, replacing_uri
from tests.s3.proxy import Fault, FaultProxy

pytestmark = pytest.mark.timeout(300)

# Servers take no smaller part of an upload.
CHUNK = 5 * 2**20
DATA = np.random.default_rng(0).bytes(2 * CHUNK + 1000)


@pytest.fixture(autouse=True)
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limit to a megabyte, and the size of a part to the least."""
    monkeypatch.setattr(s3, "ONE_PUT_BYTES", 2**20)
    monkeypatch.setattr(s3, "CHUNK_BYTES", CHUNK)


def contents(store: Store) -> list[str]:
    return store.list("large")


def test_a_large_object_is_created_once_and_read_whole(store: Store) -> None:
    assert store.create("x/large", DATA)
    assert not store.create("x/large", DATA[::-1])
    assert not store.create("x/large", b"small")
    assert store.list("x") == ["x/large"]
    assert store.read("x/large") == DATA
    with store.open("x/large") as file:
        file.seek(CHUNK - 10)
        assert file.read(20) == DATA[CHUNK - 10 : CHUNK + 10]
    assert [name.split("/")[1][:64] for name in contents(store)] == [sha256(DATA)]
    store.remove("x/large")
    store.remove("x/large")
    assert store.list("x") == contents(store) == []


def test_a_part_above_the_limit_is_published_and_checked_like_any_other(store: Store) -> None:
    unit = Unit(store, "stage", "0" * 64)
    data = filled(DATA + MARK + BLANK, unit.part_name("a.bin"))[0]
    part = unit.publish_part("a.bin", DATA + MARK + BLANK, len)
    assert (part.size, part.sha256) == (len(data), sha256(data))
    assert unit.publish_part("a.bin", DATA + MARK + BLANK, len) == part == unit.find_part("a.bin", len)
    assert read_part(store, part) == data


def test_below_the_limit_it_is_one_request(
    store: Store, network: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "ONE_PUT_BYTES", len(DATA))
    # One that takes 2 s on a busy machine is not to be sent again here.
    monkeypatch.setattr(s3_files, "READ_TIMEOUT_S", 60.0)
    with network.doing():
        assert store.create("x/whole", DATA)
    assert [method for method, _ in network.requests] == ["PUT"]
    with network.doing():
        assert store.read("x/whole") == DATA
    assert [method for method, _ in network.requests] == ["GET"]


def test_faults_on_the_way(store: Store, network: FaultProxy) -> None:
    with network.doing(
        Fault("reset", times=2, method="POST", text="uploads"),
        Fault("503", times=2, method="PUT", text="partNumber=2"),
        Fault("lost", method="PUT", text="partNumber=1"),
        # The upload is complete and its reply lost: completing it again finds no upload.
        Fault("lost", method="POST", text="uploadId"),
        Fault("lost", method="PUT", text="x/large"),
    ):
        assert store.create("x/large", DATA)
    with network.doing(Fault("cut", times=2, method="GET", text="large/"), Fault("503", method="GET", text="x/large")):
        assert store.read("x/large") == DATA


def test_changed_or_missing_content_is_named(store: Store) -> None:
    store.create("x/large", DATA)
    (name,) = contents(store)
    with store.open("x/large") as file:
        assert file.read(4) == DATA[:4]
    store.replace(name, DATA[:-1] + b"\0")
    with pytest.raises(CorruptError, match=f"{name} does not have the sha256 in its name"):
        store.read("x/large")
    store.replace(name, DATA[:-1])
    with pytest.raises(CorruptError, match=f"{name} has {len(DATA) - 1} bytes"):
        store.open("x/large")
    store.remove(name)
    with pytest.raises(CorruptError, match=f"{name}, which x/large names as its content, is gone"):
        store.read("x/large")


def test_small_objects_that_look_like_records_only_by_size_are_themselves(store: Store) -> None:
    data = b"secateur-large-object 2".ljust(s3.RECORD_BYTES, b".")
    assert store.create("x/small", data)
    assert store.read("x/small") == data
    with store.open("x/small") as file:
        assert file.read() == data
    store.remove("x/small")
    assert not store.exists("x/small")


def test_user_objects_are_plain_whatever_their_size(store: Store) -> None:
    uri = f"{store.uri}/mine/out.bin"
    replace_uri(uri, DATA)
    assert read_uri(uri) == DATA
    with replacing_uri(uri) as path:
        Path(path).write_bytes(DATA[::-1])
    assert read_uri(uri) == DATA[::-1]
    assert contents(store) == []


def _race(uri: str, number: int, start: Any, wins: Any) -> None:
    s3.ONE_PUT_BYTES, s3.CHUNK_BYTES = 2**20, CHUNK
    store = Store(uri)
    # Each has opened its connection before the race.
    store.exists("race/none")
    start.wait()
    won = [name for name in range(8) if store.create(f"race/{name}", f"{number:04d}".encode() * 2000)]
    won += [name for name in ("large",) if store.create(f"race/{name}", bytes([number]) + DATA)]
    adopted = [(name, store.read(f"race/{name}")[:5]) for name in [*range(8), "large"]]
    wins.put((number, won, adopted))


def test_of_four_racing_processes_one_wins_each_name_and_all_adopt_it(direct: str) -> None:
    context = multiprocessing.get_context("spawn")
    start, wins = context.Barrier(4), context.Queue()
    racers = [context.Process(target=_race, args=(direct, number, start, wins), daemon=True) for number in range(4)]
    for racer in racers:
        racer.start()
    told = [wins.get(timeout=200) for _ in racers]
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    winners = {name: number for number, won, _ in told for name in won}
    assert sorted(name for _, won, _ in told for name in won if name != "large") == list(range(8))
    assert sum("large" in won for _, won, _ in told) == 1
    assert all(adopted == told[0][2] for _, _, adopted in told)
    for name, head in told[0][2]:
        expected = bytes([winners[name]]) + DATA[:4] if name == "large" else f"{winners[name]:04d}".encode() + b"0"
        assert head == expected
