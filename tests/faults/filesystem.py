"""Stores that fail at a call of choice: an fsspec file system, the store's own objects, and single steps of the kernel."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

T = TypeVar("T")

DIED = 77
"""Exit code of a process that a fault ended."""

CRASHES = ("crash before", "crash after")
ERRORS = ("fail before", "fail after", "twice", "slow")
READS = ("short",)


@dataclass
class Fault:
    """Do `kind` at call number `at` (from 1) of those counted; 0 only counts. `calls` names those that came by.

    crash before/after ends the process without a word, fail before/after raises an I/O error, twice does the call again
    (a request that was sent again because its reply was lost), slow waits, short returns half of the bytes, pause stops
    the process before the call until it is sent SIGCONT.
    """

    kind: str = "crash before"
    at: int = 0
    calls: list[str] = field(default_factory=list)

    def __call__(self, what: str, act: Callable[[], T]) -> T:
        """Do a call, or what is to happen in its place."""
        self.calls.append(what)
        if len(self.calls) != self.at:
            return act()
        when = self.kind.rpartition(" ")[2]
        if when == "before":
            self._strike(what)
        if self.kind == "slow":
            time.sleep(0.05)
        if self.kind.startswith("pause"):
            os.kill(os.getpid(), signal.SIGSTOP)
        try:
            result = act()
        finally:
            # What a call raises belongs to its reply.
            if when == "after":
                self._strike(what)
        if self.kind == "twice":
            return act()
        if self.kind == "short" and isinstance(result, bytes):
            return result[: len(result) // 2]  # type: ignore[return-value]
        return result

    def _strike(self, what: str) -> None:
        if self.kind.startswith("crash"):
            os._exit(DIED)
        raise OSError(errno.EIO, f"{self.kind} {what}")


WRITES = ("create", "replace", "remove", "pipe_file", "rm_file")
LOADS = ("read", "cat_file")


class FaultyObjects:
    """Be the objects of a store, with a fault in the calls that write, or in those that read where it is `short`."""

    def __init__(self, inner: Any, fault: Fault) -> None:
        self.inner, self.fault = inner, fault

    def __getattr__(self, name: str) -> Any:
        """Return the inner attribute; a method that is counted comes with the fault."""
        value = getattr(self.inner, name)
        if name not in (LOADS if self.fault.kind in READS else WRITES):
            return value
        return lambda *args, **more: self.fault(f"{name} {args[0]}", lambda: value(*args, **more))


class FaultyFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Be a bucket in a folder, without folders of its own: objects appear whole; a fault in the calls that write."""

    cachable = False
    protocol = "faulty"

    def __init__(self, folder: Path, fault: Fault) -> None:
        super().__init__()
        self.folder, self.fault, self.local = folder, fault, LocalFileSystem()

    def _place(self, path: str) -> str:
        return str(self.folder / path)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Put an object in one step, FileExistsError where it is there and the mode is create."""
        place = Path(self._place(path))
        place.parent.mkdir(parents=True, exist_ok=True)

        def put() -> None:
            if mode == "create":
                self.local.pipe_file(str(place), value, mode="create")
            else:
                self.local.pipe_file(f"{place}.new", value)
                Path(f"{place}.new").replace(place)

        self._count("pipe_file", path, put)

    def _count(self, name: str, path: str, act: Callable[[], T]) -> T:
        if name in (LOADS if self.fault.kind in READS else WRITES):
            return self.fault(f"{name} {path}", act)
        return act()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Return an object's bytes."""
        return self._count("cat_file", path, lambda: bytes(self.local.cat_file(self._place(path), start, end)))

    def rm_file(self, path: str) -> None:
        """Remove an object."""
        self._count("rm_file", path, lambda: self.local.rm_file(self._place(path)))

    def isfile(self, path: str) -> bool:
        """Return whether there is such an object."""
        return bool(self.local.isfile(self._place(path)))

    def find(self, path: str, **_: Any) -> list[str]:
        """Return the names below a prefix."""
        cut = len(str(self.folder)) + 1
        return sorted(name[cut:] for name in self.local.find(self._place(path)))


class BucketObjects:
    """Keep a store's objects in any fsspec file system whose `pipe_file(mode="create")` is atomic and create-only."""

    def __init__(self, fs: AbstractFileSystem) -> None:
        self.fs = fs

    def create(self, name: str, data: bytes) -> bool:
        """Put an object that is not there."""
        try:
            self.fs.pipe_file(name, data, mode="create")
        except FileExistsError:
            return False
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Put an object."""
        self.fs.pipe_file(name, data)

    def read(self, name: str) -> bytes:
        """Return an object's bytes."""
        return bytes(self.fs.cat_file(name))

    def exists(self, name: str) -> bool:
        """Return whether an object is there."""
        return bool(self.fs.isfile(name))

    def list(self, prefix: str) -> list[str]:
        """Return the sorted names below a prefix."""
        return list(self.fs.find(prefix))

    def remove(self, name: str) -> None:
        """Remove an object, where there is one."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(name)

    def open(self, name: str) -> BinaryIO:
        """Open an object for reading."""
        return io.BytesIO(self.read(name))


_CHANGES = {"os.link", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate"}


def count_kernel_steps(root: Path, fault: Fault) -> None:
    """Put the fault before every step by which this process changes files below `root`: open, fsync, link, unlink...

    For a process of its own: what is put in place stays. A crash after a step is one before the next.
    """
    inside = f"{root}/"
    sync = os.fsync

    def seen(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not writes or not str(path).startswith(inside):
                return
        elif event not in _CHANGES or not any(str(path).startswith(inside) for path in args[:2]):
            return
        fault(f"{event} {str(args[0]).removeprefix(inside)}", lambda: None)

    def synced(descriptor: Any) -> None:
        fault("fsync", lambda: None)
        sync(descriptor)

    os.fsync = synced  # type: ignore[assignment]
    sys.addaudithook(seen)
