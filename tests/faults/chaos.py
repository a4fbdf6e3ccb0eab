"""Seeded random kills over the stages of whole runs, each followed by going on: one digest at the end of them all.

    python -m tests.faults.chaos --seed 1 --kills 30 --out benchmarks/chaos.md

The runs join a cluster of three nodes with pretend GPUs that this process starts. Killed are the driver, a worker, a node
and Prefect's server; where Ceph's packages are installed, some runs keep their store in an object gateway that goes away.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import platform
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, KeysView
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import psutil

from cluster.storage import Store
from flows.config import load_config
from flows.plan import make_plan
from tasks.pool import SerialPool
from tests.conftest import RayCluster
from tests.faults import driver_case as case
from tests.flows.serial_run import run_serially

# A kill comes when a random number of these is there.
STOPS = {
    "shard": "stages/shard-*/parts/*",
    "proxy": "stages/proxy-*/work/*",
    "score": "stages/score-*/parts/*",
    "merge": "stages/merge-*/parts/*",
    "select": "stages/select-*/seal.json",
    "subset": "stages/subset-*/parts/*",
    "shift": "stages/shift-*/seal.json",
    "train": "stages/train-*/seal.json",
    "report": "runs/*/report/*",
}
SEALED = ("stages/*/parts/*", "stages/*/quarantine/*", "stages/*/seal*.json")
SETTINGS = (
    *case.SMALL, "proxy.resources.gpus=1", "score.resources.gpus=0.5", "train.resources.gpus=0.5",
    "data.resources.workers=2", "score.resources.workers=2", "select.resources.workers=2", "train.resources.workers=2",
)  # fmt: skip
PATIENCE_S = 400.0

Objects = dict[str, tuple[str, str]]
"""Name -> (what changes whenever it is written again, sha256 of its bytes)."""


class Folder:
    """Look at a store that is a folder, past the code under test."""

    def __init__(self, root: Path) -> None:
        self.uri, self.root = str(root), root

    def names(self) -> list[str]:
        # Not by glob, which fails where a folder goes away as it comes to it.
        return [str(Path(at, name).relative_to(self.root)) for at, _, names in os.walk(self.root) for name in names]

    def objects(self, names: list[str]) -> Objects:
        found = {}
        for name in names:
            path = self.root / name
            status = path.stat()
            found[name] = (f"{status.st_ino} {status.st_mtime_ns}", hashlib.sha256(path.read_bytes()).hexdigest())
        return found


class Bucket:
    """Look at a store in an object gateway, past the code under test."""

    def __init__(self, url: str, bucket: str) -> None:
        import s3fs

        self.uri, self.bucket = f"s3://{bucket}/store", bucket
        self.files = s3fs.S3FileSystem(endpoint_url=url, use_listings_cache=False)
        self.files.call_s3("create_bucket", Bucket=bucket)

    def names(self) -> list[str]:
        try:
            return [name.removeprefix(f"{self.bucket}/store/") for name in self.files.find(f"{self.bucket}/store")]
        except OSError:
            return []

    def objects(self, names: list[str]) -> Objects:
        found = {}
        for name in names:
            path = f"{self.bucket}/store/{name}"
            data = self.files.cat_file(path)
            found[name] = (f"{self.files.info(path)['LastModified']}", hashlib.sha256(data).hexdigest())
        return found


View = Folder | Bucket


def matching(names: list[str], *patterns: str) -> list[str]:
    return sorted(name for name in names if any(fnmatch(name, pattern) for pattern in patterns))


def digest(objects: Objects) -> str:
    """Return one digest of all sealed objects: their names and their bytes."""
    whole = hashlib.sha256()
    for name, (_, data) in sorted(objects.items()):
        whole.update(f"{name} {data}\n".encode())
    return whole.hexdigest()


@dataclass
class Kill:
    """Tell of one kill."""

    number: int
    where: str
    stage: str
    what: str
    committed: Objects
    after: str = "went on"
    rewritten: int = 0


@dataclass
class Campaign:
    """One run, from nothing to its results, with a kill in each stage."""

    number: int
    folder: Path
    view: View
    cluster: RayCluster
    chance: random.Random
    totals: Counter[str]
    expected: dict[str, str]
    struck: Counter[tuple[str, str]]
    outage: Any = None
    kills: list[Kill] = field(default_factory=list)
    starts: int = 0
    error: str = ""

    def start(self) -> None:
        self.starts += 1
        self.process = case.start(
            self.folder / "store", settings=SETTINGS, ray=self.cluster.address, uri=self.view.uri
        )
        # Its output is read all the time, so that it never waits for a reader.
        self.out: list[str] = []
        self.reader = threading.Thread(target=lambda: self.out.extend(self.process.communicate()), daemon=True)
        self.reader.start()

    def wait(self, stage: str) -> bool:
        """Wait until a random number of the stage's objects is there; return whether the run still goes on."""
        wanted = self.chance.randint(1, max(1, self.totals[stage]))
        later = [pattern for name, pattern in list(STOPS.items())[list(STOPS).index(stage) + 1 :]]
        deadline = time.monotonic() + PATIENCE_S
        while True:
            names = self.view.names()
            # Work in progress is cleared away: it may have come and gone.
            if len(matching(names, STOPS[stage])) >= wanted or matching(names, *later):
                return self.process.poll() is None
            if self.process.poll() is not None and not self.again():
                return False
            assert time.monotonic() < deadline, f"run {self.number} does not come to {stage}"
            time.sleep(0.1 if self.outage else 0.01)

    def again(self) -> bool:
        """Start an ended driver again where it did not end well; return whether it was started."""
        self.reader.join()
        if self.process.returncode == 0:
            return False
        if self.kills and self.kills[-1].after == "went on":
            self.kills[-1].after = f"ended with {self.process.returncode}, resumed"
        self.error = self.out[1][-2000:]
        assert self.starts < 40, self.error
        self.start()
        return True

    def targets(self) -> dict[str, Any]:
        """Return what can be killed now; nothing where the driver has just ended."""
        found: dict[str, Any] = {"driver": self.process}
        try:
            family = case.family(self.process)
        except psutil.NoSuchProcess:
            return {}
        servers = [child for child in family if case.is_program(child, "server_process.py")]
        if servers:
            found["Prefect's server"] = servers[0]
        workers = [child for child in psutil.Process().children(recursive=True) if case.is_worker(child)]
        if workers:
            found["worker"] = self.chance.choice(sorted(workers, key=lambda process: process.pid))
        found["node"] = self.chance.choice(sorted(self.cluster.cluster.worker_nodes, key=lambda node: node.node_id))
        if self.outage is not None:
            found["object store"] = self.outage
        return found

    def choose(self, kinds: KeysView[str], stage: str) -> str:
        """Return a kind of those killed least so far, of them one killed least in this stage; in each round the driver first."""

        def rank(kind: str) -> tuple[int, int, bool]:
            so_far = sum(count for (killed, _), count in self.struck.items() if killed == kind)
            return so_far, self.struck[kind, stage], kind != "driver"

        least = min(map(rank, kinds))
        kind = self.chance.choice(sorted(kind for kind in kinds if rank(kind) == least))
        self.struck[kind, stage] += 1
        return kind

    def strike(self, stage: str, number: int) -> None:
        """Kill something, and see to it that the run goes on."""
        self.cluster.restore()
        # Looked at first: what is chosen may end while a bucket is read.
        committed = self.view.objects(matching(self.view.names(), *SEALED))
        deadline = time.monotonic() + 2
        while "worker" not in (found := self.targets()) and found and time.monotonic() < deadline:
            time.sleep(0.02)
        if not found:
            return
        what = self.choose(found.keys(), stage)
        kill = Kill(number, f"{self.number} ({'S3' if self.outage else 'folder'})", stage, what, committed)
        self.kills.append(kill)
        print(f"{number}: {what} in {stage}, {len(committed)} objects committed", file=sys.stderr, flush=True)
        if what == "driver":
            processes = case.family(self.process)
            self.process.kill()
            self.reader.join()
            case.assert_gone(processes)
            kill.after = "resumed"
            self.start()
        elif what == "node":
            self.cluster.cluster.remove_node(found[what], allow_graceful=False)
        elif what == "object store":
            seconds = self.chance.uniform(3, 7)
            kill.what = f"object store, away for {seconds:.1f} s"
            self.outage.stop()
            time.sleep(seconds)
            self.outage.start()
        else:
            try:
                found[what].send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                # It had just ended: nothing was killed here.
                self.struck[what, stage] -= 1
                self.kills.remove(kill)

    def run(self, first: int, most: int) -> str:
        """Run to the end with at most `most` kills, and return the digest of all that is sealed."""
        self.start()
        for stage in STOPS:
            if len(self.kills) < most and self.wait(stage):
                self.strike(stage, first + len(self.kills))
        while True:
            self.reader.join(PATIENCE_S)
            assert not self.reader.is_alive(), "the run does not end"
            if not self.again():
                break
        self.cluster.restore()
        end = self.view.objects(matching(self.view.names(), *SEALED))
        if self.expected != {name: data for name, (_, data) in end.items()}:
            wrong = {name for name, (_, data) in end.items() if self.expected.get(name) != data} | set(self.expected) - set(end)
            print(f"run {self.number}: not as in the undisturbed run: {sorted(wrong)}", file=sys.stderr)
        for kill in self.kills:
            kill.rewritten = sum(end.get(name) != object_ for name, object_ in kill.committed.items())
        return digest(end)


@contextmanager
def gateway() -> Iterator[Any]:
    """Yield an object gateway, or None, with the reason on standard error, where it cannot be had."""
    from tests.s3.gateway import ACCESS, SECRET, missing, start_gateway

    if missing():
        print(f"no campaign on S3: {', '.join(missing())} not installed", file=sys.stderr)
        yield None
        return
    own = start_gateway()
    try:
        os.environ |= {
            "AWS_ENDPOINT_URL": own.url, "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        yield own
    finally:
        own.close()


def markdown(command: str, kills: list[Kill], digests: list[str], seconds: float, without_s3: bool) -> str:
    """Return the report."""
    names = ("ray", "prefect", "torch", "pyarrow", "s3fs")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    counts = Counter(kill.what.partition(",")[0] for kill in kills)
    lines = [
        "# Chaos: seeded random kills, each followed by going on",
        "",
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {versions}; {os.cpu_count()} cores,"
        f" {seconds / 60:.0f} minutes. {len(kills)} kills ("
        + ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
        + f") in {len(digests) - 1} runs of the digits with proxies, trainings and a report; each run joined a cluster of three"
        " nodes with pretend GPUs."
        + (" Ceph was not installed: no run on S3." if without_s3 else ""),
        "",
        f"Digests of all sealed objects, the undisturbed run in one process included: **{len(set(digests))}**"
        f" (`{digests[0]}`).",
        "",
        "*Committed* counts the parts and seals that lay in the store at the kill; *rewritten* those of them that at the end"
        " were another object (inode and time, or the time S3 gives) or held other bytes. Work in flight at the kill was done"
        " again: at most the items that were at the worker, or for a killed driver at its workers.",
        "",
        "| # | run | stage | killed | committed | the run | rewritten |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {kill.number} | {kill.where} | {kill.stage} | {kill.what} | {len(kill.committed)} | {kill.after} |"
            f" {kill.rewritten} |"
            for kill in kills
        ),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--out", type=Path, default=None, help="Markdown file; default: standard output only")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    began = time.monotonic()
    kills: list[Kill] = []
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        own = stack.enter_context(gateway())
        quiet = Folder(root / "undisturbed")
        run_serially(make_plan(load_config(case.CONFIG, SETTINGS)), Store(quiet.uri), SerialPool())
        names = quiet.names()
        totals = Counter({stage: len(matching(names, pattern)) for stage, pattern in STOPS.items()})
        objects = quiet.objects(matching(names, *SEALED))
        expected = {name: data for name, (_, data) in objects.items()}
        digests = [digest(objects)]
        cluster = RayCluster()
        stack.callback(cluster.close)
        number = 0
        struck: Counter[tuple[str, str]] = Counter()
        while len(kills) < arguments.kills:
            number += 1
            on_s3 = own is not None and number % 2 == 0
            folder = root / f"run{number}"
            view: View = Bucket(own.url, f"chaos-{number}") if on_s3 else Folder(folder / "store")
            campaign = Campaign(number, folder, view, cluster, chance, totals, expected, struck, own if on_s3 else None)
            digests.append(campaign.run(len(kills) + 1, arguments.kills - len(kills)))
            kills += campaign.kills
            assert number < arguments.kills, "runs end before anything can be killed"
            command = f"python -m tests.faults.chaos --seed {arguments.seed} --kills {arguments.kills}"
            report = markdown(command, kills, digests, time.monotonic() - began, own is None)
            if arguments.out is not None:
                # After each run, so that a long campaign that is broken off leaves what it has shown.
                arguments.out.write_text(report)
    print(report)
    return 0 if len(set(digests)) == 1 and not any(kill.rewritten for kill in kills) else 1


if __name__ == "__main__":
    sys.exit(main())
