"""A sharded small dataset to run stages on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.record import Seal, Unit
from cluster.storage import Store
from tasks.pool import SerialPool, Worker
from tasks.shard import shard_stage
from tasks.sources.spec import DataSpec
from tasks.spec import Resources

DATA = DataSpec.model_validate({"source": {"use": "sklearn"}, "train": "digits", "limit": 400, "shard_rows": 700})


def indexed(folder: Path) -> tuple[Store, Seal]:
    """Return a new store with the index of 400 digits in it."""
    store = Store(str(folder / "store"))
    return store, shard_stage(DATA, store, SerialPool())


class CountingPool(SerialPool):
    """Be the serial pool, and remember what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[Any] = []

    def map(
        self, make_worker: Callable[[], Worker[Any, Any, Any]], items: Any, *, label: str, resources: Resources,
        done: int = 0,
    ) -> Any:
        """Map, after writing the items down."""
        self.items += items
        return super().map(make_worker, items, label=label, resources=resources, done=done)


class Killed(BaseException):
    """Stand for the death of a process: nothing in the code under test may catch it."""


class DyingStore(Store):
    """Be a store in a process that dies at the first `create` for which `dies(name)` is true, before or after it."""

    def __init__(self, uri: str, dies: Callable[[str], bool], after: bool = False) -> None:
        super().__init__(uri)
        self.dies, self.publishes = dies, after

    def create(self, name: str, data: bytes) -> bool:
        """Publish, or die."""
        if not self.dies(name):
            return super().create(name, data)
        if self.publishes:
            super().create(name, data)
        raise Killed(name)


def dying_at(store: Store, count: int, pattern: str = "", after: bool = False) -> DyingStore:
    """Return the store as a process sees it that dies at create number `count` of a name with `pattern` in it."""
    seen: list[str] = []

    def dies(name: str) -> bool:
        if pattern in name:
            seen.append(name)
        return len(seen) == count and pattern in name

    return DyingStore(store.uri, dies, after)


def part_bytes(store: Store, seal: Seal) -> dict[str, bytes]:
    """Return the bytes of every part and of the seal itself."""
    folder = Unit(store, seal.stage, seal.key).folder
    return {part.name: store.read(part.name) for part in seal.parts} | {"seal": store.read(f"{folder}/seal.json")}
