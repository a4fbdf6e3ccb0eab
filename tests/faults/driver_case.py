"""Runs of the command in a process of its own, to be killed, interrupted and run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/quickstart.yaml")
SETTINGS = (
    "data.shard_rows=100", "score.scores=[el2n,forgetting]", "proxy.epochs=4", "train.replicates=3", "train.steps=120",
    "proxy.checkpoint_every_s=0", "train.checkpoint_every_s=0", "train.full=false",
)  # fmt: skip
# Every stage, and little in each.
SMALL = (
    "data.limit=1000", "data.shard_rows=125", "score.scores=[el2n,forgetting]", "proxy.epochs=3", "train.replicates=2",
    "train.steps=60", "select.arms=[{protocol: exact, score: el2n, alpha: 0.5}]", "proxy.checkpoint_every_s=0",
    "train.checkpoint_every_s=0", "train.full=false",
)  # fmt: skip

# Where nothing depends on their number: each worker costs its start, 3 s of processor time.
ONE_WORKER = tuple(f"{part}.resources.workers=1" for part in ("data", "proxy", "score", "select", "shift", "train"))
# Its proxy takes minutes.
LONG = (*SETTINGS, *ONE_WORKER, "data.shard_rows=2000", "proxy.seeds=1", "proxy.epochs=2000")


def _default_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def scratch(store: Path) -> Path:
    """Return the temporary folder of the runs on a store."""
    return store.parent / f"{store.name}-tmp"


def start(
    store: Path,
    *more: str,
    settings: tuple[str, ...] = SETTINGS,
    config: str = CONFIG,
    ray: str = "local",
    uri: str | None = None,
    variables: dict[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start `secateur run` on the store, in a session of its own, with SIGINT as a shell in the foreground leaves it."""
    sets = [word for setting in (*settings, *more) for word in ("--set", setting)]
    environment = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "RAY_ADDRESS")}
    scratch(store).mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", config, "--store", uri or str(store), "--ray", ray, *sets],
        cwd=ROOT,
        env=environment | {"TMPDIR": str(scratch(store))} | (variables or {}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A test run in the background of a shell ignores SIGINT, and its children would go on doing so.
        preexec_fn=_default_signals,  # noqa: PLW1509
    )


def exists(store: Path, pattern: str) -> bool:
    """Return whether something in the store matches, while others write and delete in it."""
    try:
        return next(store.glob(pattern), None) is not None
    except FileNotFoundError:
        return False


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool], timeout_s: float = 240) -> None:
    """Wait until something happened in the store, while the run goes on."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        if process.poll() is not None:
            out, error = process.communicate()
            raise AssertionError(f"the run ended with {process.returncode} before it could be stopped: {out} {error}")
        assert time.monotonic() < deadline, "the run did not come so far"
        time.sleep(0.002)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the driver and all its descendants."""
    driver = psutil.Process(process.pid)
    return [driver, *driver.children(recursive=True)]


def is_program(process: psutil.Process, name: str) -> bool:
    """Return whether the process runs a program or script of this name."""
    try:
        return any(Path(word).name == name for word in process.cmdline()[:3])
    except psutil.Error:
        return False


def words(process: psutil.Process) -> str:
    """Return the command line of a process, nothing where it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def is_worker(process: psutil.Process) -> bool:
    """Return whether the process is a Ray actor that holds a worker of the pool."""
    return "ray::Host" in words(process)


def assert_gone(processes: list[psutil.Process], within_s: float = 15) -> None:
    """Assert that every process has ended within the time."""
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    left = [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not left, [words(process)[:200] for process in left]


def published(store: Path, pattern: str = "stages/*/parts/*") -> dict[str, tuple[int, int, bytes]]:
    """Return name -> (inode, mtime, bytes) of every object that matches."""
    return {
        str(path.relative_to(store)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in store.glob(pattern)
        if path.is_file()
    }


def sealed(store: Path) -> dict[str, bytes]:
    """Return name -> bytes of every part and every seal."""
    found = {**published(store), **published(store, "stages/*/seal*.json")}
    return {name: data for name, (_, _, data) in found.items()}
