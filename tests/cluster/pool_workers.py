"""Workers for the tests of the pool. Imported on workers by name: nothing of pytest here."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from cluster.errors import InputError, StoreOutageError


class ClashingError(Exception):
    """Cannot be rebuilt from its message alone."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class Square:
    """Square numbers."""

    def load(self, item: int) -> int:
        return item

    def compute(self, item: int, loaded: int) -> int:
        return loaded * loaded


def pause(seconds: float) -> None:
    """Be work that takes this long."""
    threading.Event().wait(seconds)


class Where:
    """Say where an item was done: (process id, node id, threads set by the environment, CUDA_VISIBLE_DEVICES).

    Each item waits until `workers` workers have an item.
    """

    def __init__(self, folder: str, workers: int) -> None:
        self.made = os.getpid()
        self.folder, self.workers = Path(folder), workers

    def load(self, item: int) -> None: ...

    def compute(self, item: int, loaded: None) -> tuple[int, str, str | None, str | None]:
        import ray

        (self.folder / f"here-{self.made}").touch()
        for _ in range(1000):
            if len(list(self.folder.glob("here-*"))) >= self.workers:
                break
            pause(0.03)

        node = ray.get_runtime_context().get_node_id()
        return self.made, node, os.environ.get("OMP_NUM_THREADS"), os.environ.get("CUDA_VISIBLE_DEVICES")


class Overlap:
    """Say of each item whether the load of another began while it was computed, and how many computed at once."""

    def __init__(self, items: int) -> None:
        self.items = items
        self.loads = threading.Semaphore(0)
        self.computes = 0
        self.inside = 0

    def load(self, item: int) -> None:
        self.loads.release()

    def compute(self, item: int, loaded: None) -> tuple[bool, int]:
        self.inside += 1
        self.computes += 1
        if self.computes == 1:
            self.loads.acquire()
        # One load more than computes have begun, or this wait ends in vain; there is none after the last item.
        overlapped = self.computes == self.items or self.loads.acquire(timeout=20)
        inside = self.inside
        self.inside -= 1
        return overlapped, inside


class Fails:
    """Raise what the item says."""

    def load(self, item: str) -> None:
        if item == "load":
            raise OSError("disk on fire")

    def compute(self, item: str, loaded: None) -> str:
        if item == "input":
            raise InputError("labels are wrong")
        if item == "outage":
            raise OSError("the table cannot be read") from StoreOutageError("GetObject of a/b: still failing after 9 tries")
        if item == "value":
            raise ValueError("bad row 17")
        if item == "clash":
            raise ClashingError("this", "that")
        if item == "result":
            return threading.Lock()  # type: ignore[return-value]
        return item


class Unmakeable:
    """Fail in the constructor."""

    def __init__(self, kind: str) -> None:
        if kind == "dies":
            os._exit(1)
        if kind == "input":
            raise InputError("no such model")
        raise KeyError(kind)


class Dies:
    """Exit the process: items below 0 always, item N > 100 the first time. Marks every try with a file."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def load(self, item: int) -> None: ...

    def compute(self, item: int, loaded: None) -> int:
        tries = len(list(self.folder.glob(f"try{item}-*")))
        (self.folder / f"try{item}-{tries}").touch()
        if item < 0 or (item > 100 and tries == 0):
            os._exit(9)
        return item * 2


class Marks:
    """Write own process id and node to a file, then take `seconds`."""

    def __init__(self, folder: str, seconds: float) -> None:
        self.folder, self.seconds = Path(folder), seconds

    def load(self, item: int) -> None: ...

    def compute(self, item: int, loaded: None) -> tuple[int, str]:
        import ray

        node = ray.get_runtime_context().get_node_id()
        scratch = self.folder / f".{os.getpid()}-{item}"
        scratch.write_text(node)
        scratch.rename(self.folder / f"{os.getpid()}-{item}")
        pause(self.seconds)
        return item, node


class Big:
    """Return the items' sizes; for arguments that travel through the object store."""

    def load(self, item: Any) -> int:
        return len(item)

    def compute(self, item: Any, loaded: int) -> bytes:
        return bytes(loaded)
