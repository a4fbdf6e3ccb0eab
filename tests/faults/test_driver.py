"""The driver killed in every stage, and interrupted: nothing committed is lost or repeated, nobody stays behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cluster.storage import Store
from flows.config import RunConfig, load_config
from flows.plan import make_plan
from tasks.pool import SerialPool
from tests.faults import driver_case as case
from tests.flows.serial_run import run_serially

STOPS = {
    "proxy": "stages/proxy-*/work/**/*.pt",
    "score": "stages/score-*/parts/*.parquet",
    "select": "stages/select-*/seal.json",
    "train": "stages/train-*/work/**/*.pt",
}


def config() -> RunConfig:
    return load_config(case.CONFIG, case.SETTINGS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return every sealed part and seal of the same run on the serial pool."""
    root = tmp_path_factory.mktemp("undisturbed")
    run_serially(make_plan(config()), Store(str(root)), SerialPool())
    found = {**case.published(root), **case.published(root, "stages/*/seal*.json")}
    return {name: data for name, (_, _, data) in found.items()}


@pytest.mark.timeout(420)
def test_killed_in_every_stage_ends_as_if_undisturbed(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    store = tmp_path / "store"
    kept: dict[str, tuple[int, int, bytes]] = {}
    for stage, pattern in STOPS.items():
        process = case.start(store)
        case.wait_for(process, lambda pattern=pattern: next(store.glob(pattern), None) is not None)  # type: ignore[misc]
        processes = case.family(process)
        process.kill()
        process.communicate()
        case.assert_gone(processes)
        now = case.published(store)
        # What was there at an earlier kill is the same file still, not a copy with equal bytes.
        assert {name: now[name] for name in kept} == kept, stage
        kept = now
    process = case.start(store)
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    end = case.published(store)
    assert {name: end[name] for name in kept} == kept
    seals = case.published(store, "stages/*/seal*.json")
    assert {name: data for name, (_, _, data) in {**end, **seals}.items()} == undisturbed
    assert "random" in out and "report: " in out


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_interrupted_ends_within_ten_seconds(tmp_path: Path, number: signal.Signals, group: bool) -> None:
    store = tmp_path / "store"
    process = case.start(store, "train.steps=4000")
    case.wait_for(process, lambda: next(store.glob(STOPS["train"]), None) is not None)
    processes = case.family(process)
    if group:
        # A terminal's Ctrl-C reaches every process of the foreground group.
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, error = process.communicate(timeout=12)
    assert process.returncode == 128 + number
    assert "secateur resume quickstart-" in error and "Traceback" not in error
    case.assert_gone(processes)
    attempts = list(store.glob("runs/*/attempts/*.end.json"))
    assert len(attempts) == 1 and b'"interrupted"' in attempts[0].read_bytes()

