"""Time to accuracy of a run: what is charged to each of its arms, from the plan, the records of its attempts and its results."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from cluster.record import Unit
from cluster.storage import Store
from flows.costs import arm_steps, scored_examples, scoring_seconds
from flows.plan import Plan
from tasks.curve import read_times
from tasks.report.inputs import SOFT_LABELS, ArmResult
from tasks.report.time_to_accuracy import Charge, time_record


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
            took = None if policy["wall"]["not_known"] else policy["wall"]["seconds"]
            out[arm.name, arm.keep] = Charge(costs["scoring_steps"], costs["scored_examples"] or 0, 0, search, took)
        elif (paid := arm_steps(plan, arm, num_train)) != 0:
            out[arm.name, arm.keep] = Charge(paid, scored_examples(plan, num_train), seconds=scoring)
    return out


def _training_seconds(arm: ArmResult, store: Store) -> float | None:
    """Return the median seconds of an arm's trainings, None where one was not measured."""
    found = [read_times(Unit(store, "train", seal.key), seal.meta["curve"]["steps"]) for seal in arm.trains]
    ends = [one[-1] for one in found if one is not None]
    return median(ends) if len(ends) == len(found) else None
