"""Attempts at a run: what started where, whether it still lives, how it ended, how long each stage took."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.errors import StoreError
from cluster.fingerprint import canonical_json
from cluster.storage import Store
from flows.prefect_settings import redact

HEARTBEAT_S = 30.0

# Four heartbeats: one may be late, and clocks of two machines may differ by some seconds.
LOST_AFTER_S = 120.0


def _now() -> datetime:
    return datetime.now(UTC)


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


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
    if fields and fields[0] == "Z":
        return None
    return fields[19] if len(fields) > 19 else ""


@dataclass(frozen=True)
class StageTiming:
    """Tell how long one stage took in one attempt, and how much of it was there already."""

    name: str
    seconds: float
    computed: int
    items: int


@dataclass(frozen=True)
class AttemptState:
    """Tell one attempt's story: `state` is running, lost, failed, interrupted or done."""

    name: str
    state: str
    started: str
    ended: str | None
    heartbeat: str | None
    host: str
    pid: int
    versions: Mapping[str, str]
    error: str | None = None
    stages: tuple[StageTiming, ...] = field(default=())


class Attempt:
    """Record an attempt at `run` for the length of a `with` block: its start, a heartbeat, its stages, its end.

    A heartbeat or a timing that cannot be written is tried again at the next one; an end that cannot be written is told
    through `warn` and does not change how the block ends.
    """

    def __init__(
        self,
        store: Store,
        run: str,
        versions: Mapping[str, str] | None = None,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.store = store
        self.versions = dict(versions or {})
        self.heartbeat_s = heartbeat_s
        self.warn = warn or _warn
        self.name = f"{_now():%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:12]}"
        self._base = f"runs/{run}/attempts/{self.name}"
        self._stages: list[StageTiming] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="attempt-heartbeat", daemon=True)

    def __enter__(self) -> Attempt:
        body = {
            "started": _stamp(_now()),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_space": _process_space(),
            "process_started": _process_started(os.getpid()) or "",
            "versions": self.versions,
        }
        self.store.create(f"{self._base}.json", canonical_json(body, "attempt"))
        self._write_heartbeat()
        self._thread.start()
        return self

    def _write_heartbeat(self) -> None:
        self.store.replace(f"{self._base}.heartbeat.json", canonical_json({"time": _stamp(_now())}))

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat_s):
            # The next one comes soon, and a reader calls the attempt lost only after several were missed.
            with contextlib.suppress(OSError, StoreError):
                self._write_heartbeat()

    def record_stage(self, name: str, seconds: float, computed: int, items: int) -> None:
        """Add a stage's time: `computed` of its `items` parts or units were made now, the others were there already."""
        with self._lock:
            self._stages.append(StageTiming(name, round(seconds, 3), computed, items))
            rows = [vars(stage) for stage in self._stages]
            with contextlib.suppress(OSError, StoreError):
                self.store.replace(f"{self._base}.stages.json", canonical_json(rows, "stages"))

    @property
    def stages(self) -> tuple[StageTiming, ...]:
        """Return the stages recorded by this attempt so far."""
        return tuple(self._stages)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=1.0)
        body = {"ended": _stamp(_now()), "state": _final_state(error)}
        if error is not None and body["state"] != "done":
            body["error"] = redact(f"{type(error).__name__}: {error}".rstrip(": "))[:500]
        try:
            self.store.create(f"{self._base}.end.json", canonical_json(body, "end"))
        except (OSError, StoreError) as failure:
            self.warn(f"how this attempt ended could not be written to {self.store.uri} ({failure})")


def _warn(message: str) -> None:
    print(f"secateur: warning: {message}", file=sys.stderr, flush=True)


def _final_state(error: BaseException | None) -> str:
    if error is None or (isinstance(error, SystemExit) and error.code in (0, None)):
        return "done"
    return "failed" if isinstance(error, Exception | SystemExit) else "interrupted"


def _read_json(store: Store, name: str) -> Any:
    try:
        return json.loads(store.read(name))
    except (FileNotFoundError, ValueError):
        return None


def attempt_states(store: Store, run: str, now: datetime | None = None) -> list[AttemptState]:
    """Return the attempts at `run`, oldest first.

    An attempt without an end is lost when its process is gone, as far as that can be seen from this machine, or when
    its last heartbeat is more than 120 s old; otherwise it is running.
    """
    names = set(store.list(f"runs/{run}/attempts"))
    suffixes = (".heartbeat.json", ".stages.json", ".end.json")
    states = []
    for name in sorted(name for name in names if name.endswith(".json") and not name.endswith(suffixes)):
        start = _read_json(store, name)
        if start is None:
            continue
        base = name.removesuffix(".json")
        beat, end, stages = (
            _read_json(store, f"{base}{suffix}") if f"{base}{suffix}" in names else None
            for suffix in (".heartbeat.json", ".end.json", ".stages.json")
        )
        heartbeat = beat["time"] if beat else None
        states.append(
            AttemptState(
                name=base.rpartition("/")[2],
                state=end["state"] if end else _living_state(start, heartbeat or start["started"], now or _now()),
                started=start["started"],
                ended=end["ended"] if end else None,
                heartbeat=heartbeat,
                host=start["host"],
                pid=start["pid"],
                versions=start["versions"],
                error=end.get("error") if end else None,
                stages=tuple(StageTiming(**row) for row in stages or []),
            )
        )
    return states


def _living_state(start: Mapping[str, Any], heartbeat: str, now: datetime) -> str:
    if now - datetime.fromisoformat(heartbeat) > timedelta(seconds=LOST_AFTER_S):
        return "lost"
    if start["host"] == socket.gethostname() and start["process_space"] == _process_space():
        begun = _process_started(start["pid"])
        if begun is None or (begun and start["process_started"] and begun != start["process_started"]):
            return "lost"
    return "running"


def stage_timings(store: Store, run: str) -> list[StageTiming]:
    """Return the stage times of every attempt at `run`, in the order they were recorded."""
    return [stage for attempt in attempt_states(store, run) for stage in attempt.stages]
