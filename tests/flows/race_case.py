"""A race on a few hundred rows, with no orchestrator: train labels of which 40 % are wrong, and a score that knows which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.record import Seal
from cluster.storage import Store
from flows.config import RunConfig, parse_config
from flows.pipeline import (
    check_columns,
    check_fit,
    distinct,
    merge_inputs,
    proxy_inputs,
    score_inputs,
    select_inputs,
    train_inputs,
)
from flows.plan import Plan
from flows.race import race_to_the_end
from flows.runs import make_report, record_run, subset_units
from tasks.merge import merge_stage
from tasks.pool import SerialPool
from tasks.proxy import proxy_stage
from tasks.schemas import TRAIN
from tasks.score import score_stage
from tasks.selecting import selection_stage
from tasks.shard import shard_stage
from tasks.sources.registry import test_share
from tasks.splitting import Splitter
from tasks.subset import SubsetInputs, subset_stage
from tasks.train import train_stage

ROWS = 600
POLICY: dict[str, Any] = {
    "family": [{"protocol": "exact", "alpha": 0.5}, {"protocol": "topk", "end": "easy"}, {"protocol": "topk"}],
    "scores": "clean", "direction": "high", "rungs": [1, 2], "stay": 0.5, "confirm": 10,
}  # fmt: skip


class Stop(BaseException):
    """End a process where it is, as a kill does."""


def make_config(folder: Path, **changes: Any) -> RunConfig:
    """Write the data and the scores of its train rows, and return the configuration of a race over them."""
    body: dict[str, Any] = {
        "name": "tiny",
        "data": {
            "source": {"use": "parquet", "args": {"id_column": "key"}}, "train": str(folder / "train.parquet"),
            "test_fraction": 0.3, "validation": 0.4, "shard_rows": 200,
        },
        "scores": str(folder / "scores.parquet"),
        "policy": POLICY,
        "select": {"keep": [0.1, 0.2]},
        "train": {
            "model": {"use": "mlp", "args": {"hidden": [4]}}, "steps": 15, "batch_size": 16, "lr": 0.03, "full": False,
        },
    }  # fmt: skip
    body = {name: value for name, value in {**body, **changes}.items() if value is not None}
    config = parse_config(body)
    rng, keys = np.random.default_rng(0), np.arange(ROWS)
    train = Splitter.of(config.data, test_share(config.data)).splits(keys, "train") == TRAIN
    truth, wrong = keys % 2, train & (rng.random(ROWS) < 0.4)
    x = (rng.normal(size=(ROWS, 5)) + 1.5 * truth[:, None]).astype(np.float32)
    features = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 5)
    table = pa.table({"key": keys, "features": features, "label": np.where(wrong, 1 - truth, truth)})
    pq.write_table(table, folder / "train.parquet", row_group_size=200)
    clean = np.where(wrong, 0.0, 1.0) + rng.random(ROWS) / 10
    pq.write_table(pa.table({"example_id": keys[train], "clean": clean[train]}), folder / "scores.parquet")
    return config


def race_serially(
    plan: Plan, store: Store, after: Callable[[str], None] = lambda name: None
) -> tuple[Plan, dict[str, Any]]:
    """Run a race to its report on the serial pool; `after` is called when a round of it is trained, with its name."""
    run, pool = plan.config, SerialPool()
    index = shard_stage(run.data, store, pool, plan.source_code, lambda meta: check_fit(run, meta))
    record_run(plan, store)
    scores = None
    proxies: list[Seal] = []
    if run.proxy is not None and run.score is not None:
        proxies = proxy_stage(run.proxy, proxy_inputs(plan, index), store, pool)
        scores = score_stage(run.score, score_inputs(plan, index, proxies), store, pool)
    table = merge_stage(merge_inputs(plan, index, scores), store, pool)
    check_columns(run, table)
    names: list[str] = []

    def train(part: Plan) -> None:
        chosen = distinct(part)
        seals = selection_stage(list(chosen.items()), select_inputs(plan, index, table, proxies), store, pool)
        selections = dict(zip(chosen, seals))
        made = subset_stage(subset_units(part, selections), SubsetInputs(run.data, index), store, pool)
        train_stage(run.train, train_inputs(part, index, selections, dict(zip(selections, made))), store, pool)
        after(names[-1])

    ended = race_to_the_end(plan, store, train, lambda name, states: names.append(name))
    return ended, make_report(ended, store, [])


def timeless(results: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a race without what says how long it took."""
    policy = {name: value for name, value in results["policy"].items() if name != "wall"}
    policy["keeps"] = [{name: value for name, value in entry.items() if name != "sentence"} for entry in policy["keeps"]]
    return policy
