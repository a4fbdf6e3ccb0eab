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
from tests.flows.verify_case import ROOT, flip


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
