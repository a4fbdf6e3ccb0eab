"""Processes by an identity that is not given twice, and whether they live as far as this machine can tell."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _process_space() -> str:
    """Return what has to be equal for a process id to mean the same: this boot of the kernel and its pid namespace."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return f"{_read_text('/proc/sys/kernel/random/boot_id')}/{space}"


def _process_started(pid: int) -> str | None:
    """Return the kernel's start tick of a process, "" where it cannot be known, None when there is no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    # The name in parentheses may hold anything; the 20th field after it is the start time, the first the state.
    fields = _read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if fields and fields[0] in "ZX":
        return None
    return fields[19] if len(fields) > 19 else ""


@dataclass(frozen=True)
class Process:
    """Name one process: its host, its id, the boot and pid namespace in which the id means it, and its start tick."""

    host: str
    pid: int
    process_space: str
    process_started: str

    @classmethod
    def here(cls) -> Process:
        """Return this process."""
        return cls(socket.gethostname(), os.getpid(), _process_space(), _process_started(os.getpid()) or "")

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Process:
        """Return the process in a record, which may hold more. Raises KeyError, TypeError or ValueError."""
        host, pid = record["host"], record["pid"]
        space, started = record["process_space"], record["process_started"]
        if not all(isinstance(value, str) for value in (host, space, started)):
            raise TypeError("host, process_space and process_started must be text")
        # 0 and below name groups of processes.
        if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 2**31:
            raise ValueError(f"pid {pid!r} is not a positive number of 31 bits")
        return cls(host, pid, space, started)

    def record(self) -> dict[str, Any]:
        """Return the process as plain values."""
        return dict(vars(self))

    def alive(self) -> bool | None:
        """Return whether the process lives, or None where that cannot be known from here."""
        if self.host != socket.gethostname() or self.process_space != _process_space():
            return None
        begun = _process_started(self.pid)
        if begun is None:
            return False
        if not begun or not self.process_started:
            return None
        return begun == self.process_started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"
