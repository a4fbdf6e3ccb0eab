"""Stages as task runs: names, retries, errors as they are, and a run that outlives Prefect's API."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import CorruptError, InputError, ItemsError, StageError, StoreError, StoreOutageError
from flows.api_link import LINK
from flows.artifacts import ProgressArtifacts, artifact_key, publish_markdown, publish_table
from flows.signals import Interrupted, interruptible
from flows.stage_task import in_flow_run, retryable, run_flow, stage_task


@pytest.fixture
def api_only(prefect_url: str) -> dict[str, str]:
    """Give the variables of someone who has a Prefect server and set nothing else."""
    return {name: os.environ[name] for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")}


class Flaky:
    """Fail `failures` times with `error`, then return an object that cannot be pickled."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures = failures
        self.error = error
        self.calls = 0
        self.result = threading.Lock()

    def __call__(self) -> Any:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return self.result


def in_flow(function: Any, name: str = "secateur-test") -> Any:
    """Run a function without arguments as the body of a flow."""
    from prefect import flow

    return run_flow(flow(name=name)(function))


def runs(flow_name: str) -> tuple[Any, list[Any]]:
    """Return the newest flow run of a flow and its task runs, once none is on its way to the server any more."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import FlowRunSort

    LINK.close()
    deadline = time.monotonic() + 20
    with get_client(sync_client=True) as client:
        named = FlowFilter(name=FlowFilterName(any_=[flow_name]))
        (flow_run, *_) = client.read_flow_runs(flow_filter=named, sort=FlowRunSort.START_TIME_DESC)
        own = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
        while True:
            tasks = client.read_task_runs(flow_run_filter=own)
            if (tasks and all(task.state and task.state.is_final() for task in tasks)) or time.monotonic() > deadline:
                return flow_run, tasks


def test_task_run_has_name_tags_and_the_callers_thread(prefect_url: str) -> None:
    threads: list[threading.Thread] = []
    # Prefect sees no argument: a huge one, or one it cannot serialize, would be its trouble.
    argument = threading.Lock()

    def stage(key: str, lock: Any, *, scale: int = 1) -> dict[str, Any]:
        threads.append(threading.current_thread())
        return {"lock": lock, "scale": scale}

    task = stage_task(
        stage, name="score", run_name=lambda key, lock, *, scale=1: f"score {{{key[:4]}}}", tags=["heavy"], retries=0
    )
    result = in_flow(lambda: task("0123456789", argument, scale=3), "named")
    assert result == {"lock": argument, "scale": 3}
    assert threads == [threading.main_thread()]
    flow_run, (task_run,) = runs("named")
    assert flow_run.state.is_completed()
    assert task_run.state.is_completed()
    assert task_run.name == "score {0123}"
    assert task_run.tags == ["heavy"]


def test_failures_are_tried_again_and_results_are_handed_over_as_they_are(prefect_url: str) -> None:
    body = Flaky(2, OSError("disk is away"))
    assert in_flow(stage_task(body.__call__, name="flaky", retry_delay_s=0.01)) is body.result
    assert body.calls == 3
    body = Flaky(9, OSError("disk is away"))
    with pytest.raises(OSError, match="disk is away") as caught:
        in_flow(stage_task(body.__call__, name="flaky", retries=1, retry_delay_s=0.01))
    assert caught.value is body.error
    assert body.calls == 2


@pytest.mark.parametrize(
    "error",
    [
        InputError("wrong label"), CorruptError("part was changed"), ItemsError("1 of 7 items failed"),
        StoreOutageError("GetObject of a/b: still failing after 30 tries in 120 s"),
    ],
)  # fmt: skip
def test_hopeless_errors_come_out_at_once_and_unwrapped(prefect_url: str, error: Exception) -> None:
    body = Flaky(9, error)
    with pytest.raises(type(error)) as caught:
        in_flow(stage_task(body.__call__, name="hopeless"), "hopeless")
    assert caught.value is error
    assert body.calls == 1
    flow_run, (task_run,) = runs("hopeless")
    assert flow_run.state.is_failed()
    assert task_run.state.is_failed()
    assert LINK.lost is None


def test_what_was_made_of_an_outage_is_not_tried_again_and_what_may_pass_is() -> None:
    try:
        try:
            raise StoreOutageError("still failing")
        except StoreOutageError as outage:
            raise OSError("no such table") from outage
    except OSError as error:
        assert not retryable(error)
    assert retryable(OSError("disk is away")) and retryable(StoreError("the object changed"))
    assert retryable(StageError("1 of 7 items failed"))


def test_own_network_errors_are_not_taken_for_a_lost_api(prefect_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    import httpx

    body = Flaky(9, httpx.ConnectError("the user's own server"))
    with pytest.raises(httpx.ConnectError) as caught:
        in_flow(stage_task(body.__call__, name="network", retries=0))
    assert caught.value is body.error
    assert LINK.lost is None
    assert capsys.readouterr().err == ""


# pytest-timeout's own alarm would keep Prefect from using one.
@pytest.mark.timeout(200, method="thread")
def test_time_out(prefect_url: str) -> None:
    calls: list[int] = []

    def hang() -> None:
        calls.append(1)
        threading.Event().wait(30)

    task = stage_task(hang, name="hang", timeout_s=0.2, retries=1, retry_delay_s=0.01)
    for run in (lambda: in_flow(task), task):
        calls.clear()
        with pytest.raises(StageError, match=r"hang ran longer than its timeout of 0\.2 s"):
            run()
        assert len(calls) == 2


def test_without_a_flow_run_the_function_is_called_plainly() -> None:
    assert not in_flow_run()
    body = Flaky(2, OSError("away"))
    assert stage_task(body.__call__, name="plain", retry_delay_s=0.01)() is body.result
    assert body.calls == 3
    body = Flaky(9, InputError("wrong"))
    with pytest.raises(InputError):
        stage_task(body.__call__, name="plain", retry_delay_s=0.01)()
    assert body.calls == 1
    body = Flaky(9, OSError("away"))
    with pytest.raises(OSError, match="away"):
        stage_task(body.__call__, name="plain", retries=1, retry_delay_s=0.01)()
    assert body.calls == 2


def test_an_interrupt_that_compiled_code_made_a_failure_of_is_not_tried_again(prefect_url: str) -> None:
    calls: list[int] = []

    def stage() -> None:
        calls.append(1)
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as stop:
            # What Ray's own code may do.
            raise SystemError("returned a result with an exception set") from stop

    with interruptible(), pytest.raises(Interrupted):
        in_flow(stage_task(stage, name="swallowed", retry_delay_s=0.01))
    assert len(calls) == 1


def test_wrong_parameters_of_a_flow_are_not_a_lost_api(prefect_url: str) -> None:
    from prefect import flow
    from prefect.exceptions import ParameterTypeError

    @flow(name="typed")
    def typed(number: int) -> int:
        return number

    assert run_flow(typed, 3) == 3
    with pytest.raises(ParameterTypeError):
        run_flow(typed, "three")  # type: ignore[arg-type]
    assert LINK.lost is None


def test_a_stage_goes_on_where_prefect_itself_fails(prefect_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    from prefect.concurrency._asyncio import ConcurrencySlotAcquisitionError

    def body() -> int:
        # What the engine raises around a stage, before it calls it, where the API answers its first question with 503.
        run = stage_task(lambda: 7, name="score")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("prefect.task_engine._concurrency", _refuse)
            return run()

    def _refuse(*_: Any, **__: Any) -> Any:
        raise ConcurrencySlotAcquisitionError("Unable to acquire concurrency slots on ['tag:score']: 503")

    assert in_flow(body) == 7
    assert LINK.lost is not None and "503" in LINK.lost


def test_artifacts(prefect_url: str) -> None:
    from prefect.artifacts import Artifact

    progress = ProgressArtifacts()
    calls = []

    def stage() -> None:
        for total in (20, 5000):
            for done in range(1, total + 1):
                progress("Score it", done, total)
            calls.append(progress.calls)
        assert publish_table("results", [{"arm": "el2n", "accuracy": 91.5}], "Accuracy")
        assert publish_markdown("verdict", "**better**", "Verdict")

    in_flow(stage_task(stage, name="score"))
    # One when it begins and one a tenth, however many items there are.
    assert calls == [11, 22]
    made = Artifact.get("score-it")
    assert made is not None
    assert made.data == 100.0
    assert made.description == "Score it: 5000 of 5000"
    assert made.task_run_id is not None
    table = Artifact.get("results")
    assert table is not None
    assert "91.5" in str(table.data)
    assert not publish_table("results", [], "outside a flow run")
    assert artifact_key("Score: el2n@0.1 ") == "score-el2n-0-1"


RUN = """
    import json, os, signal, sys
    from pathlib import Path
    import httpx
    from cluster.errors import InputError
    from flows import server
    from flows.api_link import LINK
    from flows.artifacts import ProgressArtifacts, publish_table
    from flows.server import prefect_api
    from flows.signals import Interrupted, interruptible
    from flows.stage_task import run_flow, stage_task

    mode, scratch = sys.argv[1], Path(sys.argv[2])
    servers, stages, sent = [], [], []
    for client in (httpx.AsyncClient, httpx.Client):
        def counted(self, request, *arguments, send=client.send, **options):
            sent.append((request, LINK.lost is not None))
            return send(self, request, *arguments, **options)
        client.send = counted
    start = server.OwnServer.start
    server.OwnServer.start = lambda self: (servers.append(self), start(self))[1]
    progress = ProgressArtifacts()

    def stage(number):
        stages.append(number)
        progress(f"stage {number}", 0, 2)
        if number == 1 and mode in ("kill", "kill-fail"):
            servers[0].process.kill()
            servers[0].process.wait()
        if number == 1 and mode == "signal":
            # What ray.init does to a driver.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(99))
        progress(f"stage {number}", 2, 2)
        if number == 2 and mode == "kill-fail":
            raise InputError("the third stage says no")
        return number

    def waiting():
        try:
            print("ready", flush=True)
            signal.pause()
        finally:
            print("cleaned", flush=True)

    def main():
        with interruptible(), prefect_api(scratch):
            from prefect import flow

            @flow(name="secateur-" + mode)
            def prune(config: dict, store: str, ray: str = "local") -> dict:
                done = [stage_task(stage, name=f"stage{n}", retry_delay_s=0.1)(n) for n in range(3)]
                if mode == "signal":
                    stage_task(waiting, name="waiting")()
                publish_table("results", [{"done": len(done)}], "Results")
                return {"done": done}

            try:
                result = run_flow(prune, {"a": 1}, "store")
                print(json.dumps({"result": result, "stages": stages}), flush=True)
            finally:
                most = max(sum(other is one for other, _ in sent) for one, _ in sent)
                print(f"sent {most} times at most, {sum(late for _, late in sent)} after the loss", flush=True)

    try:
        main()
        code = 0
    except InputError as error:
        print("input error:", error, stages, flush=True)
        code = 2
    except Interrupted as stop:
        code = stop.exit_code
    sys.exit(code)
"""


@pytest.mark.parametrize(("mode", "code"), [("kill", 0), ("kill-fail", 2)])
def test_api_killed_in_mid_run(start_script: Any, tmp_path: Path, mode: str, code: int) -> None:
    process = start_script(RUN, mode, str(tmp_path))
    out, err = process.communicate(timeout=200)
    assert process.returncode == code, err
    lines = out.splitlines()
    if mode == "kill":
        assert lines[0] == '{"result": {"done": [0, 1, 2]}, "stages": [0, 1, 2]}'
    else:
        assert lines[-1] == "input error: the third stage says no [0, 1, 2]"
    # Left to itself Prefect sends a request six times, over 62 s, at each call to an API that is gone.
    said = next(line for line in lines if line.startswith("sent"))
    assert said in {f"sent {times} times at most, 0 after the loss" for times in (1, 2)}
    warnings = err.splitlines()
    assert len(warnings) == 1, err
    assert "is lost" in warnings[0]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_during_a_flow_run(
    start_script: Any, tmp_path: Path, api_only: dict[str, str], signum: int, code: int
) -> None:
    process = start_script(RUN, "signal", str(tmp_path), env=api_only)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready")
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out.splitlines()[0] == "cleaned"
    assert err == ""
    flow_run, _ = runs("secateur-signal")
    assert flow_run.state.is_crashed()


def test_healthy_run_says_nothing_on_the_terminal(start_script: Any, tmp_path: Path, api_only: dict[str, str]) -> None:
    process = start_script(RUN, "ok", str(tmp_path), env=api_only)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0
    assert err == ""
    assert out.splitlines()[0] == '{"result": {"done": [0, 1, 2]}, "stages": [0, 1, 2]}'
    assert "Completed" in (tmp_path / "prefect.log").read_text()
