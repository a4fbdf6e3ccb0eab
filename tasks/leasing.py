"""Sharing the long units of a stage: processes on one store do different ones, and each takes up what others sealed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from cluster.lease import Watch, first_generation, take
from cluster.processes import Process
from cluster.record import Seal, Unit
from cluster.storage import Store
from tasks.pool import Pool, Worker
from tasks.spec import Resources

POLL_S = 1.0

log = logging.getLogger("secateur.lease")


@dataclass(frozen=True)
class Terms:
    """Say in whose name units are worked on, and by key which generation of a lease counts no more."""

    owner: Process
    void: Mapping[str, int]


Do = Callable[[Sequence[str], Terms, int], Iterable[tuple[str, Seal | None]]]
"""do(keys, terms, done) yields (key, its seal, or None where another process took the unit first)."""


class Keyed(Protocol):
    """Be an item that names its unit by its key."""

    @property
    def key(self) -> str: ...


def share_units(stage: str, keys: Iterable[str], store: Store, do: Do) -> dict[str, Seal]:
    """Return the seal of every unit by its key; `do` does those that are neither sealed nor leased by another process.

    Waits for units that others hold, takes up their seals, and goes on with their work when a lease goes void.
    """
    seals: dict[str, Seal] = {}
    waiting: list[str] = []
    for key in dict.fromkeys(keys):
        unit = Unit(store, stage, key)
        seal = unit.seal()
        if seal is None:
            waiting.append(key)
        else:
            clear_leftovers(unit)
            seals[key] = seal
    watch = Watch(store, Process.here())
    told = False
    while waiting:
        void: dict[str, int] = {}
        holders: set[str] = set()
        for key in waiting:
            held = watch.look(Unit(store, stage, key).folder)
            if held is None or held.void:
                void[key] = held.generation if held is not None else 0
            else:
                holders.add(str(held.holder or "a holder whose file cannot be read"))
        if void:
            done = do(list(void), Terms(watch.owner, void), len(seals))
            seals.update((key, seal) for key, seal in done if seal is not None)
        else:
            if not told:
                log.warning("%s: waiting for %d unit(s) held by %s", stage, len(waiting), ", ".join(sorted(holders)))
                told = True
            time.sleep(POLL_S)
        for key in waiting:
            seal = seals.get(key) or Unit(store, stage, key).seal()
            if seal is not None:
                seals[key] = seal
        waiting = [key for key in waiting if key not in seals]
    return seals


def do_leased(unit: Unit, terms: Terms, act: Callable[[], Seal]) -> Seal | None:
    """Return the unit's seal, by `act` unless it is there already, and clear its work; None where another holds it."""
    lease = take(unit.store, unit.folder, terms.owner, void=terms.void.get(unit.key, 0))
    if lease is None:
        return None
    with lease:
        seal = unit.seal() or act()
    clear_work(unit)
    return seal


def clear_work(unit: Unit) -> None:
    """Remove all work in progress of a sealed unit. The lease's first object goes last: while it is there, work may be."""
    last = first_generation(unit.folder)
    names = unit.store.list(f"{unit.folder}/work")
    for name in sorted(names, key=lambda name: name == last):
        unit.store.remove(name)


def clear_leftovers(unit: Unit) -> None:
    """Clear what a process left that died between the seal and the clearing; costs one look where there is nothing."""
    if unit.store.exists(first_generation(unit.folder)):
        clear_work(unit)


def in_pool(
    stage: str, items: Sequence[Keyed], make: Callable[[], Worker[Any, Any, Any]], store: Store, pool: Pool,
    resources: Resources,
) -> Do:
    """Return a `do` that maps the pool's workers over the items; what they compute is a UnitResult."""
    by_key = {item.key: item for item in items}

    def do(keys: Sequence[str], terms: Terms, done: int) -> Iterator[tuple[str, Seal | None]]:
        chosen = [by_key[key] for key in keys]
        leased = partial(LeasedWorker, make, stage, store, terms)
        for index, seal in pool.map(leased, chosen, label=stage, resources=resources, done=done):
            yield chosen[index].key, seal

    return do


class LeasedWorker:
    """Do with another worker those items whose lease this process gets, and seal them.

    The lease is taken where and when the work begins, so that a process holds no more units than it works on.
    """

    def __init__(self, make: Callable[[], Worker[Any, Any, Any]], stage: str, store: Store, terms: Terms) -> None:
        self.worker, self.stage, self.store, self.terms = make(), stage, store, terms

    def load(self, item: Keyed) -> Any:
        """Load what the worker loads."""
        return self.worker.load(item)

    def compute(self, item: Keyed, loaded: Any) -> Seal | None:
        """Return the seal of the item's unit, or None where another process works on it."""
        unit = Unit(self.store, self.stage, item.key)

        def act() -> Seal:
            result = self.worker.compute(item, loaded)
            return unit.publish_seal(result.parts, result.meta)

        return do_leased(unit, self.terms, act)
