"""A scheduled run cancelled through Prefect's API: its work stops, its record says so, and so does its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest

from flows.api_link import LINK
from flows.config import load_config
from flows.deployment import deploy
from flows.prefect_settings import client_environment, environment
from flows.server import OwnServer
from tests.faults import driver_case as case


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Yield `secateur serve` as a process, with Prefect's log; this process uses the same server."""
    server = OwnServer(tmp_path)
    server.start()
    try:
        server.wait()
        with environment(client_environment(server.home, server.url, own=True, auth=server.auth)):
            LINK.reset(server.url, server.alive)
            process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "serve"],
                cwd=case.ROOT,
                stdin=subprocess.DEVNULL,
                stdout=(tmp_path / "serve.log").open("wb"),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield process, server.home / "prefect.log"
            finally:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                LINK.close()
    finally:
        server.stop()


def wait_until(happened: Callable[[], Any], seconds: float, what: Callable[[], str]) -> Any:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)
    return found


@pytest.mark.timeout(500)
def test_cancelled_through_the_api_stops_the_work_and_exits_143(
    served: tuple[subprocess.Popen[bytes], Path], tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling

    process, log = served
    store = tmp_path / "store"
    config = load_config(case.CONFIG, (*case.SETTINGS, "proxy.epochs=2000"))
    deployed = deploy(config.model_dump(mode="json"), name="nightly", store=str(store))

    def told() -> str:
        return log.read_text()[-4000:] + (tmp_path / "serve.log").read_text()[-4000:]

    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(UUID(deployed.id))
        wait_until(lambda: case.exists(store, "stages/proxy-*/work/**/*.pt"), 150, told)
        workers = [
            child for child in psutil.Process(process.pid).children(recursive=True)
            if any(word in case.words(child) for word in ("ray::", "raylet", "gcs_server", "prefect.engine"))
        ]  # fmt: skip
        assert len(workers) > 3
        client.set_flow_run_state(run.id, Cancelling(), force=True)
        # 10 s from the signal, what Prefect's runner takes to see that it was asked, and room for a busy machine.
        case.assert_gone(workers, 40)
        state = wait_until(lambda: (now := client.read_flow_run(run.id).state) and now.is_final() and now, 60, told)
    assert state.name == "Cancelled"
    assert "Process exited with status code: 143" in log.read_text(), told()
    (end,) = store.glob("runs/*/attempts/*.end.json")
    assert json.loads(end.read_bytes())["state"] == "interrupted"
    # Nothing is half-written: all that is sealed reads back, and the training left its checkpoints only.
    assert not [path for path in store.glob("tmp/*") if path.is_file()]
    assert not list(store.glob("stages/proxy-*/seal.json"))
    assert os.environ["PREFECT_API_URL"] not in end.read_text()
