"""A function of the tests in a process of its own: tracemalloc cannot be stopped safely beside the threads that Ray leaves.

CPython 3.11 crashes (SIGSEGV in traceback_new) where a native thread allocates while another thread ends the tracing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def in_own_process(function: Callable[..., Any], *words: str) -> Any:
    """Return, by way of JSON, what a function of a module below tests/ returns in a new Python process."""
    place = Path(function.__code__.co_filename).relative_to(ROOT).with_suffix("")
    done = subprocess.run(
        [sys.executable, "-m", "tests.own_process", ".".join(place.parts), function.__name__, *words],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    module, name, *rest = sys.argv[1:]
    print(json.dumps(getattr(import_module(module), name)(*rest)))
