"""Standard output: the command's own document and nothing else, whatever the user's code prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.storage import Store
from flows.config import load_config
from flows.plan import make_plan
from tasks.pool import SerialPool
from tests.flows import printing_case as case
from tests.flows.serial_run import run_serially
from tests.flows.verify_case import ROOT, flip, made
from tests.flows.verify_case import plan as small_plan


@pytest.mark.timeout(600)
def test_user_code_that_is_run_to_heal_prints_nothing_into_the_document(tmp_path: Path) -> None:
    plan = make_plan(load_config(str(case.write_case(tmp_path))))
    store = tmp_path / "store"
    run_serially(plan, Store(str(store)), SerialPool())
    flip(min(store.glob("stages/train-*/parts/*")))
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "verify", plan.run_name, "--heal", "--json", "--store", str(store)],
        cwd=ROOT, env=case.environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [one["healed"] for one in json.loads(done.stdout)["healed"]] == [True]
    case.assert_told_on_standard_error(done.stderr)


def shell(command: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a shell, with redirections."""
    return subprocess.run(
        ["bash", "-c", f'exec "$0" -m flows.cli "$@" {command}', sys.executable, *words],
        cwd=ROOT, env=case.environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.timeout(600)
def test_standard_output_that_takes_no_more_is_said_and_no_temporary_folder(tmp_path: Path) -> None:
    for words in (("status", "--json"), ("status",)):
        done = shell(">/dev/full", *words, "--store", str(tmp_path / "none"))
        assert done.returncode == 1
        (said,) = done.stderr.splitlines()
        assert said.startswith("secateur: standard output cannot be written (No space left on device)")


@pytest.mark.timeout(600)
def test_a_command_works_with_standard_error_closed(tmp_path: Path) -> None:
    done = shell("2>&-", "status", "--json", "--store", str(tmp_path / "none"))
    assert (done.returncode, json.loads(done.stdout)) == (0, [])
    assert shell("2>&-", "status", "no-such-run", "--store", str(tmp_path / "none")).returncode == 2


@pytest.mark.timeout(600)
def test_what_standard_error_does_not_take_is_dropped_and_changes_nothing(tmp_path: Path) -> None:
    place = ("--store", str(made(tmp_path)))
    for words, code in ((("status", "no-such-run"), 2), (("run", "no-such.yaml"), 2), (("status",), 0)):
        assert shell("2>/dev/full", *words, *place).returncode == code
    # It says that the run is finished before it prints what it came to.
    for away in ("2>/dev/full", "2> >(true)", "2>&-"):
        done = shell(away, "resume", small_plan().run_name, *place, "--json")
        assert done.returncode == 0 and json.loads(done.stdout)["run"] == small_plan().run_name


@pytest.mark.timeout(600)
def test_results_are_shown_and_work_is_done_with_standard_streams_closed(tmp_path: Path) -> None:
    place = ("--store", str(made(tmp_path)))
    for away, name in ((">&-", "show"), ("<&- >&- 2>&-", "resume")):
        done = shell(away, name, small_plan().run_name, *place)
        assert done.returncode == 0, (name, done.stderr)


@pytest.mark.timeout(600)
def test_a_line_of_progress_that_nobody_reads_is_dropped() -> None:
    # As in the process of a scheduled run, whose standard error is no stream of ours.
    code = "from flows.progress import print_line; [print_line('x' * 9000) for _ in range(3)]; print('on', flush=True); "
    code += "import os; os._exit(0)"
    for away in ("2>/dev/full", "2> >(true)"):
        done = subprocess.run(
            ["bash", "-c", f'exec "$0" -c "$1" {away}', sys.executable, code],
            cwd=ROOT, env=case.environment(), capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "on\n"), away
