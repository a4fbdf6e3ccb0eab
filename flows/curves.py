"""Time to accuracy of a run: what is charged to each of its arms, from the plan, the records of its attempts and its results."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from cluster.errors import CorruptError
from cluster.record import Unit
from cluster.storage import Store
from flows.attempts import stage_timings
from flows.plan import Plan
from tasks.curve import read_times
from tasks.report.inputs import SOFT_LABELS, ArmResult
from tasks.report.time_to_accuracy import Charge, time_record
from tasks.score import column_name
from tasks.scores.registry import score_info

SCORING = ("proxy", "score", "merge")
"""The stages between the data and a table of scores."""


def add_curves(plan: Plan, store: Store, num_train: int, arms: Sequence[ArmResult], results: dict[str, Any]) -> None:
    """Put `time_to_accuracy` into the results of a run whose trainings have curves; other runs have none."""
    points = plan.config.train.curve
    if points:
        results["time_to_accuracy"] = time_record(arms, charges(plan, store, num_train, arms, results), store, points)


def charges(
    plan: Plan, store: Store, num_train: int, arms: Sequence[ArmResult], results: dict[str, Any]
) -> dict[tuple[str, float], Charge]:
    """Return what is paid before an arm is trained, by (arm, keep); arms that need nothing are left out."""
    policy = results.get("policy")
    searched = {} if policy is None else {entry["keep"]: entry for entry in policy["keeps"]}
    scoring = scoring_seconds(plan, store)
    out = {}
    for arm in arms:
        if arm.protocol == SOFT_LABELS:
            teachers = [other for other in arms if other.is_full and other.keep == arm.keep]
            # Equal steps: the one on its own schedule teaches nobody.
            teacher = min(teachers, key=lambda other: int(other.trains[0].meta["steps"]))
            steps = int(teacher.trains[0].meta["steps"])
            out[arm.name, arm.keep] = Charge(teacher=steps, seconds=_training_seconds(teacher, store))
        elif arm.score is not None and policy is not None:
            costs = searched[arm.keep]["costs"]
            search = costs["race_steps"] + costs["confirmation_steps"]
            out[arm.name, arm.keep] = Charge(
                costs["scoring_steps"], costs["scored_examples"] or 0, 0, search, float(policy["wall"]["seconds"])
            )
        elif arm.score is not None and not _free(plan, arm.score):
            proxy = plan.config.proxy
            proxies = None if proxy is None else len(plan.proxies) * proxy.steps_for(num_train)
            out[arm.name, arm.keep] = Charge(proxies, len(plan.proxies) * num_train, seconds=scoring)
    return out


def _free(plan: Plan, column: str) -> bool:
    """Return whether a column of the score table reads no proxy."""
    scores = () if plan.config.score is None else plan.config.score.scores
    return column in {column_name(use) for use in scores if score_info(use.name).needs == "nothing"}


def scoring_seconds(plan: Plan, store: Store) -> float | None:
    """Return the wall time of the stages that made the score table, whichever run of the store made them.

    All attempts count that computed of them. None where the scores were brought, or where the records do not tell all of it.
    """
    if plan.config.proxy is None:
        return None
    timings = [timing for run in _runs_on_these_scores(plan, store) for timing in stage_timings(store, run)]
    total = 0.0
    for stage in SCORING if plan.proxies else SCORING[1:]:
        found = [one for one in timings if one.name == stage and one.computed]
        if not found or sum(one.computed for one in found) < found[-1].items:
            return None
        total += sum(one.seconds for one in found)
    return total


def _runs_on_these_scores(plan: Plan, store: Store) -> list[str]:
    from flows.runs import list_runs, read_record

    out = []
    for run in list_runs(store):
        try:
            keys = read_record(run, store)["keys"]
        except (CorruptError, FileNotFoundError):
            # Whoever reads that run is told; here it has nothing to say.
            continue
        if (keys["proxy"], keys["score"], keys["merge"]) == (list(plan.proxies), plan.score, plan.merge):
            out.append(run)
    return out


def _training_seconds(arm: ArmResult, store: Store) -> float | None:
    """Return the median seconds of an arm's trainings, None where one was not measured."""
    found = [read_times(Unit(store, "train", seal.key), seal.meta["curve"]["steps"]) for seal in arm.trains]
    ends = [one[-1] for one in found if one is not None]
    return median(ends) if len(ends) == len(found) else None
