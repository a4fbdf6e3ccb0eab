"""Random draws with class budgets as arms of a run: judged beside plain random, which stays what all are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError
from cluster.storage import Store
from flows.config import RunConfig, SelectSpec, parse_config
from flows.grid import expand
from flows.plan import make_plan
from tasks.pool import SerialPool
from tasks.report.publish import report_name
from tests.flows.serial_run import run_serially

pytestmark = pytest.mark.timeout(300)

NAME = "random classes=balanced"


def config(*arms: dict[str, Any]) -> RunConfig:
    model = {"use": "mlp", "args": {"hidden": [2]}}
    return parse_config(
        {
            "name": "by_class",
            "data": {"source": "sklearn", "train": "digits", "limit": 300},
            "proxy": {"model": model, "seeds": 1, "steps": 4, "batch_size": 32},
            "score": {"scores": ["el2n"]},
            "select": {"keep": 0.2, "arms": list(arms)},
            "train": {"model": model, "steps": 6, "batch_size": 16, "replicates": 2, "full": False},
        }
    )


def test_a_draw_with_class_budgets_is_an_arm_beside_random(tmp_path: Path) -> None:
    top = {"protocol": "topk", "score": "el2n"}
    plan, store = make_plan(config({"protocol": "random", "classes": "balanced"}, top)), Store(str(tmp_path))
    # What was there before stays: the plain arms have the keys of a run without the new one.
    before = make_plan(config(top))
    assert {place: key for place, (key, _) in plan.selections.items() if place[0] != NAME} == {
        place: key for place, (key, _) in before.selections.items()
    }
    results = run_serially(plan, store, SerialPool())
    arms = {arm["name"]: arm for arm in results["arms"]}
    assert list(arms) == ["random", NAME, "topk el2n"]
    assert [arm["protocol"] for arm in arms.values()] == ["random", "random, balanced", "topk"]
    assert [(row["arm"], row["versus"]) for row in results["comparisons"]] == [(NAME, "random"), ("topk el2n", "random")]
    # Both are one family, so both are adjusted for.
    assert {row["family"] for row in results["comparisons"]} == {2}
    for replicate in range(2):
        key, unit = plan.selections[NAME, 0.2, replicate]
        assert unit.seed == plan.selections["random", 0.2, replicate][1].seed
        seal = next(one for one in (tmp_path / "stages").glob("select-*/seal.json") if key[:12] in str(one))
        assert '"classes":"balanced"' in seal.read_text()
    counts = kept_by_class(tmp_path, plan.selections[NAME, 0.2, 0][0])
    assert counts.max() - counts.min() <= 1 and counts.sum() == arms[NAME]["n_kept"]
    table = pq.read_table(tmp_path / report_name(plan.run_name, "results.parquet")).to_pylist()
    assert {(row["arm"], row["protocol"], row["classes"]) for row in table} == {
        ("random", "random", None), (NAME, "random, balanced", "balanced"), ("topk el2n", "topk", None),
    }  # fmt: skip
    page = (tmp_path / report_name(plan.run_name, "index.html")).read_text()
    assert page.count("the baseline") == 1 and NAME in page


def test_an_arm_without_signal_is_random_and_adjusts_nothing(tmp_path: Path) -> None:
    top, none = {"protocol": "topk", "score": "el2n"}, {"protocol": "exact", "score": "el2n", "alpha": 0}
    results = run_serially(make_plan(config(none, top)), Store(str(tmp_path)), SerialPool())
    rows = {row["arm"]: row for row in results["comparisons"]}
    assert [row["family"] for row in rows.values()] == [1, 1]
    assert "it is random, and in no family" in rows["exact el2n alpha=0"]["reason"]
    assert "it is random" not in rows["topk el2n"]["reason"]


def kept_by_class(store: Path, key: str) -> np.ndarray[Any, Any]:
    """Return how many examples of each class a sealed selection keeps."""
    import json

    seal = next(one for one in store.glob("stages/select-*/seal.json") if key[:12] in str(one))
    counts = json.loads(seal.read_text())["meta"]["class_counts"]
    return np.add(counts["signal"], counts["exploration"])


def test_plain_random_is_no_arm_and_a_grid_may_hold_the_other() -> None:
    with pytest.raises(InputError, match="what the others are compared with"):
        SelectSpec(keep=(0.1,), arms=({"protocol": "random"},))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the name 'random' twice"):
        SelectSpec(keep=(0.1,), arms=({"name": "random", "protocol": "random", "classes": "balanced"},))  # type: ignore[arg-type]
    grid = expand({"protocol": ["random", "topk"], "score": "el2n", "classes": ["balanced", "proportional"]}, [0.1])
    assert [arm["protocol"] for arm in grid.arms] == ["random", "random", "topk", "topk"]
