"""Sharing units: what others hold is waited for, what they sealed is taken up, what they left is cleared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import StageError
from cluster.lease import first_generation, take
from cluster.processes import Process
from cluster.record import Seal, Unit
from cluster.storage import Store
from tasks import leasing
from tasks.leasing import Terms, do_leased, in_pool, share_units
from tasks.pool import SerialPool
from tasks.spec import Resources
from tasks.work import UnitResult

KEYS = ["a" * 64, "b" * 64, "c" * 64]
HERE = Process.here()


@dataclass(frozen=True)
class Item:
    """Name a unit."""

    key: str


class Sealing:
    """Be a worker that counts what it computes."""

    def __init__(self, counts: list[str], error: Exception | None = None) -> None:
        self.counts, self.error = counts, error

    def load(self, item: Item) -> None:
        """Load nothing."""

    def compute(self, item: Item, loaded: None) -> UnitResult:
        """Return a result without parts."""
        self.counts.append(item.key)
        if self.error is not None:
            raise self.error
        return UnitResult([], {"made": 1})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], Any]]]:
    """Give a list of what happens, one after the other, each time the sharer goes to sleep."""
    happenings: list[Callable[[], Any]] = []
    monkeypatch.setattr(leasing.time, "sleep", lambda seconds: happenings.pop(0)())
    yield happenings
    assert not happenings


def unit(store: Store, key: str) -> Unit:
    return Unit(store, "proxy", key)


def share(store: Store, counts: list[str], keys: Sequence[str] = KEYS, error: Exception | None = None) -> dict[str, Seal]:
    items = [Item(key) for key in keys]
    do = in_pool("proxy", items, lambda: Sealing(counts, error), store, SerialPool(), Resources())
    return share_units("proxy", keys, store, do)


def test_each_is_done_once_sealed_and_cleared(store: Store) -> None:
    counts: list[str] = []
    seals = share(store, counts, [*KEYS, KEYS[0]])
    assert counts == KEYS
    assert {key: seal.key for key, seal in seals.items()} == {key: key for key in KEYS}
    assert not [name for name in store.list("stages") if "/work/" in name]
    assert share(store, counts) == seals
    assert counts == KEYS


def test_a_unit_another_holds_is_waited_for_and_its_seal_taken_up(
    store: Store, asleep: list[Callable[[], Any]], caplog: pytest.LogCaptureFixture
) -> None:
    lease = take(store, unit(store, KEYS[1]).folder, HERE)
    assert lease is not None
    asleep += [lambda: None, lambda: unit(store, KEYS[1]).publish_seal([], {"made": 2})]
    counts: list[str] = []
    seals = share(store, counts)
    assert counts == [KEYS[0], KEYS[2]]
    assert seals[KEYS[1]].meta == {"made": 2}
    assert f"waiting for 1 unit(s) held by process {HERE.pid}" in caplog.text


def test_a_holder_whose_file_says_nothing_is_waited_for_in_words(
    store: Store, asleep: list[Callable[[], Any]], caplog: pytest.LogCaptureFixture
) -> None:
    store.create(first_generation(unit(store, KEYS[0]).folder), b"")
    asleep += [lambda: unit(store, KEYS[0]).publish_seal([], {"made": 2})]
    share(store, [], KEYS[:1])
    assert "waiting for 1 unit(s) held by a holder whose file cannot be read" in caplog.text


def test_a_unit_given_back_is_taken_over(store: Store, asleep: list[Callable[[], Any]]) -> None:
    lease = take(store, unit(store, KEYS[1]).folder, HERE)
    assert lease is not None
    lease.__enter__()
    asleep += [partial(lease.__exit__, None, None)]
    counts: list[str] = []
    share(store, counts)
    assert counts == [KEYS[0], KEYS[2], KEYS[1]]


def test_a_unit_sealed_between_the_look_and_the_lease_is_not_done_again(store: Store) -> None:
    at = unit(store, KEYS[0])
    sealed = at.publish_seal([], {"made": 2})
    assert do_leased(at, Terms(HERE, {}), lambda: pytest.fail("done again")) == sealed
    assert store.list(f"{at.folder}/work") == []


def test_one_that_another_takes_after_the_look_is_left_to_it(store: Store, asleep: list[Callable[[], Any]]) -> None:
    at = unit(store, KEYS[0])
    done: list[Seal | None] = []

    def do(keys: Sequence[str], terms: Terms, count: int) -> Iterator[tuple[str, Seal | None]]:
        assert take(store, at.folder, HERE) is not None
        done.append(do_leased(at, terms, lambda: pytest.fail("done twice")))
        yield keys[0], done[0]

    asleep += [lambda: at.publish_seal([], {"made": 2})]
    assert share_units("proxy", KEYS[:1], store, do)[KEYS[0]].meta == {"made": 2}
    assert done == [None]


def test_work_left_behind_after_a_seal_is_cleared_when_the_stage_runs_again(store: Store) -> None:
    share(store, [])
    at = unit(store, KEYS[2])
    left = [first_generation(at.folder), f"{at.folder}/work/lease/00000002.json", f"{at.folder}/work/model/a/step-00000001.pt"]
    for name in left:
        store.create(name, b"{}")
    listed: list[str] = []
    list_names = store.list
    store.list = lambda prefix: listed.append(prefix) or list_names(prefix)  # type: ignore[method-assign,func-returns-value]
    share(store, [])
    assert listed == [f"{at.folder}/work"]
    assert list_names(f"{at.folder}/work") == []


def test_a_death_in_the_clearing_leaves_what_is_looked_for(store: Store) -> None:
    at = unit(store, KEYS[0])
    removed: list[str] = []
    remove = store.remove
    store.remove = lambda name: removed.append(name) or remove(name)  # type: ignore[method-assign,func-returns-value]
    share(store, [], KEYS[:1])
    assert removed[-1] == first_generation(at.folder)


def test_a_failure_gives_the_lease_back(store: Store) -> None:
    counts: list[str] = []
    with pytest.raises(StageError, match="3 of 3 items failed"):
        share(store, counts, error=ValueError("bad"))
    share(store, counts)
    assert counts == KEYS * 2
