"""Error budgets of stages that are finished: they are no part of any key, so whoever asks is measured anew."""

from __future__ import annotations

from cluster.storage import Store
from flows.plan import Plan
from tasks import score, shard


def check_budgets(plan: Plan, store: Store) -> None:
    """Raise InputError or StageError where a sealed stage left out more than this configuration allows."""
    units = dict(plan.units(store))
    index = units["shard"].seal()
    if index is None:
        return
    shard.check_budget(plan.config.data, index, store)
    scores = units["score"].seal() if "score" in units else None
    if scores is not None and plan.config.score is not None:
        score.check_budget(plan.config.score, int(index.meta["num_train"]), scores, store)
