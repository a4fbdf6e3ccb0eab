"""Flows that the tests deploy: a worker's process imports them by this module's name."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from prefect import flow

from flows.stage_task import stage_task


def _write(path: str, text: str) -> str:
    Path(path).write_text(text)
    return text


@flow(name="secateur-test")
def echo(config: dict[str, Any], store: str, ray: str = "local") -> dict[str, Any]:
    """Write the parameters to the file that the configuration names, through a stage task."""
    stage_task(_write, name="write")(config["out"], f"{store} {ray} {config['text']}")
    return {"out": config["out"]}


@flow(name="secateur-test-wait")
def wait(config: dict[str, Any], store: str, ray: str = "local") -> None:
    """Write this process's id, and wait for a signal."""
    try:
        # Whole or not at all: the test reads it as soon as it is there.
        _write(config["out"] + ".new", str(os.getpid()))
        Path(config["out"] + ".new").replace(config["out"])
        signal.pause()
    finally:
        _write(config["out"] + ".cleaned", "yes")
