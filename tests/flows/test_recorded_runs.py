"""What the store alone tells of a run, data and code gone, and beside what lies among the runs that is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.fingerprint import canonical_json, sha256
from cluster.storage import Store
from flows.attempts import Attempt
from flows.config import load_config
from flows.plan import make_plan
from tasks.pool import SerialPool
from tests.flows import printing_case as case
from tests.flows.serial_run import run_serially
from tests.flows.test_cli import QUICKSTART, command
from tests.flows.verify_case import OTHER, SETTINGS, cut, made, parts, plan, tree

Patch = pytest.MonkeyPatch
Caught = pytest.CaptureFixture[str]


def edit_record(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a run.json and make its digest match."""
    body = json.loads(path.read_bytes())
    del body["digest"]
    change(body)
    path.write_bytes(canonical_json({**body, "digest": sha256(canonical_json(body))}))


@pytest.mark.timeout(300)
def test_status_show_and_report_need_neither_data_nor_code(monkeypatch: Patch, capsys: Caught, tmp_path: Path) -> None:
    planned = make_plan(load_config(str(case.write_case(tmp_path))))
    store, run = tmp_path / "store", planned.run_name
    run_serially(planned, Store(str(store)), SerialPool())
    capsys.readouterr()
    reads = [["status", run], ["status", run, "--json"], ["status"], ["show", run], ["show", run, "--json"], ["report", run]]

    def read_all() -> list[tuple[int, str, str]]:
        return [command(monkeypatch, capsys, *words, "--store", str(store)) for words in reads]

    before, page = read_all(), tree(store)
    assert {code for code, _, _ in before} == {0}
    (tmp_path / "data.parquet").write_bytes(b"other data")
    (tmp_path / "code" / "printing_model.py").write_text("changed = True\n")
    assert read_all() == before
    (tmp_path / "data.parquet").unlink()
    shutil.rmtree(tmp_path / "code")
    assert read_all() == before and tree(store) == page
    code, _, error = command(monkeypatch, capsys, "resume", run, "--store", str(store))
    assert code == 2 and "code folder" in error

    record = store / "runs" / run / "run.json"

    def of_another_torch(body: dict[str, Any]) -> None:
        body["versions"]["torch"] = "0.9"
        body["keys"]["train"] = ["0" * 64]

    edit_record(record, of_another_torch)
    code, out, _ = command(monkeypatch, capsys, "status", run, "--store", str(store))
    assert code == 0 and "train     0 of 1 sealed" in out and "merge     1 of 1 sealed" in out
    code, _, error = command(monkeypatch, capsys, "report", run, "--store", str(store))
    assert code == 2 and "torch 0.9, here " in error
    edit_record(record, lambda body: body["config"].update(seed=5))
    code, _, error = command(monkeypatch, capsys, "status", run, "--store", str(store))
    assert code == 1 and f"run.json of {run}" in error and "it was changed; remove it" in error


SETS = [word for setting in SETTINGS for word in ("--set", setting)]


def test_a_folder_that_is_no_run_hides_no_run(
    monkeypatch: Patch, capsys: Caught, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    store, run = made(tmp_path), plan().run_name
    for name in (f"{run} (copy)", f"{run}.bak", "é"):
        shutil.copytree(store / "runs" / run, store / "runs" / name)
    (store / "runs" / "run.json").write_text("{}")
    strays = f"4 entries of {store}/runs are no run's, first '{run} (copy)'; they are passed over"
    for words in (["status"], ["status", "--json"], ["plan", QUICKSTART, *SETS]):
        caplog.clear()
        code, out, _ = command(monkeypatch, capsys, *words, "--store", str(store))
        assert code == 0 and out.count(run) == 1 and strays in caplog.text
    for words in (["show", run], ["status", run], ["verify", run], ["report", run]):
        assert command(monkeypatch, capsys, *words, "--store", str(store))[0] == 0
    caplog.clear()
    cut(parts(store, "score")[0])
    code, out, _ = command(monkeypatch, capsys, "verify", run, "--recompute", "--store", str(store))
    assert code == 0 and "retired" in out and strays in caplog.text
    code, _, error = command(monkeypatch, capsys, "status", f"{run} (copy)", "--store", str(store))
    assert code == 2 and "no run" in error


def test_a_run_that_cannot_be_read_hides_no_other(monkeypatch: Patch, capsys: Caught, tmp_path: Path) -> None:
    store, run, other = made(tmp_path), plan().run_name, plan(OTHER).run_name
    record = store / "runs" / other / "run.json"
    record.write_text('{"config":')
    with Attempt(Store(str(store)), other):
        # The newest of that name: its keys would be those to compare with.
        pass
    code, out, _ = command(monkeypatch, capsys, "plan", QUICKSTART, *SETS, "--store", str(store), "--json")
    document = json.loads(out)
    assert (code, document["changed"], document["unreadable"]) == (0, [], [other])
    code, out, _ = command(monkeypatch, capsys, "plan", QUICKSTART, *SETS, "--store", str(store))
    assert code == 0 and f"run {other} is passed over: its run.json cannot be read" in out
    assert command(monkeypatch, capsys, "status", "--store", str(store))[0] == 0
    cut(parts(store, "score")[0])
    before = tree(store)
    code, out, error = command(monkeypatch, capsys, "verify", run, "--recompute", "--store", str(store))
    assert code == 1 and out == "" and error.count("\n") == 1 and tree(store) == before
    assert f"{record} cannot be read" in error and "remove it, and `secateur run CONFIG`" in error
