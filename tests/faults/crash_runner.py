"""Every crash point of a stage, in forked children of one warm process: `python -m tests.faults.crash_runner FOLDER ...`.

For each point: the state before the stage, a child that dies, stops or errs there, another that goes on, and what differs
from the undisturbed store. Prints one JSON document: {place: {"points": N, "calls": [...], "wrong": [...]}}.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cluster import lease
from cluster.record import Unit
from cluster.self_digest import BLANK, MARK
from cluster.storage import Store
from flows.plan import make_plan
from tests.faults import filesystem as faulty
from tests.faults import tiny_run as tiny
from tests.faults.filesystem import DIED, Fault

FAULTS = {
    "crashes": faulty.CRASHES, "before": faulty.CRASHES[:1], "errors": faulty.ERRORS, "reads": faulty.READS,
    "late": ("pause late",), "killed": ("pause killed",),
}  # fmt: skip
ENDS = {"crash": (DIED,), "fail": (0, tiny.FAILED), "twice": (0,), "slow": (0,), "short": (0, tiny.FAILED)}


def opened(root: Path, kind: str, fault: Fault | None) -> Store:
    """Return the store in a folder, seen through a kind of storage, with a fault in it."""
    store = Store(str(root))
    if kind == "bucket":
        store.objects = faulty.BucketObjects(faulty.FaultyFileSystem(root, fault or Fault()))
    elif fault is not None and kind == "objects":
        store.objects = faulty.FaultyObjects(store.objects, fault)  # type: ignore[assignment]
    elif fault is not None:
        faulty.count_kernel_steps(root, fault)
    return store


class Place:
    """Hold a stage, or the bare protocol, on one kind of storage: its state before, its state after, its points."""

    def __init__(
        self, folder: Path, name: str, kind: str, before: Path, act: Callable[[Store], None],
        check: Callable[[Path], list[str]] = lambda root: [],
    ) -> None:
        self.folder, self.name, self.kind, self.before, self.act, self.check = folder, name, kind, before, act, check
        self.wrong: list[str] = []
        self.points = 0
        self.calls: list[str] = []

    def enumerate(self, kinds: tuple[str, ...]) -> dict[str, Any]:
        """Do every point of every kind of fault and return what was found."""
        after = tiny.clone(self.before, self.folder / "after")
        self._undisturbed(after, Fault())
        self.want = tiny.contents(after)
        for kind in kinds:
            counted = tiny.clone(self.before, self.folder / "counted")
            self.calls = self._undisturbed(counted, Fault(kind))
            if names := tiny.differing(counted, self.want):
                self.wrong.append(f"{self.name} on {self.kind}: two undisturbed runs differ in {names}")
            point = {"pause late": self._late, "pause killed": self._killed}.get(kind, self._point)
            for at, call in enumerate(self.calls, 1):
                # A crash after a call leaves what one before the next call leaves; only the last has no next.
                if kind == "crash after" and at < len(self.calls):
                    continue
                self.points += 1
                self.root = tiny.clone(self.before, self.folder / "struck")
                self.where = f"{self.name} on {self.kind}, {kind} call {at} ({call})"
                point(Fault(kind, at))
                if names := tiny.differing(self.root, self.want):
                    self._note(f"differs from the undisturbed run in {names}")
        return {"points": self.points, "calls": self.calls, "wrong": self.wrong}

    def _note(self, problem: str) -> None:
        self.wrong.append(f"{self.where}: {problem}")

    def _run(self, fault: Fault | None = None) -> None:
        self.act(opened(self.root, self.kind, fault))

    def _undisturbed(self, root: Path, fault: Fault) -> list[str]:
        told = self.folder / "calls.json"

        def act() -> None:
            self.act(opened(root, self.kind, fault))
            told.write_text(json.dumps(fault.calls))

        code = tiny.in_child(act)
        if code:
            raise SystemExit(f"{self.name} on {self.kind}: the undisturbed run ended with {code}")
        calls: list[str] = json.loads(told.read_text())
        return calls

    def _point(self, fault: Fault) -> None:
        """A process dies or errs; the next one goes on."""
        code = tiny.in_child(lambda: self._run(fault))
        if code not in ENDS[fault.kind.partition(" ")[0]]:
            self._note(f"ended with {code}")
        for problem in self.check(self.root):
            self._note(problem)
        there = tiny.kept(self.root)
        code = tiny.in_child(self._run)
        if code:
            self._note(f"the resumed run ended with {code}")
        self._check_kept(there)

    def _check_kept(self, there: dict[str, tuple[int, int]]) -> None:
        now = tiny.committed(self.root)
        if rewritten := [name for name, status in there.items() if now.get(name) != status]:
            self._note(f"rewritten or gone: {rewritten}")

    def _stopped(self, fault: Fault) -> int:
        """Return a child that stopped itself at the fault."""
        child = tiny.fork(lambda: self._run(fault))
        _, status = os.waitpid(child, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise SystemExit(f"{self.where}: did not stop there")
        return child

    def _late(self, fault: Fault) -> None:
        """A process stops; another, to which its leases are void soon, finishes all; the first wakes up and ends too."""
        late = self._stopped(fault)

        def impatient() -> None:
            lease.VOID_AFTER_S = 0.1
            self._run()

        if code := tiny.in_child(impatient):
            self._note(f"the other run ended with {code}")
        there = tiny.kept(self.root)
        os.kill(late, signal.SIGCONT)
        if code := tiny.wait(late):
            self._note(f"the late run ended with {code}")
        self._check_kept(there)

    def _killed(self, fault: Fault) -> None:
        """A process stops; another does what it can beside it; when it only waits, the first is killed."""
        victim = self._stopped(fault)
        waits = self.folder / "waits"
        waits.unlink(missing_ok=True)

        class Mark(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                waits.touch()

        def patient() -> None:
            logging.getLogger("secateur.lease").addHandler(Mark())
            self._run()

        other = tiny.fork(patient)
        ended = 0
        while not ended and not waits.exists():
            ended, status = os.waitpid(other, os.WNOHANG)
            time.sleep(0.005)
        os.kill(victim, signal.SIGKILL)
        tiny.wait(victim)
        code = os.waitstatus_to_exitcode(status) if ended else tiny.wait(other)
        if code:
            self._note(f"the other run ended with {code}")
        if ended and "create stages" in self.where and "/model/" in self.where:
            self._note("the other run did not wait for a unit that was being trained")
        # What the victim left where it died after a seal, a later run clears.
        if code := tiny.in_child(self._run):
            self._note(f"a later run ended with {code}")


def bare_protocol(store: Store) -> None:
    """Publish a part, a quarantine and its part, and the seal, as a stage does."""
    unit = Unit(store, "score", "5e" * 32)
    parts = [unit.publish_part("one.parquet", b"rows" + MARK + BLANK, len)]
    store.create(f"{unit.folder}/quarantine/two.parquet", b"bad rows")
    parts.append(unit.publish_part("two.parquet", b"other rows" + MARK + BLANK, len))
    unit.publish_seal(parts, {"rows": 14})


def check_protocol(root: Path) -> list[str]:
    """Return what of the protocol's order does not hold: a seal needs its parts, a part its quarantine."""
    names = {"/".join(name.split("/")[2:]) for name in tiny.committed(root)}
    problems = []
    if "seal.json" in names and not {"parts/one.parquet", "parts/two.parquet"} <= names:
        problems.append("sealed without its parts")
    if "parts/two.parquet" in names and "quarantine/two.parquet" not in names:
        problems.append("a part without its quarantine")
    return problems


def main(folder: Path, wanted: list[str]) -> None:
    """Do the places named as place:storage:faults and print what was found."""
    plan = make_plan(tiny.make_config(folder))
    tiny.warm_up()
    stages = list(tiny.STAGES)
    before = {"shard": folder / "before-shard", "protocol": folder / "nothing"}
    for stage, following in zip(stages, [*stages[1:], "end"]):
        before[following] = tiny.clone(before[stage], folder / f"before-{following}")
        if tiny.in_child(partial(tiny.run_until, stage, plan, Store(str(before[following])))):
            raise SystemExit(f"{stage}: the undisturbed run failed")
    found = {}
    for want in wanted:
        name, kind, faults = want.split(":")
        work = folder / want.replace(":", "-")
        work.mkdir()
        if name == "protocol":
            place = Place(work, name, kind, before[name], bare_protocol, check_protocol)
        else:
            place = Place(work, name, kind, before[name], partial(tiny.run_until, name, plan))
        found[want] = place.enumerate(FAULTS[faults])
        shutil.rmtree(work)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
