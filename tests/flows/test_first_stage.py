"""A driver killed in its first stage: the run is known, reads lost, and goes on to one document on standard output."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import StageError
from cluster.storage import Store
from flows.attempts import attempt_states
from flows.healing import refuse_running
from flows.runs import list_runs
from tests.faults.driver_case import exists, wait_for
from tests.flows import printing_case as case
from tests.flows.verify_case import ROOT


def start(folder: Path, *words: str, variables: dict[str, str]) -> subprocess.Popen[str]:
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *words, "--store", str(folder / "store")],
        cwd=ROOT, env=case.environment() | variables | {"TMPDIR": str(folder / "tmp")}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@pytest.mark.timeout(600)
def test_killed_in_the_first_stage_a_run_reads_lost_and_resumes_to_one_document(
    tmp_path: Path, server_environment: dict[str, str]
) -> None:
    config = case.write_case(tmp_path, rows=300)
    root = tmp_path / "store"
    store = Store(str(root))
    process = start(tmp_path, "run", str(config), variables=server_environment)
    try:
        wait_for(process, lambda: exists(root, "stages/shard-*/parts/*"))
        process.send_signal(signal.SIGSTOP)
        (run,) = list_runs(store)
        assert [attempt.state for attempt in attempt_states(store, run)] == ["running"]
        with pytest.raises(StageError, match=f"run {run} is running"):
            refuse_running(store, [run], "healing")
    finally:
        process.kill()
        process.communicate()
    (attempt,) = attempt_states(store, run)
    assert attempt.state == "lost"
    first = min(path.stat().st_mtime_ns for path in root.glob("stages/shard-*/**/*") if path.is_file())
    told = [root / f"runs/{run}/run.json", root / f"runs/{run}/attempts/{attempt.name}.json"]
    assert all(path.stat().st_mtime_ns <= first for path in told)

    resumed = start(tmp_path, "resume", run, "--json", variables=server_environment)
    out, error = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, error
    assert json.loads(out)["run"] == run
    case.assert_told_on_standard_error(error)
    assert [attempt.state for attempt in attempt_states(store, run)] == ["lost", "done"]

    # Over a sealed index too, a model that does not fit is wrong input, and records nothing.
    wrong = start(tmp_path, "run", str(config), "--set", "train.model=cnn", variables=server_environment)
    out, error = wrong.communicate(timeout=200)
    assert wrong.returncode == 2 and out == "" and "needs images" in error.splitlines()[-1], error
    assert list_runs(store) == [run]
