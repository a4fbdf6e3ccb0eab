"""The runners that fork, each in a process of its own: the tests' own process has Ray's threads, which no fork survives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Thousands of fsyncs, of which a disk makes milliseconds each: the stores lie in memory where 32 MB of it are free; they take 2.
MEMORY, ROOM = Path("/dev/shm"), 2**25


def run_points(places: tuple[str, ...]) -> dict[str, Any]:
    """Return what `crash_runner` found at these places."""
    found = _run("crash_runner", *places)
    assert set(found) == set(places)
    return found


def run_races(rounds: int) -> dict[str, Any]:
    """Return what `race_runner` found."""
    return _run("race_runner", str(rounds))


def _run(module: str, *arguments: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RAY_"))}
    in_memory = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM
    with tempfile.TemporaryDirectory(prefix="secateur-faults-", dir=MEMORY if in_memory else None) as folder:
        done = subprocess.run(
            [sys.executable, "-m", f"tests.faults.{module}", folder, *arguments],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
