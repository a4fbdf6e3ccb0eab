"""What benchmarks measure with: ways of doing one piece of work, each in processes of its own, in turn, side by side."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

REPEATS = 5
SAMPLE_SECONDS = 0.02
# Where it is set, every start compiles this project's modules anew (0.13 s of the processor for `select`), and none of its
# peers', which pip compiled.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
OUTPUTS = (":!benchmarks/RESULTS.md", ":!benchmarks/scale.jsonl")


@dataclass(frozen=True)
class Run:
    """Hold one measured run: its seconds, the peak MiB of its process tree, and the JSON it printed last, if any.

    The seconds of one that the kernel killed for memory are infinite.
    """

    seconds: float
    peak_mib: float
    said: Any = None


@dataclass(frozen=True)
class Row:
    """Hold one line of the table: our figure, the peer's, the bar, and whether it is met (None where it is no bar)."""

    work: str
    peer: str
    bar: str
    ours: str
    theirs: str
    figure: str
    met: bool | None
    note: str = ""

    def cells(self) -> list[str]:
        """Return the cells of a Markdown table."""
        verdict = {True: "yes", False: "**no**", None: "–"}[self.met]
        return [self.work, self.peer, self.bar, self.ours, self.theirs, self.figure, verdict, self.note]


HEADER = ["work", "peer, same run", "bar", "ours", "peer's", "figure", "met", "note"]


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    return "\n".join([*lines, *("| " + " | ".join(row.cells()) + " |" for row in rows)])


def _tree_bytes(process: psutil.Process) -> int:
    """Return the resident bytes of a process and all below it; of shared pages those of the first process alone."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            memory = one.memory_info()
            total += memory.rss - memory.shared
            if one.pid == process.pid:
                total += memory.shared
        except psutil.Error:
            continue
    return total


@contextlib.contextmanager
def watched(pid: int, every: float = SAMPLE_SECONDS) -> Iterator[list[float]]:
    """Watch the memory of a process and all below it while the block runs; the list then holds its peak in MiB."""
    peak = [0.0]
    ended = threading.Event()

    def watch() -> None:
        process = psutil.Process(pid)
        while not ended.wait(every):
            try:
                peak[0] = max(peak[0], _tree_bytes(process) / 2**20)
            except psutil.Error:
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def run_process(argv: Sequence[str], environment: Mapping[str, str] | None = None, may_die: bool = False) -> Run:
    """Run a command to its end and return what it took. Raises CalledProcessError with its output on a failure.

    One that `may_die` is not a failure where the kernel kills it.
    """
    start = time.perf_counter()
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **(environment or {})})
    with watched(child.pid) as peak:
        out, err = child.communicate()
        seconds = time.perf_counter() - start
    if may_die and child.returncode == -signal.SIGKILL:
        return Run(math.inf, peak[0])
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, argv, out, err)
    said = None
    if out.strip():
        try:
            said = json.loads(out.decode().strip().splitlines()[-1])
        except ValueError:
            said = None
    return Run(seconds, peak[0], said)


def run_python(
    code: str, *arguments: object, environment: Mapping[str, str] | None = None, may_die: bool = False
) -> Run:
    """Run Python code in a process of its own."""
    return run_process([sys.executable, "-c", code, *map(str, arguments)], environment, may_die)


def peaks_of(module: str, ways: Iterable[str], *arguments: str) -> dict[str, float]:
    """Return the peak MiB of a process for each way, which does it once: `python -m MODULE ARGUMENTS --way WAY`."""
    return {way: run_process([sys.executable, "-m", module, *arguments, "--way", way]).peak_mib for way in ways}


def in_turn(
    ways: Mapping[str, Callable[[], Run]], repeats: int = REPEATS, warm_up: int = 1, say: bool = True
) -> dict[str, Run]:
    """Return the median run of each way (by seconds; the greatest peak), after a warm-up, one after the other in turn.

    In turn, so that what else the machine does falls on all of them alike.
    """
    found: dict[str, list[Run]] = {name: [] for name in ways}
    for turn in range(warm_up + repeats):
        for name, way in ways.items():
            run = way()
            if turn >= warm_up:
                found[name].append(run)
            if say:
                print(f"  {name}: {run.seconds:.3f} s, {run.peak_mib:.0f} MiB", file=sys.stderr, flush=True)
    out = {}
    for name, runs in found.items():
        middle = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
        seconds = statistics.median(run.seconds for run in runs)
        out[name] = Run(seconds, max(run.peak_mib for run in runs), middle.said)
    return out


def versions() -> str:
    """Return what the figures were measured with, in one line."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    names = ("torch", "ray", "prefect", "pyarrow", "numpy", "duckdb", "polars", "prefect-ray", "scikit-learn")
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return f"Python {platform.python_version()}, {', '.join(found)}; {os.cpu_count()} cores"


def machine() -> str:
    """Return what the figures were measured on: cores and processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} x {model}"


def commit() -> str:
    """Return the commit the figures are of, with `+` where the tree differs from it in more than what benchmarks write."""
    root = Path(__file__).resolve().parents[1]
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        status = ["git", "status", "--porcelain", "--", ".", *OUTPUTS]
        changed = subprocess.run(status, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
