"""The driver killed in every stage, and interrupted: nothing committed is lost or repeated, nobody stays behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cluster.storage import Store
from flows.config import RunConfig, load_config
from flows.plan import make_plan
from flows.prefect_settings import client_environment
from flows.server import OwnServer
from tasks.pool import SerialPool
from tests.faults import driver_case as case
from tests.flows.serial_run import run_serially

# Crash points: the driver is killed when the first object that matches is there.
STOPS = {
    "shard": "stages/shard-*/parts/*.parquet",
    "proxy": "stages/proxy-*/work/**/*.pt",
    "score": "stages/score-*/parts/*.parquet",
    "merge": "stages/merge-*/parts/*.parquet",
    "select": "stages/select-*/seal.json",
    "subset": "stages/subset-*/parts/*.parquet",
    "shift": "stages/shift-*/seal.json",
    "train": "stages/train-*/work/**/*.pt",
    "report": "runs/*/report/*",
}
SETTINGS = (*case.SMALL, *case.ONE_WORKER)


def config() -> RunConfig:
    return load_config(case.CONFIG, SETTINGS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return every sealed part and seal of the same run on the serial pool."""
    root = tmp_path_factory.mktemp("undisturbed")
    run_serially(make_plan(config()), Store(str(root)), SerialPool())
    return case.sealed(root)


@pytest.mark.timeout(900)
def test_killed_in_every_stage_ends_as_if_undisturbed(
    tmp_path: Path, undisturbed: dict[str, bytes], server: OwnServer
) -> None:
    store = tmp_path / "store"
    kept: dict[str, tuple[int, int, bytes]] = {}
    # The first two have a Prefect server of their own; each such costs 5 s of processor time.
    shared = client_environment(tmp_path / "client", server.url, own=True, auth=server.auth)
    for stage, pattern in STOPS.items():
        process = case.start(store, settings=SETTINGS, variables=None if stage in ("shard", "proxy") else shared)
        case.wait_for(process, lambda pattern=pattern: case.exists(store, pattern))  # type: ignore[misc]
        processes = case.family(process)
        process.kill()
        _, error = process.communicate()
        case.assert_gone(processes)
        assert "Traceback" not in error and "go on with: secateur resume quickstart-" in error, (stage, error)
        now = case.published(store)
        # What was there at an earlier kill is the same file still, not a copy with equal bytes.
        assert {name: now[name] for name in kept} == kept, stage
        kept = now
    process = case.start(store, settings=SETTINGS, variables=shared)
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    end = case.published(store)
    assert {name: end[name] for name in kept} == kept
    assert case.sealed(store) == undisturbed
    assert "random" in out and "report: " in out
    # Each run took away what the killed one before it left in the temporary folder.
    assert not list(case.scratch(store).glob("secateur-*"))


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("number", "group"), [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)]
)
def test_interrupted_ends_within_ten_seconds(tmp_path: Path, number: signal.Signals, group: bool) -> None:
    store = tmp_path / "store"
    process = case.start(store, settings=case.LONG)
    case.wait_for(process, lambda: case.exists(store, STOPS["proxy"]))
    processes = case.family(process)
    if group:
        # A terminal's Ctrl-C reaches every process of the foreground group.
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    # Its own clock ends it after 9 s; on a machine with six times the work it can do, the end of its output takes longer.
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "secateur resume quickstart-" in error and "Traceback" not in error
    case.assert_gone(processes)
    attempts = list(store.glob("runs/*/attempts/*.end.json"))
    assert len(attempts) == 1 and b'"interrupted"' in attempts[0].read_bytes()
