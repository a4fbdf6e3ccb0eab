"""The runners that fork, each in a process of its own: the tests' own process has Ray's threads, which no fork survives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_points(folder: Path, places: tuple[str, ...]) -> dict[str, Any]:
    """Return what `crash_runner` found at these places."""
    found = _run("crash_runner", folder, *places)
    assert set(found) == set(places)
    return found


def run_races(folder: Path, rounds: int) -> dict[str, Any]:
    """Return what `race_runner` found."""
    return _run("race_runner", folder, str(rounds))


def _run(module: str, folder: Path, *arguments: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RAY_"))}
    done = subprocess.run(
        [sys.executable, "-m", f"tests.faults.{module}", str(folder), *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
