"""Leases on long units of work: one process works, the others wait, and a dead one's unit goes to the next.

A unit's lease is a row of generations, STORE/<unit folder>/work/lease/<generation>.json, each created once by who takes
the unit; the highest one counts. Beside it lies a heartbeat that only its holder replaces. Leases save work: what is
published is create-only, so two processes on one unit, which clocks and pauses can always bring about, change nothing.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cluster.errors import StoreError
from cluster.fingerprint import canonical_json
from cluster.processes import Process
from cluster.storage import Store

RENEW_S = 30.0

# Four renewals: some may be late or fail.
VOID_AFTER_S = 120.0

# Clocks of two machines may differ by this much before a time written by one means anything to the other.
SKEW_S = 120.0

_RECORD = re.compile(r"/(\d{8})\.json\Z")


def lease_folder(unit_folder: str) -> str:
    """Return the folder of a unit's lease."""
    return f"{unit_folder}/work/lease"


def first_generation(unit_folder: str) -> str:
    """Return the name of the object that is there from the first moment of work on a unit until it is cleared."""
    return f"{lease_folder(unit_folder)}/00000001.json"


@dataclass(frozen=True)
class Held:
    """Show a lease as it stands: its generation, who holds it (None: unreadable), and its last sign of life."""

    generation: int
    holder: Process | None
    owner: Process | None
    sign: bytes
    void: bool


def look(store: Store, unit_folder: str, owner: Process | None = None) -> Held | None:
    """Return the lease of a unit, None where nobody ever took it.

    It is `void` when it was given back, when its holder or its holder's owner is known to be dead, when its last
    renewal is too old for any difference of clocks, or when it is `owner`'s own and its holder is not known to live.
    """
    found = [(int(match[1]), name) for name in store.list(lease_folder(unit_folder)) if (match := _RECORD.search(name))]
    if not found:
        return None
    generation, name = max(found)
    record, written = _load(store, name)
    beat, renewed = _load(store, name.replace(".json", ".beat.json"))
    holder, holders_owner = _process(record, "holder"), _process(record, "owner")
    dead = any(process is not None and process.alive() is False for process in (holder, holders_owner))
    void = dead or beat.get("ended") is True
    if owner is not None and owner == holders_owner and holder is not None and holder.alive() is None:
        # Its pool does a unit again only when the worker that had it is gone.
        void = True
    void = void or _too_old(beat.get("time") or record.get("time"))
    return Held(generation, holder, holders_owner, written + renewed, void)


def _load(store: Store, name: str) -> tuple[dict[str, Any], bytes]:
    """Return (record, bytes); an empty record where it is gone or makes no sense: then only its age counts."""
    try:
        data = store.read(name)
    except FileNotFoundError:
        return {}, b""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        record = None
    return (record if isinstance(record, dict) else {}), data


def _process(record: dict[str, Any], who: str) -> Process | None:
    try:
        return Process.from_record(record[who])
    except (KeyError, TypeError, ValueError):
        return None


def _too_old(stamp: Any) -> bool:
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(stamp)
    except (TypeError, ValueError):
        return False
    return age > timedelta(seconds=VOID_AFTER_S + SKEW_S)


class Watch:
    """Tell of leases that others hold when they go void: at once where that can be known, or after 120 s without a
    sign of life, by the clock of this process alone."""

    def __init__(self, store: Store, owner: Process, clock: Callable[[], float] = time.monotonic) -> None:
        self.store, self.owner, self.clock = store, owner, clock
        self._seen: dict[str, tuple[int, bytes, float]] = {}

    def look(self, unit_folder: str) -> Held | None:
        """Return the lease of a unit as `look` does, `void` too when nothing of it changed for 120 s under this watch."""
        held = look(self.store, unit_folder, self.owner)
        if held is None or held.void:
            return held
        now = self.clock()
        seen = self._seen.get(unit_folder)
        if seen is None or seen[:2] != (held.generation, held.sign):
            self._seen[unit_folder] = (held.generation, held.sign, now)
        elif now - seen[2] > VOID_AFTER_S:
            return Held(held.generation, held.holder, held.owner, held.sign, True)
        return held


class Lease:
    """Hold a unit's lease for the length of a `with` block, renewed by a thread. Made by `take`."""

    def __init__(self, store: Store, name: str, renew_s: float) -> None:
        self.store, self.name, self.renew_s = store, name, renew_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def _renew(self) -> None:
        count = 0
        while not self._stop.wait(self.renew_s):
            count += 1
            # One renewal may fail: the next comes soon, and others wait for four.
            with contextlib.suppress(OSError, StoreError):
                if not self.store.exists(self.name):
                    # The unit is sealed and cleared by another; a beat now would be left over for good.
                    return
                self._beat({"count": count, "time": _now()})

    def _beat(self, body: dict[str, Any]) -> None:
        self.store.replace(self.name.replace(".json", ".beat.json"), canonical_json(body, "lease"))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self._stop.set()
        # A thread that hangs in a store that does not answer must not hold up an end; it is a daemon.
        self._thread.join(timeout=5.0)
        self.store = self.store.after(error)
        with contextlib.suppress(OSError, StoreError):
            if self.store.exists(self.name):
                self._beat({"ended": True, "time": _now()})


def take(
    store: Store, unit_folder: str, owner: Process, *, void: int = 0, renew_s: float | None = None
) -> Lease | None:
    """Return the unit's lease, to be entered at once, or None where another holds it.

    `owner` is the process that hands out the work; this one holds it. `void` is a generation that a `Watch` found void.
    Look at the unit's seal after this: it may have been sealed and cleared a moment before.
    """
    held = look(store, unit_folder, owner)
    if held is not None and not held.void and held.generation > void:
        return None
    generation = held.generation + 1 if held is not None else 1
    name = f"{lease_folder(unit_folder)}/{generation:08d}.json"
    body = {"holder": Process.here().record(), "owner": owner.record(), "time": _now(), "token": uuid.uuid4().hex}
    data = canonical_json(body, "lease")
    # A create that was tried again can meet its own first write.
    if not store.create(name, data) and _load(store, name)[1] != data:
        return None
    return Lease(store, name, RENEW_S if renew_s is None else renew_s)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
