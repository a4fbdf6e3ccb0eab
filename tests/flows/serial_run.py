"""A whole run on a pool of choice, with no orchestrator: what the flow must come to."""

from __future__ import annotations

from typing import Any

from cluster.record import Seal
from cluster.storage import Store
from flows.measured import shift_inputs, shift_units
from flows.pipeline import check_fit, distinct, merge_inputs, proxy_inputs, score_inputs, select_inputs, train_inputs
from flows.plan import Plan
from flows.runs import make_report, record_run, subset_units
from tasks.merge import merge_stage
from tasks.pool import Pool
from tasks.proxy import proxy_stage
from tasks.score import score_stage
from tasks.selecting import selection_stage
from tasks.shard import shard_stage
from tasks.shift.units import shift_stage
from tasks.subset import SubsetInputs, subset_stage
from tasks.train import train_stage


def run_serially(plan: Plan, store: Store, pool: Pool) -> dict[str, Any]:
    """Run every stage, check that each has the key that was planned, and return the results."""
    run = plan.config
    index = shard_stage(run.data, store, pool, plan.source_code, lambda meta: check_fit(run, meta))
    record_run(plan, store)
    assert index.key == plan.shard
    proxies: list[Seal] = []
    if run.proxy is not None and plan.proxies:
        proxies = proxy_stage(run.proxy, proxy_inputs(plan, index), store, pool)
    assert tuple(seal.key for seal in proxies) == plan.proxies
    scores = None
    if run.score is not None:
        scores = score_stage(run.score, score_inputs(plan, index, proxies), store, pool)
        assert scores.key == plan.score
    table = merge_stage(merge_inputs(plan, index, scores), store, pool)
    assert table.key == plan.merge
    chosen = distinct(plan)
    seals = selection_stage(list(chosen.items()), select_inputs(plan, index, table, proxies), store, pool)
    selections = dict(zip(chosen, seals))
    made = subset_stage(subset_units(plan, selections), SubsetInputs(run.data, index), store, pool)
    subsets = dict(zip(selections, made))
    if run.shift is not None and plan.shifts:
        inputs = shift_inputs(plan, index, table, proxies)
        shift_stage(run.shift, shift_units(plan, selections, subsets), inputs, store, pool)
    train_stage(run.train, train_inputs(plan, index, selections, subsets), store, pool)
    return make_report(plan, store, [])
