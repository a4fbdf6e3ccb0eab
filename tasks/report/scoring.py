"""What the scores cost that a run's named arms rank by, in steps and in trainings, and how it is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PARTS = ("proxies", "steps", "scored_examples", "training_steps", "whole_schedule", "trained_steps")


@dataclass(frozen=True)
class Scoring:
    """Count what scoring cost, in optimiser steps: `steps` is None for scores from elsewhere.

    Whichever run computed them. Its forward passes are `scored_examples`, and no steps. It is measured by a training of
    `training_steps`: on all of the train split where the schedule follows the size of the data (`whole_schedule`), else any
    training of the run, as all have the same steps. `trained_steps` are those of all trainings of the run together.
    """

    proxies: int
    steps: int | None
    scored_examples: int
    training_steps: int
    whole_schedule: bool
    trained_steps: int

    def record(self) -> dict[str, Any]:
        """Return all of it as the results hold it."""
        trainings = None if self.steps is None else self.steps / self.training_steps
        return {name: getattr(self, name) for name in PARTS} | {"trainings": trainings}


def scoring_clause(results: Mapping[str, Any]) -> str:
    """Return what scoring and the comparison cost, and what a later training takes, as the end of a sentence.

    Empty where no arm ranks by a score, or a race says it.
    """
    scoring = results.get("scoring")
    if scoring is None:
        return ""
    if scoring["steps"] is None:
        said = "what the scores cost is not known here, as you brought them"
    elif scoring["steps"] == 0:
        said = "scoring took no training"
    else:
        said = f"scoring cost {_trainings(scoring)} ({scoring['steps']:,} steps)"
    return f"{said}, the trainings that are compared {scoring['trained_steps']:,} steps together{_later(results)}"


def _later(results: Mapping[str, Any]) -> str:
    full = {arm["name"] for arm in results["arms"] if arm["full"]}
    keeps = sorted({row["keep"] for row in results["comparisons"] if row["arm"] not in full})
    if not keeps:
        return ""
    said = [f"{100 * keep:.6g}" for keep in keeps]
    shares = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} or {said[-1]}"
    return f", every later training {shares} % of the data"


def scoring_note(results: Mapping[str, Any]) -> str:
    """Return what the costs of scoring and of comparing the arms are made of; empty where no arm ranks by a score."""
    scoring = results.get("scoring")
    if scoring is None:
        return ""
    trained = f"The trainings of all arms took {scoring['trained_steps']:,} steps together"
    if scoring["steps"] is None:
        return f"The scores were brought: what they cost is not known here, and is in none of these figures. {trained}."
    if scoring["steps"] == 0:
        return f"The scores need no proxy, so scoring took no step. {trained}."
    return (
        f"Scoring trained {_counted(scoring['proxies'], 'proxy', 'proxies')}, {scoring['steps']:,} steps in all: "
        f"{_trainings(scoring)}, whichever run computed them. All arms that rank by these scores share that; the column of the "
        f"table counts it in full for each. Its passes over {scoring['scored_examples']:,} examples are no steps. {trained}."
    )


def scoring_cell(steps: int | None) -> str:
    """Return an arm's steps of scoring for a table."""
    return "not known" if steps is None else f"{steps:,}"


def _trainings(scoring: Mapping[str, Any]) -> str:
    share = scoring["trainings"]
    said = f"{share:,.1f}" if share >= 0.1 else f"{share:.1g}"
    if scoring["whole_schedule"]:
        return f"{said} full trainings"
    return f"as much as {said} trainings of {scoring['training_steps']:,} steps"


def _counted(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"
