"""What a race is: its family, its rungs, how many stay, and how often the winner is confirmed."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator, model_validator

from cluster.errors import InputError
from tasks.comparison.paired import MIN_REPLICATES
from tasks.policy.family import FAMILY, read_family
from tasks.spec import Spec, setting

AUTO = "auto"


class PolicySpec(Spec):
    """Say how the arm is found. The text `auto` means all defaults."""

    family: tuple[dict[str, Any], ...] = setting(
        FAMILY, identity=True, doc="Protocols of the family, or candidates {protocol, end, settings}. Default: the whole family."
    )
    scores: tuple[str, ...] = setting(
        (), identity=True, doc="Columns of the score table that candidates rank by. Default: the first of score.scores."
    )
    direction: str | None = setting(
        None, identity=True, pattern="^(high|low)$", doc="Hard end of scores that are not built in."
    )
    rungs: tuple[int, ...] = setting(
        (2, 4, 8), identity=True, min_length=1, doc="Replicates in all at the end of each rung, ascending."
    )
    stay: float = setting(
        1 / 3, identity=True, gt=0, lt=1, doc="Share of the candidates that stays after a rung, rounded up: at least one."
    )
    confirm: int = setting(
        10, identity=True, ge=MIN_REPLICATES, doc="Fresh replicates in which the frozen winner meets random on the test set."
    )

    @model_validator(mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value != AUTO:
                raise InputError(f"policy is {value[:80]!r}: give auto, or a section, as in policy: {{family: [ccs, band]}}")
            return {}
        return value

    @field_validator("family", mode="before")
    @classmethod
    def _as_data(cls, value: Any) -> Any:
        return read_family(value)

    @field_validator("scores", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> PolicySpec:
        if self.rungs[0] < 1 or any(later <= earlier for earlier, later in zip(self.rungs, self.rungs[1:])):
            raise InputError(f"policy.rungs is {list(self.rungs)}: replicates in all, each rung more than the one before")
        if len(set(self.scores)) < len(self.scores):
            raise InputError(f"policy.scores lists a score twice: {list(self.scores)}; each once")
        return self
