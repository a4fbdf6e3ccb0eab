"""Alpha auto in a configuration, in a run and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError
from cluster.storage import Store
from flows.cli import main
from flows.config import RunConfig, parse_config
from flows.plan import make_plan
from tasks.pool import SerialPool
from tests.flows.serial_run import run_serially

MODEL = {"use": "mlp", "args": {"hidden": [2]}}


def config(scores: list[str], **arm: Any) -> RunConfig:
    """Return a small run of one arm with alpha auto."""
    return parse_config(
        {
            "name": "auto",
            "data": {"source": "sklearn", "train": "digits", "limit": 200},
            "proxy": {"model": {"use": "mlp", "args": {"hidden": [32]}}, "seeds": 2, "steps": 120, "batch_size": 32, "lr": 0.01},
            "score": {"scores": scores},
            "select": {"keep": 0.5, "arms": [{"protocol": "exact", "alpha": "auto", **arm}]},
            "train": {"model": MODEL, "steps": 2, "batch_size": 16, "replicates": 2, "full": False},
        }
    )


def test_the_arm_says_auto_and_the_results_the_number(tmp_path: Path) -> None:
    plan = make_plan(config(["el2n"], score="el2n"))
    assert plan.config.select.arms[0].label == "exact el2n alpha=auto"
    store = Store(str(tmp_path))
    results = run_serially(plan, store, SerialPool())
    found = next(arm for arm in results["arms"] if arm["name"] == "exact el2n alpha=auto")
    assert 0 < found["alpha"] < 1
    table = pq.read_table(pa.BufferReader(store.read(f"runs/{plan.run_name}/report/results.parquet"))).to_pylist()
    shares = [row["alpha"] for row in table if row["arm"] == found["name"]]
    assert shares == pytest.approx([found["alpha"]] * 2, abs=1e-8)
    page = store.read(f"runs/{plan.run_name}/report/index.html").decode()
    assert "Alpha by theory" in page and "el2n_s1 → el2n_s0" in page


def test_a_table_without_a_gradient_norm_is_refused_before_anything_runs() -> None:
    with pytest.raises(InputError, match="no gradient norm"):
        config(["margin"], score="margin")


def test_select_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    norm = np.exp(1.5 * np.random.default_rng(0).standard_normal(500))
    pq.write_table(pa.table({"id": np.arange(500), "norm": norm}), tmp_path / "scores.parquet")
    words = ["select", str(tmp_path / "scores.parquet"), "--score", "norm", "--direction", "high", "--keep", "0.2", "--json",
             "--out", str(tmp_path / "out.parquet")]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["secateur", *words, "--alpha", "auto"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = json.loads(capsys.readouterr().out)
    assert not ended.value.code and 0 < said["allocation"]["alpha"] == said["alpha"] < 1
    for alpha in ("most", "1.5", "nan"):
        monkeypatch.setattr("sys.argv", ["secateur", *words, "--alpha", alpha])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2 and "or auto" in capsys.readouterr().err
