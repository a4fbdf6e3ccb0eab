"""Attempts at a run: what started where, whether it still lives, how it ended, how long each stage took."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, TypeVar

from cluster.control_characters import show_controls
from cluster.errors import StoreError
from cluster.fingerprint import canonical_json
from cluster.processes import Process
from cluster.storage import Store, check_name
from flows.prefect_settings import redact

HEARTBEAT_S = 30.0

# Four heartbeats: one may be late, and clocks of two machines may differ by some seconds.
LOST_AFTER_S = 120.0

Fact = str | bool | int

_ATTEMPT_FILE = re.compile(r"(\.heartbeat|\.stages|\.end)?\.json\Z")

log = logging.getLogger("secateur.attempts")

T = TypeVar("T")


def _now() -> datetime:
    return datetime.now(UTC)


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class StageTiming:
    """Tell how long one stage took in one attempt; `computed` of its `items` units were not there when the run began."""

    name: str
    seconds: float
    computed: int
    items: int


@dataclass(frozen=True)
class AttemptState:
    """Tell one attempt's story: `state` is running, lost, failed, interrupted, done, or unreadable where its record is and
    it gives no sign of life.

    `facts` are those the attempt was given; `unreadable` names its files that make no sense, or its start where that is
    lost, which say nothing here.
    """

    name: str
    state: str
    started: str
    ended: str | None
    heartbeat: str | None
    host: str
    pid: int
    versions: Mapping[str, str]
    error: str | None = None
    stages: tuple[StageTiming, ...] = ()
    facts: Mapping[str, Fact] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()

    def seconds(self, now: datetime) -> float:
        """Return how long the attempt took, up to `now` where it runs; 0 where its start is lost.

        One that was killed ends with its last sign of life, its heartbeat.
        """
        try:
            started = datetime.fromisoformat(self.started)
        except ValueError:
            return 0.0
        if self.ended is not None:
            end = datetime.fromisoformat(self.ended)
        elif self.state == "running":
            end = now
        else:
            # A stage that is recorded writes one too.
            end = started if self.heartbeat is None else datetime.fromisoformat(self.heartbeat)
        return max(0.0, (end - started).total_seconds())


class Attempt:
    """Record an attempt at `run` for the length of a `with` block: its start, a heartbeat, its stages, its end.

    A heartbeat or a timing that cannot be written is tried again at the next one; an end that cannot be written, within
    seconds after an outage of the store, is told through `warn` and does not change how the block ends. `facts` are kept
    in the record: what the store guarantees, say.
    """

    def __init__(
        self,
        store: Store,
        run: str,
        versions: Mapping[str, str] | None = None,
        *,
        facts: Mapping[str, Fact] | None = None,
        heartbeat_s: float = HEARTBEAT_S,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.store = store
        self.versions, self.facts = dict(versions or {}), dict(facts or {})
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
            **Process.here().record(),
            "versions": self.versions,
            "facts": self.facts,
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
        """Add a stage's time: `computed` of its `items` units are new, by this run or one beside it, the others were there."""
        with self._lock:
            self._stages.append(StageTiming(name, round(seconds, 3), computed, items))
            rows = [vars(stage) for stage in self._stages]
            with contextlib.suppress(OSError, StoreError):
                self.store.replace(f"{self._base}.stages.json", canonical_json(rows, "stages"))
                # What is recorded after a kill is told by the last heartbeat, and a stage is a sign of life too.
                self._write_heartbeat()

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
            self.store.after(error).create(f"{self._base}.end.json", canonical_json(body, "end"))
        except (OSError, StoreError) as failure:
            self.warn(f"how this attempt ended could not be written to {self.store.uri} ({failure})")


def _warn(message: str) -> None:
    print(show_controls(f"secateur: warning: {message}"), file=sys.stderr, flush=True)


def _final_state(error: BaseException | None) -> str:
    if error is None or (isinstance(error, SystemExit) and error.code in (0, None)):
        return "done"
    return "failed" if isinstance(error, Exception | SystemExit) else "interrupted"


class _Files:
    """Read the files of one attempt, and note by name those that are not what an attempt writes."""

    def __init__(self, store: Store, base: str, names: set[str]) -> None:
        self.store, self.base, self.names = store, base, names
        self.unreadable: list[str] = []

    def read(self, suffix: str, understand: Callable[[Any], T]) -> T | None:
        """Return what a file says; None where it is not there or makes no sense."""
        name = f"{self.base}{suffix}"
        if name not in self.names:
            return None
        try:
            check_name(name)
        except StoreError:
            # Someone's file, of a name that no attempt gives: `my copy.json`.
            self.unreadable.append(name)
            return None
        try:
            return understand(json.loads(self.store.read(name)))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            self.unreadable.append(name)
            return None


@dataclass(frozen=True)
class _Start:
    started: str
    process: Process
    versions: dict[str, str]
    facts: dict[str, Fact]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _moment(value: Any) -> str:
    """Return a time as it is written. Raises ValueError or TypeError unless it can be compared to another."""
    if datetime.fromisoformat(_text(value)).tzinfo is None:
        raise ValueError(f"{value!r} names no time zone")
    return _text(value)


def _start(body: Any) -> _Start:
    versions = {_text(name): _text(version) for name, version in body["versions"].items()}
    facts: dict[str, Fact] = dict(body.get("facts", {}))
    if not all(isinstance(fact, str | bool | int) for fact in facts.values()):
        raise TypeError("facts are texts, truths and whole numbers")
    return _Start(_moment(body["started"]), Process.from_record(body), versions, facts)


def _end(body: Any) -> tuple[str, str, str | None]:
    state = _text(body["state"])
    if state not in ("done", "failed", "interrupted"):
        raise ValueError(f"{state!r} is no end")
    return state, _moment(body["ended"]), None if body.get("error") is None else _text(body["error"])


def _stages(body: Any) -> tuple[StageTiming, ...]:
    return tuple(
        StageTiming(_text(row["name"]), float(row["seconds"]), int(row["computed"]), int(row["items"])) for row in body
    )


def attempt_states(store: Store, run: str, now: datetime | None = None) -> list[AttemptState]:
    """Return the attempts at `run`, oldest first.

    An attempt without an end is lost when its process is gone, as far as that can be seen from this machine, or when
    its last heartbeat is more than 120 s old; otherwise it is running. Files that make no sense are named in the state
    of their attempt and counted in the log; one whose start or end makes none is running by the rest of its files, or
    unreadable.
    """
    names = set(store.list(f"runs/{run}/attempts"))
    states: list[AttemptState] = []
    for base in sorted({_ATTEMPT_FILE.sub("", name) for name in names if name.endswith(".json")}):
        files = _Files(store, base, names)
        start = files.read(".json", _start)
        beat = files.read(".heartbeat.json", lambda body: _moment(body["time"]))
        end = files.read(".end.json", _end)
        stages = files.read(".stages.json", _stages)
        if start is None and beat is None and end is None and stages is None and not files.unreadable:
            # All of it was taken away since it was listed.
            continue
        if start is None and f"{base}.json" not in files.unreadable:
            files.unreadable.append(f"{base}.json")
        title = base.rpartition("/")[2]
        if end is not None:
            state = end[0]
        else:
            sign = beat or (start.started if start else None)
            state = _living_state(start.process if start else None, sign, now or _now())
            if state == "lost" and (start is None or f"{base}.end.json" in files.unreadable):
                state = "unreadable"
        states.append(
            AttemptState(
                name=title,
                state=state,
                # Its name begins with the time too.
                started=start.started if start else title,
                ended=end[1] if end else None,
                heartbeat=beat,
                host=start.process.host if start else "",
                pid=start.process.pid if start else 0,
                versions=start.versions if start else {},
                error=end[2] if end else None,
                stages=stages or (),
                facts=start.facts if start else {},
                unreadable=tuple(files.unreadable),
            )
        )
    bad = [name for state in states for name in state.unreadable]
    if bad:
        log.warning("%d file(s) of attempts at %s cannot be read, first %s; they are passed over", len(bad), run, bad[0])
    return states


def _living_state(process: Process | None, sign: str | None, now: datetime) -> str:
    """Return running or lost; what is not known, the process or its last sign of life, decides nothing in its favour."""
    late = sign is None or now - datetime.fromisoformat(sign) > timedelta(seconds=LOST_AFTER_S)
    return "lost" if late or (process is not None and process.alive() is False) else "running"


def stage_timings(store: Store, run: str) -> list[StageTiming]:
    """Return the stage times of every attempt at `run`, in the order they were recorded."""
    return [stage for attempt in attempt_states(store, run) for stage in attempt.stages]
