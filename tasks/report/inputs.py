"""What a report is made of: the sealed results of each arm, and what the run was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tasks.samplers.registry import PROTOCOLS

if TYPE_CHECKING:
    from cluster.record import Seal

SOFT_LABELS = "soft labels"
"""What an arm has in place of a protocol that trains on random's subsets and learns from the model of the full data."""


@dataclass(frozen=True)
class ArmResult:
    """Hold what one arm at one keep came to.

    `trains[i]`, and `selections[i]` where there are selections, belong to replicate i, the same number in every arm.
    The arm of protocol `random` is what the others of its keep are compared with; an arm without selections is trained
    on the full data, with the steps of its keep, and is compared there.
    """

    name: str
    score: str | None
    protocol: str
    keep: float
    alpha: float | None
    gamma: float | None
    selections: Sequence[Seal] | None
    trains: Sequence[Seal]
    scoring_steps: int | None = 0
    """Optimiser steps behind the score that it ranks by, shared with the other arms that do; None for scores brought."""

    @property
    def is_full(self) -> bool:
        """Return whether the arm trains on the full data."""
        return self.selections is None

    @property
    def is_random(self) -> bool:
        """Return whether the arm is the baseline of its keep."""
        return self.selections is not None and self.protocol == "random"

    @property
    def draws_as_random(self) -> bool:
        """Return whether its selections are those of the baseline: without signal, class budgets or examples left out."""
        return self.protocol in ("exact", "approximate", "tempered") and all(
            not seal.meta["num_signal"] and seal.meta["classes"] is None and not seal.meta["n_missing"]
            for seal in self.selections or ()
        )

    @property
    def rotates(self) -> bool:
        """Return whether the arm draws its subset anew in every epoch."""
        info = PROTOCOLS.get(self.protocol)
        return info is not None and info.rotates


@dataclass(frozen=True)
class StageTiming:
    """Say how long a stage took in this attempt, and whether it computed anything or found all of it sealed."""

    name: str
    seconds: float
    computed: bool
    items: int


@dataclass(frozen=True)
class MeasuredArm:
    """Hold one arm at one keep: the seal of its first selection, and that of what was measured of it."""

    name: str
    keep: float
    selection: Seal
    figures: Seal


@dataclass(frozen=True)
class ShiftResult:
    """Hold what was measured of distribution shift: the features' seal, and every arm's."""

    features: Seal
    arms: Sequence[MeasuredArm]


@dataclass(frozen=True)
class PageInputs:
    """Hold what the page shows beside the results; every field may be left out, and its section says so."""

    arms: Sequence[ArmResult] = ()
    merge: Seal | None = None
    stages: Sequence[StageTiming] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    shift: ShiftResult | None = None
