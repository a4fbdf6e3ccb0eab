"""Arms whose subset changes, in whole runs: what the results, the table and the report say of them, and sweeps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.storage import Store
from flows.config import RunConfig, parse_config
from flows.plan import find_states, make_plan
from flows.sweep import grid_of
from tasks.pool import SerialPool
from tests.flows import test_missing_scores as missing
from tests.flows.serial_run import run_serially
from tests.flows.test_cli import command

pytestmark = pytest.mark.timeout(300)

EPOCHS, BATCH, KEEP, SHARE = 3, 16, 0.2, "rotate el2n alpha=0.5"
ARMS = [{"protocol": "rs2"}, {"protocol": "rotate", "score": "el2n", "alpha": 0.5},
        {"protocol": "exact", "score": "el2n", "alpha": 0.5}]  # fmt: skip


def config(**changes: Any) -> RunConfig:
    model = {"use": "mlp", "args": {"hidden": [2]}}
    return parse_config(
        {
            "name": "rotating",
            "data": {"source": "sklearn", "train": "digits", "limit": 300},
            "proxy": {"model": model, "seeds": 1, "steps": 4, "batch_size": 32},
            "score": {"scores": ["el2n"]},
            "select": {"keep": KEEP, "arms": ARMS},
            "train": {"model": model, "epochs": EPOCHS, "batch_size": BATCH, "replicates": 2, "full": False},
            **changes,
        }
    )


def test_results_table_and_report_count_what_was_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, store = make_plan(config()), Store(str(tmp_path))
    results = run_serially(plan, store, SerialPool())
    arms = {arm["name"]: arm for arm in results["arms"]}
    n = results["dataset"]["n_train"]
    m = round(KEEP * n)
    assert {arm["n_kept"] for arm in arms.values()} == {m}
    assert {arm["steps"] for arm in arms.values()} == {EPOCHS * math.ceil(m / BATCH)}
    assert {arm["epochs"] for arm in arms.values()} == {EPOCHS}
    assert {name for name, arm in arms.items() if arm["fresh_every_epoch"]} == {"rs2", SHARE}
    assert arms["random"]["examples_touched"] == arms["exact el2n alpha=0.5"]["examples_touched"] == m
    assert m < arms[SHARE]["examples_touched"] < arms["rs2"]["examples_touched"] < EPOCHS * m
    report = f"runs/{plan.run_name}/report"
    rows = pq.read_table(pa.BufferReader(store.read(f"{report}/results.parquet"))).to_pylist()
    touched = [row["examples_touched"] for row in rows if row["arm"] == "rs2"]
    assert sum(touched) / 2 == pytest.approx(arms["rs2"]["examples_touched"], abs=0.5)
    page = store.read(f"{report}/index.html").decode()
    assert page.count(f"<td>{m} an epoch</td>") == 2 and f"<td>{arms['rs2']['examples_touched']}</td>" in page
    assert any(note.startswith(f"{SHARE} and rs2 draw") or note.startswith(f"rs2 and {SHARE} draw") for note in results["notes"])
    assert not any("no arm that draws a fresh" in note for note in results["notes"])
    assert all(state.left == 0 for state in find_states(plan, store))
    assert run_serially(plan, store, SerialPool()) == results
    code, out, _ = command(monkeypatch, capsys, "show", plan.run_name, "--store", store.uri)
    assert code == 0 and f"{m} an epoch" in out


def test_a_sweep_takes_them() -> None:
    select = {"keep": [0.1, 0.2]}
    sweep = {"score": "el2n", "protocol": ["rs2", "rotate", "exact"], "alpha": [0.2, 0.5]}
    grid = grid_of(config(select=select, sweep=sweep))
    assert [arm.get("alpha") for arm in grid.arms] == [None, 0.2, 0.5, 0.2, 0.5]
    assert grid.collapsed == {"rs2 takes no score and alpha": 1}


def test_what_has_no_score_is_never_drawn_where_it_is_excluded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    missing.write(tmp_path, missing.train_row(tmp_path))
    arms = [{"protocol": "rotate", "score": "grand", "alpha": 0.5}]
    for policy, lost in (("exclude", 1), ("explore", 0)):
        run = missing.config(tmp_path, arms=arms, missing=policy, keep=0.9)
        # Enough epochs that whatever may be drawn is.
        longer = run.train.model_copy(update={"steps": None, "epochs": 12})
        run = run.model_copy(update={"train": longer, "shift": None})
        results = run_serially(make_plan(run), Store(str(tmp_path / "store")), SerialPool())
        found = next(arm for arm in results["arms"] if arm["protocol"] == "rotate")
        assert found["examples_touched"] == results["dataset"]["n_train"] - lost
        assert found["selection"]["n_missing"] == 1


def test_a_file_cannot_hold_what_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"id": list(range(50)), "s": [float(row) for row in range(50)]}), tmp_path / "scores.parquet")
    out = tmp_path / "out.parquet"
    words = ("select", str(tmp_path / "scores.parquet"), "--score", "s", "--direction", "high", "--keep", "0.2")
    code, _, error = command(
        monkeypatch, capsys, *words, "--protocol", "rotate", "--alpha", "0.2", "--out", str(out)
    )
    assert code == 2 and "anew in every epoch of a training" in error and not out.exists()
