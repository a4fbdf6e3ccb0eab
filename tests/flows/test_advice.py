"""A failure names the next command: what is damaged is mended, a disk that is full is gone on with."""

from __future__ import annotations

import contextlib
import errno
import json
from pathlib import Path

import pytest

from cluster.errors import StageError
from cluster.storage import Store
from flows.execute import run_flow_here
from flows.runs import record_run
from tests.flows.test_cli import command
from tests.flows.verify_case import OTHER, config, edit_seal, made, plan, seals, tree

pytestmark = [pytest.mark.xdist_group("verify"), pytest.mark.timeout(300)]


def damaged(folder: Path) -> tuple[Path, str]:
    """Return a store whose first run lost its report and has a damaged seal, and how the run is mended."""
    store = made(folder)
    for path in (store / "runs" / plan().run_name / "report").iterdir():
        path.unlink()
    edit_seal(seals(store, "score")[0], lambda body: body["meta"].update(num_rows=1))
    return store, f"mend it with: secateur verify {plan().run_name} --store {store} --heal"


@pytest.mark.parametrize("name", ["run", "resume", "report", "plan"])
def test_a_damaged_seal_names_the_command_that_mends_it(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store, way = damaged(tmp_path)
    given = tmp_path / "config.yaml"
    given.write_text(json.dumps(config().model_dump(mode="json")))
    before = tree(store)
    what = str(given) if name in ("run", "plan") else plan().run_name
    code, out, error = command(monkeypatch, capsys, name, what, "--store", str(store))
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert "does not match its own digest" in error and way in error
    assert tree(store) == before


def test_a_run_that_is_not_recorded_has_another_runs_seal_mended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store, _ = damaged(tmp_path)
    given = tmp_path / "config.yaml"
    given.write_text(json.dumps(config("select.keep=0.7").model_dump(mode="json")))
    code, _, error = command(monkeypatch, capsys, "run", str(given), "--store", str(store))
    assert code == 1 and f"secateur verify RUN --store {store} --heal, of the run that made it" in error


def test_status_shows_the_other_stages_of_a_run_with_a_damaged_seal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store, way = damaged(tmp_path)
    run = plan().run_name
    code, out, error = command(monkeypatch, capsys, "status", run, "--store", str(store))
    assert "  shard     1 of 1 sealed\n" in out and "  score     0 of 1 sealed, 1 damaged\n    seal " in out
    assert code == 1 and error.count("\n") == 1 and way in error
    code, out, _ = command(monkeypatch, capsys, "status", run, "--store", str(store), "--json")
    stages = {stage["stage"]: stage for stage in json.loads(out)["stages"]}
    assert code == 1 and [name for name, stage in stages.items() if stage["damaged"]] == ["score"]
    other = plan(OTHER).run_name
    assert "damaged" in command(monkeypatch, capsys, "status", other, "--store", str(store))[1]


def test_a_disk_that_is_full_in_mid_run_names_the_command_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "store"))

    def full(*_: object) -> None:
        record_run(plan(), store)
        raise OSError(errno.ENOSPC, "No space left on device: free some space there", store.uri)

    monkeypatch.setattr("flows.server.prefect_api", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr("flows.stage_task.run_flow", full)
    with pytest.raises(StageError) as refused:
        run_flow_here(config(), plan(), store, "local")
    assert str(refused.value).endswith(f"; go on with: secateur resume {plan().run_name} --store {store.uri}")
    assert "free some space there" in str(refused.value) and "same command" not in str(refused.value)
