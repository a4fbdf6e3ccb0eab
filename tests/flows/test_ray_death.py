"""A daemon of Ray that dies under a run: the run ends, says which, and how to go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import driver_case as case

IN_PROXY = "stages/proxy-*/work/**/*.pt"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("daemon", ["raylet", "gcs_server"])
def test_a_daemon_of_ray_that_dies_is_named_with_the_way_to_go_on(tmp_path: Path, daemon: str) -> None:
    store = tmp_path / "store"
    # Ray itself would wait a minute for its head to come back before it ends the driver.
    waits = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
    process = case.start(store, settings=case.LONG, variables=waits)
    case.wait_for(process, lambda: case.exists(store, IN_PROXY))
    processes = case.family(process)
    next(child for child in processes if case.is_program(child, daemon)).kill()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"Ray's {daemon} died" in error, error
    assert "go on with: secateur resume quickstart-" in error
    case.assert_gone(processes)
