"""Whole runs on data in which a row is bad and an example has no score: what each policy comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError, StageError
from cluster.record import Unit
from cluster.storage import Store
from flows.budgets import check_budgets
from flows.config import RunConfig, parse_config
from flows.plan import make_plan
from tasks.pool import SerialPool
from tests.flows.serial_run import run_serially

ROWS = 90


def write(folder: Path, huge: int) -> None:
    """Write rows of which the first is bad, and row `huge` has a gradient beyond float32."""
    rng = np.random.default_rng(0)
    label = np.arange(ROWS) % 2
    x = (rng.normal(size=(ROWS, 3)) + label[:, None]).astype(np.float32)
    x[0, 0] = np.nan
    if huge:
        # Logits stay finite, and so does training; the square of the gradient does not.
        x[huge] = 1e25
    features = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 3)
    table = pa.table({"key": np.arange(ROWS), "features": features, "label": label})
    pq.write_table(table, folder / "train.parquet", row_group_size=30)


def config(folder: Path, **select: Any) -> RunConfig:
    model = {"use": "mlp", "args": {"hidden": [2]}}
    return parse_config(
        {
            "name": "tiny",
            "data": {
                "source": {"use": "parquet", "args": {"id_column": "key"}}, "train": str(folder / "train.parquet"),
                "shard_rows": 30, "test_fraction": 0.2, "max_bad_fraction": 0.05,
            },
            "proxy": {"model": model, "seeds": 1, "epochs": 2, "batch_size": 32},
            "score": {"scores": ["grand"], "max_bad_fraction": 0.05},
            "select": {"keep": 0.5, "arms": [{"protocol": "exact", "score": "grand", "alpha": 0.5}], **select},
            "train": {"model": model, "steps": 2, "batch_size": 16, "replicates": 1, "full": False},
        }
    )  # fmt: skip


def train_row(folder: Path) -> int:
    """Return a row of the train split, which ids alone decide."""
    from tasks.sources.registry import test_share
    from tasks.splitting import Splitter

    spec = config(folder).data
    splits = Splitter.of(spec, test_share(spec)).splits(np.arange(ROWS), "train")
    return int(np.flatnonzero(splits == 0)[-1])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("policy", ["exclude", "explore", "refuse"])
def test_a_run_goes_on_without_an_example_that_has_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    row = train_row(tmp_path)
    write(tmp_path, row)
    store = Store(str(tmp_path / "store"))
    run = config(tmp_path) if policy == "exclude" else config(tmp_path, missing=policy)
    plan = make_plan(run)
    if policy == "refuse":
        with pytest.raises(StageError, match=rf"1 of \d+ train examples have no score[\s\S]*example_id {row} "):
            run_serially(plan, store, SerialPool())
        return
    results = run_serially(plan, store, SerialPool())
    assert results["dataset"]["quarantine"] == {"rows": 1, "causes": {"non_finite_feature": 1}}
    facts = {arm["name"]: arm["selection"] for arm in results["arms"]}
    random, pruned = facts.pop("random"), facts.popitem()[1]
    assert (pruned["missing"], pruned["n_missing"], pruned["missing_causes"]) == (policy, 1, {"non_finite_score": 1})
    assert pruned["n"] == random["n"] - (1 if policy == "exclude" else 0) and random["n_missing"] == 0
    assert random["n"] == results["dataset"]["n_train"]
    assert any(note.startswith("Quarantined: 1 row of the data") for note in results["notes"])
    assert any(note.startswith("Without a score: 1 ") for note in results["notes"])
    assert run_serially(plan, store, SerialPool()) == results
    tight = run.model_copy(update={"score": run.score and run.score.model_copy(update={"max_bad_fraction": 0.0})})
    assert make_plan(tight).score == plan.score
    with pytest.raises(StageError, match="allows 0"):
        run_serially(make_plan(tight), store, SerialPool())
    check_budgets(plan, store)
    with pytest.raises(StageError, match="allows 0"):
        check_budgets(make_plan(tight), store)
    strict = run.model_copy(update={"data": run.data.model_copy(update={"max_bad_fraction": 0.0})})
    with pytest.raises(InputError, match="allows 0"):
        check_budgets(make_plan(strict), store)
    assert Unit(store, "merge", plan.merge).seal() is not None


def test_a_policy_is_that_of_select_unless_an_arm_has_its_own(tmp_path: Path) -> None:
    assert [arm.missing for arm in config(tmp_path).select.arms] == ["exclude"]
    arms = [{"protocol": "topk", "score": "grand"}, {"protocol": "exact", "score": "grand", "alpha": 0.5, "missing": "refuse"}]
    both = config(tmp_path, missing="explore", arms=arms).select
    assert [arm.at(0.5).missing for arm in both.arms] == ["explore", "refuse"]
    for wrong in ({"missing": "drop"}, {"arms": [{**arms[0], "missing": "drop"}]}):
        with pytest.raises(InputError, match="missing"):
            config(tmp_path, **wrong)
