"""Deployments: made once, brought up to date, run by a worker, one at a time."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import InputError
from flows.deployment import FLOW, POOL, deploy, load_flow, serve

ROOT = Path(__file__).parents[2]


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process and those of the worker import the test's flows."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "flows"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests' / 'flows'}")


def test_a_server_that_lasts_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(tmp_path / "none"))
    for act in (lambda: deploy({}, name="x", store="s"), serve):
        with pytest.raises(InputError, match=r"prefect server start.*PREFECT_API_URL"):
            act()


@pytest.mark.parametrize("cron", ["every night", "61 * * * *", "* *", ""])
def test_bad_cron_is_refused(prefect_url: str, importable: None, cron: str) -> None:
    with pytest.raises(InputError, match=r"is not a schedule.*five fields"):
        deploy({}, name="bad", store="s", cron=cron, entrypoint="deployed.echo")


@pytest.mark.parametrize("entrypoint", ["deployed.nothing", "no_such_module.flow", "deployed._write", "flow"])
def test_bad_entrypoint_is_refused(prefect_url: str, importable: None, entrypoint: str) -> None:
    with pytest.raises(InputError, match="flow"):
        load_flow(entrypoint)


def test_deploying_again_brings_it_up_to_date(prefect_url: str, importable: None, tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client

    store = str(tmp_path / "store")
    first = deploy({"a": 1}, name="nightly", store=store, cron="0 3 * * *", pool="updated", entrypoint="deployed.echo")
    again = deploy({"a": 2}, name="nightly", store=store, cron="30 4 * * 1", pool="updated", entrypoint="deployed.echo",
                   parameters={"ray": "auto"})
    assert first.id == again.id
    assert again.name == "secateur-test/nightly"
    with get_client(sync_client=True) as client:
        made = client.read_deployment(again.id)
        pool = client.read_work_pool("updated")
    assert pool.type == "process"
    assert made.entrypoint == "deployed.echo"
    assert made.parameters == {"config": {"a": 2}, "store": store, "ray": "auto"}
    assert [schedule.schedule.cron for schedule in made.schedules] == ["30 4 * * 1"]
    assert made.global_concurrency_limit is not None
    assert made.global_concurrency_limit.limit == 1
    assert made.concurrency_options is not None
    assert made.concurrency_options.collision_strategy == "CANCEL_NEW"


def test_worker_runs_one_and_cancels_the_other(prefect_url: str, importable: None, tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client

    out = tmp_path / "out.txt"
    store = str(tmp_path / "store")
    deployed = deploy(
        {"out": str(out), "text": "hello"}, name="now", store=store, pool="once", entrypoint="deployed.echo"
    )
    with get_client(sync_client=True) as client:
        asked = [client.create_flow_run_from_deployment(deployed.id) for _ in range(2)]
        serve("once", once=True)
        states = sorted(str(client.read_flow_run(run.id).state_type.value) for run in asked)
    assert states == ["CANCELLED", "COMPLETED"]
    assert out.read_text() == f"{store} local hello"


def test_signal_ends_the_worker_and_its_runs(
    prefect_url: str,
    importable: None,
    server_environment: dict[str, str],
    start_script: Any,
    tmp_path: Path,
) -> None:
    from prefect.client.orchestration import get_client

    out = tmp_path / "pid"
    deployed = deploy({"out": str(out)}, name="long", store="s", pool="long", entrypoint="deployed.wait")
    with get_client(sync_client=True) as client:
        client.create_flow_run_from_deployment(deployed.id)
    process = start_script(
        """
        import sys
        from flows.deployment import serve
        from flows.signals import Interrupted
        try:
            serve("long")
        except Interrupted as stop:
            sys.exit(stop.exit_code)
        """,
        env=server_environment,
    )
    deadline = time.monotonic() + 200
    while not out.exists() and time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"the worker ended: {process.communicate(timeout=0.1)}")
    pid = int(out.read_text())
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    assert process.returncode == 143
    assert not Path(f"/proc/{pid}").exists()
    assert Path(f"{out}.cleaned").exists()


def test_prefect_yaml_says_what_deploy_does() -> None:
    body = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    (deployment,) = body["deployments"]
    assert deployment["entrypoint"] == FLOW == "flows.deployed.prune"
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    assert deployment["work_pool"]["name"] == POOL
    assert set(deployment["parameters"]) == {"config", "store", "ray"}
