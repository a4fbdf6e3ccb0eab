"""Leases: one holder at a time, dead holders at once, silent ones after 120 s of the watcher's own clock."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.lease import Watch, first_generation, look, take
from cluster.processes import Process
from cluster.storage import Store

UNIT = "stages/proxy-0123456789ab"
FIRST = first_generation(UNIT)
BEAT = FIRST.replace(".json", ".beat.json")
HERE = Process.here()
ELSEWHERE = replace(HERE, host="another")

HOLD = """
import signal, sys
from cluster.lease import take
from cluster.processes import Process
from cluster.storage import Store
with take(Store(sys.argv[1]), sys.argv[2], Process.here()):
    print("held", flush=True)
    signal.pause()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def rewrite(store: Store, name: str, **changes: Any) -> None:
    store.replace(name, json.dumps({**json.loads(store.read(name)), **changes}).encode())


def taken_elsewhere(store: Store) -> None:
    """Leave a lease whose holder and owner are on another machine."""
    assert take(store, UNIT, ELSEWHERE) is not None
    rewrite(store, FIRST, holder=ELSEWHERE.record())


def test_one_holds_and_hands_on(store: Store) -> None:
    assert look(store, UNIT) is None
    lease = take(store, UNIT, HERE)
    assert lease is not None
    with lease:
        assert take(store, UNIT, HERE) is None
        held = look(store, UNIT)
        assert held is not None
        assert (held.generation, held.holder, held.owner, held.void) == (1, HERE, HERE, False)
    held = look(store, UNIT)
    assert held is not None
    assert held.void
    assert take(store, UNIT, HERE) is not None
    held = look(store, UNIT)
    assert held is not None
    assert (held.generation, held.void) == (2, False)


def test_of_many_at_once_one_gets_it(store: Store) -> None:
    gate = threading.Barrier(8)

    def try_it(number: int) -> bool:
        mine = Store(store.uri)
        gate.wait()
        return take(mine, UNIT, HERE) is not None

    for generation in range(1, 4):
        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(try_it, range(8))) == 1
        store.replace(f"{UNIT}/work/lease/{generation:08d}.beat.json", b'{"ended":true}')


def test_a_dead_holder_is_void_at_once(store: Store) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, store.uri, UNIT], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        held = look(store, UNIT)
        assert held is not None
        assert held.holder is not None
        assert (held.holder.pid, held.void) == (process.pid, False)
        assert take(store, UNIT, HERE) is None
    finally:
        process.kill()
        process.communicate()
    held = look(store, UNIT)
    assert held is not None
    assert held.void
    assert take(store, UNIT, HERE) is not None


def test_an_owner_that_died_counts_as_its_holder(store: Store) -> None:
    dead = replace(HERE, process_started="1")
    assert take(store, UNIT, dead) is not None
    held = look(store, UNIT)
    assert held is not None
    assert (held.holder, held.void) == (HERE, True)


def test_a_holder_elsewhere_is_void_after_120_s_without_a_sign_by_the_watchers_clock(store: Store) -> None:
    taken_elsewhere(store)
    now = 1000.0
    watch = Watch(store, HERE, lambda: now)

    def void() -> bool:
        held = watch.look(UNIT)
        assert held is not None
        return held.void

    assert not void()
    now += 119
    assert not void()
    store.replace(BEAT, b'{"count": 1}')
    now += 2
    assert not void()
    now += 119
    assert not void()
    now += 2
    assert void()
    assert take(store, UNIT, HERE) is None
    assert take(store, UNIT, HERE, void=1) is not None
    # The new generation is another lease: what was found of the old one says nothing of it.
    assert take(store, UNIT, HERE, void=1) is None
    assert not void()


@pytest.mark.parametrize(("stamp", "void"), [("2020-01-01T00:00:00.000+00:00", True), ("2999-01-01T00:00:00.000+00:00", False)])
def test_a_time_too_old_for_any_difference_of_clocks_is_void_at_once(store: Store, stamp: str, void: bool) -> None:
    taken_elsewhere(store)
    rewrite(store, FIRST, time=stamp)
    held = look(store, UNIT)
    assert held is not None
    assert held.void is void


def test_an_owner_takes_back_what_its_worker_elsewhere_held(store: Store) -> None:
    assert take(store, UNIT, HERE) is not None
    rewrite(store, FIRST, holder=ELSEWHERE.record())
    held, of_another = look(store, UNIT, HERE), look(store, UNIT, ELSEWHERE)
    assert held is not None
    assert of_another is not None
    assert (held.void, of_another.void) == (True, False)


@pytest.mark.parametrize("data", [b"", b"torn {", b"[]", b"[" * 5000, b'{"holder": 3, "owner": {"pid": "x"}, "time": 7}'])
def test_a_record_that_makes_no_sense_is_waited_out(store: Store, data: bytes) -> None:
    store.create(FIRST, data)
    now = 0.0
    watch = Watch(store, HERE, lambda: now)
    held = watch.look(UNIT)
    assert held is not None
    assert (held.holder, held.void) == (None, False)
    assert take(store, UNIT, HERE) is None
    now = 121.0
    held = watch.look(UNIT)
    assert held is not None
    assert held.void


def test_renewed_until_it_is_cleared_and_nothing_comes_back(store: Store) -> None:
    beats = threading.Semaphore(0)
    gone = threading.Event()
    replace_object, exists = store.replace, store.exists

    def counted(name: str, data: bytes) -> None:
        replace_object(name, data)
        beats.release()

    def seen(name: str) -> bool:
        there = exists(name)
        if not there:
            gone.set()
        return there

    store.replace, store.exists = counted, seen  # type: ignore[method-assign]
    lease = take(store, UNIT, HERE, renew_s=0.01)
    assert lease is not None
    with lease:
        signs = set()
        for _ in range(3):
            assert beats.acquire(timeout=20)
            held = look(store, UNIT)
            assert held is not None
            signs.add(held.sign)
        assert len(signs) > 1
        store.remove(FIRST)
        assert gone.wait(20)
        store.remove(BEAT)
    assert store.list(UNIT) == []


def test_a_create_that_meets_its_own_first_write_is_ours(store: Store) -> None:
    create = store.create

    def twice(name: str, data: bytes) -> bool:
        create(name, data)
        return create(name, data)

    store.create = twice  # type: ignore[method-assign]
    assert take(store, UNIT, HERE) is not None
    assert take(store, UNIT, HERE) is None


def test_processes_are_told_by_more_than_their_id() -> None:
    assert HERE.alive() is True
    assert replace(HERE, process_started="1").alive() is False
    assert replace(HERE, pid=2**31 - 1).alive() is False
    assert replace(HERE, process_space="another boot").alive() is None
    assert ELSEWHERE.alive() is None
    assert replace(HERE, process_started="").alive() is None
    assert Process.from_record(json.loads(json.dumps(HERE.record()))) == HERE


@pytest.mark.parametrize("changes", [{"pid": "1"}, {"pid": True}, {"pid": 0}, {"pid": -1}, {"pid": 2**40}, {"host": None}])
def test_records_of_no_process_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Process.from_record({**HERE.record(), **changes})
