"""What the answers of a run cost: the steps of scoring, and the seconds of whoever computed what they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from cluster.errors import CorruptError
from cluster.storage import Store
from flows.attempts import attempt_states, stage_timings
from flows.plan import Plan
from tasks.report.inputs import ArmResult
from tasks.report.scoring import Scoring
from tasks.score import column_name
from tasks.scores.registry import score_info
from tasks.selection.spec import AUTO, PROXY

SCORING = ("proxy", "score", "merge")
"""The stages between the data and a table of scores."""


def scoring_steps(plan: Plan, column: str | None, num_train: int) -> int | None:
    """Return the optimiser steps behind a column of the score table: 0 for none, None where it was brought."""
    if column is None or _free(plan, column):
        return 0
    proxy = plan.config.proxy
    return None if proxy is None else len(plan.proxies) * proxy.steps_for(num_train)


def arm_steps(plan: Plan, arm: ArmResult, num_train: int) -> int | None:
    """Return the optimiser steps behind an arm's selections, as `scoring_steps` does.

    Whatever it ranks by, proxies stand behind alpha auto, which is cross-fitted over them, and behind features of theirs.
    """
    specs = (unit.spec for (name, keep, _), (_, unit) in plan.selections.items() if (name, keep) == (arm.name, arm.keep))
    spec = next(specs, None)
    proxy = plan.config.proxy
    if spec is not None and proxy is not None and (spec.alpha == AUTO or spec.features == PROXY):
        return len(plan.proxies) * proxy.steps_for(num_train)
    return scoring_steps(plan, arm.score, num_train)


def scored_examples(plan: Plan, num_train: int) -> int:
    """Return the examples that scoring passed through proxies: all of them, at each checkpoint that a score reads."""
    scores = () if plan.config.score is None else plan.config.score.scores
    checkpoints = {use.at for use in scores if score_info(use.name).by_batch}
    return len(plan.proxies) * len(checkpoints) * num_train


def scoring_of(plan: Plan, arms: Sequence[ArmResult], num_train: int) -> Scoring | None:
    """Return what scoring cost a run with named arms; None where no arm ranks by a score.

    That of the dearest arm: arms that rest on the same proxies share their training.
    """
    steps = [arm_steps(plan, arm, num_train) for arm in arms if arm.score is not None]
    if not steps:
        return None
    known = [one for one in steps if one is not None]
    total = max(known) if len(known) == len(steps) else None
    train = plan.config.train
    trained = {seal.key: int(seal.meta["steps"]) for arm in arms for seal in arm.trains}
    return Scoring(
        proxies=len(plan.proxies) if total else 0,
        steps=total,
        scored_examples=scored_examples(plan, num_train) if total else 0,
        training_steps=train.steps_for(num_train),
        whole_schedule=train.steps is None,
        trained_steps=sum(trained.values()),
    )


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


def wall_time(plan: Plan, store: Store) -> dict[str, Any]:
    """Return the seconds that a race took, scoring included, and of how many of its trainings they are not known.

    Counts the attempts at this run that computed anything or were stopped, and what other runs of the store took to make its
    score table. Of the trainings, proxies included, those are known that such an attempt recorded as computed; the others were
    there when it came, from another run or from an attempt that was stopped before it could record them. `seconds` is None
    where all are.
    """
    now = datetime.now(UTC)
    trainings = len(set(plan.proxies)) + len({one.key for one in plan.trainings})
    seconds, known, attempts = 0.0, 0, 0
    for attempt in attempt_states(store, plan.run_name):
        computed = [one for one in attempt.stages if one.computed and _is_cost(one.name)]
        if not computed and attempt.state in ("done", "running"):
            # It found everything, or it is the one that writes this.
            continue
        attempts += 1
        seconds += attempt.seconds(now)
        known += sum(one.computed for one in computed if one.name.split()[-1] in ("proxy", "train"))
    for run in _runs_on_these_scores(plan, store):
        for timing in stage_timings(store, run) if run != plan.run_name else ():
            if timing.name in SCORING and timing.computed:
                seconds += timing.seconds
                known += timing.computed if timing.name == "proxy" else 0
    unknown = max(0, trainings - known)
    return {
        "seconds": round(seconds, 1) if seconds and unknown < trainings else None, "attempts": attempts,
        "trainings": trainings, "not_known": unknown,
    }  # fmt: skip


def _is_cost(stage: str) -> bool:
    """Return whether a recorded stage is part of scoring or of a race: its rounds go before the stage's name."""
    return stage in SCORING or " " in stage


def _runs_on_these_scores(plan: Plan, store: Store) -> list[str]:
    from flows.runs import list_runs, read_record

    if plan.config.proxy is None:
        return []
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
