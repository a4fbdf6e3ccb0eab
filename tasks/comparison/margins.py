"""Claims within a margin: equivalence by two one-sided tests, non-inferiority by one.

Each question is a family of its own over the arms of one keep, with Holm's procedure on paired t: the chance of any
false `equivalent` is at most 5 %, of any false `non-inferior` at most 2.5 %. Source: Schuirmann (1987), J. Pharmacokinet.
Biopharm. 15; for one arm the two one-sided tests at 5 % are the 90 % interval within the margin, and non-inferiority is
the lower end of the 95 % interval above minus the margin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.comparison.adjustment import holm
from tasks.comparison.paired import Interval, Paired

EQUIVALENCE = 0.05
NON_INFERIORITY = 0.025


@dataclass(frozen=True)
class Within:
    """Say whether one arm lies within a margin. `level` is that of each one-sided test, adjusted."""

    level: float
    p_value: float | None
    """Holm-adjusted."""
    shown: bool
    interval: Interval | None
    """At 1 - 2 x level: 90 % for one arm. It lies inside the margin exactly where equivalence was shown."""


def equivalence(pairs: Mapping[str, Paired], margin: float) -> dict[str, Within]:
    """Return {arm: whether |true difference| < margin was shown}."""
    p_values = {
        name: None if one.count < 2 else max(one.p_above(-margin), one.p_above(margin, below=True))
        for name, one in pairs.items()
    }

    def inside(name: str, level: float) -> bool:
        interval = pairs[name].interval(2 * level)
        return interval is not None and -margin < interval[0] and interval[1] < margin

    steps = holm(p_values, EQUIVALENCE, inside)
    return {
        name: Within(step.level, step.p_value, step.rejected, pairs[name].interval(2 * step.level))
        for name, step in steps.items()
    }


def non_inferiority(pairs: Mapping[str, Paired], margin: float) -> dict[str, Within]:
    """Return {arm: whether true difference > -margin was shown}; the lower end of the interval decides."""
    p_values = {name: None if one.count < 2 else one.p_above(-margin) for name, one in pairs.items()}

    def above(name: str, level: float) -> bool:
        interval = pairs[name].interval(2 * level)
        return interval is not None and interval[0] > -margin

    steps = holm(p_values, NON_INFERIORITY, above)
    return {
        name: Within(step.level, step.p_value, step.rejected, pairs[name].interval(2 * step.level))
        for name, step in steps.items()
    }
