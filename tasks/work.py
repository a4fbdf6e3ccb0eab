"""Work in progress: checkpoints to resume a training from, each written once, and its clearing after the seal."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.errors import CorruptError
from cluster.record import Part, Unit
from cluster.self_digest import examined, filled
from tasks.checkpoints import decode_state, encode_state

log = logging.getLogger("secateur.work")

_STEP = re.compile(r"/step-(\d{8,})\.pt\Z")
KEPT = 2
"""Checkpoints an attempt keeps: one to fall back on where the newest is torn."""


@dataclass(frozen=True)
class UnitResult:
    """Hold what a worker hands back for a seal: the published parts and the facts of the seal."""

    parts: list[Part]
    meta: dict[str, Any]


class Work:
    """Keep the checkpoints of one training under STORE/<unit folder>/work/<name>/<attempt>/step-<step>.pt.

    Every process that trains is an attempt of its own, so two of them never write one name.
    """

    def __init__(self, unit: Unit, name: str) -> None:
        self.unit, self.store = unit, unit.store
        self.folder = f"{unit.folder}/work/{name}"
        self.attempt = uuid.uuid4().hex[:12]
        self._mine: list[str] = []

    def names(self) -> list[str]:
        """Return the names of all checkpoints there are, of all attempts, newest step first."""
        found = [(int(match[1]), name) for name in self.store.list(self.folder) if (match := _STEP.search(name))]
        return [name for _, name in sorted(found, key=lambda pair: (-pair[0], pair[1]))]

    def save(self, state: dict[str, Any]) -> None:
        """Publish a state that holds its "step", create-only, and drop all but the last two of this attempt.

        Nothing is kept once the unit is sealed: a late trainer would leave behind what nobody clears.
        """
        if self.unit.seal() is not None:
            return
        name = f"{self.folder}/{self.attempt}/step-{state['step']:08d}.pt"
        if self.store.create(name, filled(encode_state({"key": self.unit.key, **state}), name)[0]):
            self._mine.append(name)
        while len(self._mine) > KEPT:
            self.store.remove(self._mine.pop(0))

    def load(self, name: str) -> dict[str, Any]:
        """Return the checkpoint called `name`. Raises CorruptError, or FileNotFoundError where it is gone."""
        data = self.store.read(name)
        # torch does not look at the checksums in the archive.
        if not examined(data, name)[0]:
            raise CorruptError(f"checkpoint {self.store.url(name)} does not match the digest it holds: it is torn or changed")
        state = decode_state(data, self.store.url(name))
        if state["key"] != self.unit.key:
            raise CorruptError(f"checkpoint {self.store.url(name)} is of key {state['key'][:12]}, not this unit's")
        return state

    def newest(self, allowed: Callable[[int], bool] = lambda step: True) -> tuple[str, dict[str, Any]] | None:
        """Return (name, state) of the newest readable checkpoint whose step is allowed, or None.

        What cannot be read is passed over, and counted in the log.
        """
        unreadable: list[str] = []
        found: tuple[str, dict[str, Any]] | None = None
        for name in self.names():
            match = _STEP.search(name)
            if match is None or not allowed(int(match[1])):
                continue
            try:
                found = name, self.load(name)
                break
            except CorruptError as error:
                unreadable.append(str(error))
            except FileNotFoundError:
                # Another attempt dropped it between the listing and now.
                continue
        if unreadable:
            log.warning(
                "%d unreadable checkpoint(s) passed over in %s, first: %s; going on from %s",
                len(unreadable), self.folder, unreadable[0], found[0] if found else "the start",
            )
        return found
