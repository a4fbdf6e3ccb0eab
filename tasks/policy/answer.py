"""The answer of a race: the frozen winner where a fresh comparison on test confirms it, else random; and what it cost."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.policy.halving import RANDOM

CONFIRMED = "better"
"""The only verdict of the confirming comparison that makes a winner the answer."""


def answer_of(winner: str | None, verdict: str | None) -> str:
    """Return the arm to use: the winner where its one comparison on test says `better`, else random."""
    return winner if winner is not None and verdict == CONFIRMED else RANDOM


@dataclass(frozen=True)
class Costs:
    """Count what an answer cost, in optimiser steps: `scoring` is None for scores from elsewhere.

    Everything that the answer rests on counts, whichever run computed it. Scoring, which the races of several keeps share,
    counts in full in each; its forward passes are `scored` examples, and no steps. One full training is `full` steps:
    `train` on the whole train split. `later` are the steps of a training on the chosen subset.
    """

    scoring: int | None
    scored: int | None
    race: int
    confirmation: int
    full: int
    later: int

    @property
    def steps(self) -> int:
        """Return the steps of scoring, race and confirmation together."""
        return (self.scoring or 0) + self.race + self.confirmation

    @property
    def full_trainings(self) -> float:
        """Return the same in full trainings."""
        return self.steps / self.full

    def record(self) -> dict[str, float | int | None]:
        """Return all of it as the results hold it."""
        return {
            "scoring_steps": self.scoring, "scored_examples": self.scored, "race_steps": self.race,
            "confirmation_steps": self.confirmation, "steps": self.steps, "full_training_steps": self.full,
            "full_trainings": self.full_trainings, "later_training_steps": self.later,
        }  # fmt: skip
