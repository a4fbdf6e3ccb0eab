"""Many arms against `random`: which adjustment is used, and what it makes of every arm.

The rule is fixed in advance. One arm: its paired t. Three arms or more with the same number of replicates whose spreads
agree (Bartlett's p above 0.25): Dunnett. Else: Holm on the paired t of each. Each is two-sided at 5 % over the family; what
came of it, with spreads that differ unnoticed too, is in benchmarks/honesty.md. The interval that is shown is the one that
decides.

Holm's procedure orders the M arms by p and tests the j-th at level 5 % / (M - j + 1) until one fails. Each rejected
arm's interval has the level of its own step, every other arm's the level of the step that failed: an interval excludes 0
exactly where Holm rejects. An interval alone covers at least 95 %, being never narrower than the plain one; all of them
together are not a 95 % simultaneous region. Dunnett's are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.comparison import dunnett
from tasks.comparison.paired import ALPHA, MIN_REPLICATES, Interval, Paired, critical, excludes_zero

if TYPE_CHECKING:
    from tasks.comparison.paired import Floats

PLAIN, HOLM, DUNNETT = "paired t", "Holm", "Dunnett"


@dataclass(frozen=True)
class Shared:
    """Hold what Dunnett's test takes from the family: the shared spread of differences and its degrees of freedom."""

    arms: int
    deviation: float
    degrees: float


@dataclass(frozen=True)
class Adjusted:
    """Say what the adjustment made of one arm."""

    method: str
    """`paired t`, `Holm` or `Dunnett`."""
    interval: Interval | None
    level: float
    """Probability with which `interval`, taken alone, misses."""
    p_value: float | None
    rejected: bool
    """Whether `interval` excludes 0."""
    p_holm: float | None
    shared: Shared | None
    """None but for Dunnett."""


@dataclass(frozen=True)
class Step:
    """Hold the level at which Holm's procedure tested one hypothesis, its adjusted p, and the outcome."""

    level: float
    p_value: float | None
    rejected: bool


def holm(
    p_values: Mapping[str, float | None], alpha: float, rejects: Callable[[str, float], bool] | None = None
) -> dict[str, Step]:
    """Return {name: step} of Holm's procedure over a family; None counts as 1.

    `rejects` decides one hypothesis at a level, so that rounding cannot part a verdict from its interval; by default
    p <= level does.
    """

    def value(name: str) -> float:
        p = p_values[name]
        return 1.0 if p is None else p

    ranked = sorted(p_values, key=lambda name: (value(name), name))
    out: dict[str, Step] = {}
    going, level, adjusted = True, alpha, 0.0
    for number, name in enumerate(ranked):
        left = len(ranked) - number
        if going:
            level = alpha / left
            going = rejects(name, level) if rejects else value(name) <= level
        adjusted = max(adjusted, min(1.0, left * value(name)))
        out[name] = Step(level, None if p_values[name] is None else adjusted, going)
    return out


def adjust(pairs: Mapping[str, Paired], arms: Mapping[str, Floats]) -> tuple[dict[str, Adjusted], float | None]:
    """Return every arm of a family adjusted by this module's rule, and Bartlett's p, None where it was not asked.

    `pairs` are differences to random, `arms` the accuracies (R,) they come from, both by name.
    """
    steps = holm(
        {name: one.p_value() for name, one in pairs.items()},
        ALPHA,
        lambda name, level: excludes_zero(pairs[name].interval(level)),
    )
    agreement = None
    if _may_share(pairs):
        agreement = dunnett.spread_p([arms[name] for name in sorted(pairs)])
        if agreement > dunnett.AGREEMENT:
            return _dunnett(pairs, steps), agreement
    method = PLAIN if len(pairs) == 1 else HOLM
    return {
        name: Adjusted(
            method, one.interval(steps[name].level), steps[name].level, steps[name].p_value, steps[name].rejected,
            steps[name].p_value, None,
        )
        for name, one in pairs.items()
    }, agreement  # fmt: skip


def _may_share(pairs: Mapping[str, Paired]) -> bool:
    counts = {one.count for one in pairs.values()}
    same = len(counts) == 1 and counts.pop() >= MIN_REPLICATES
    return same and len(pairs) >= dunnett.FEWEST_ARMS and all(one.deviation > 0.0 for one in pairs.values())


def _dunnett(pairs: Mapping[str, Paired], steps: Mapping[str, Step]) -> dict[str, Adjusted]:
    replicates = next(iter(pairs.values())).count
    mean_square = math.fsum(one.deviation**2 for one in pairs.values()) / len(pairs)
    shared = Shared(len(pairs), math.sqrt(mean_square), dunnett.degrees_of(len(pairs), replicates))
    limit = dunnett.critical_value(ALPHA, shared.arms, shared.degrees)
    error = shared.deviation / math.sqrt(replicates)
    # What an interval of this width misses with alone.
    alone = _two_sided(limit, shared.degrees)
    out = {}
    for name, one in pairs.items():
        own = critical(ALPHA, one.count - 1) * one.error
        half, level = max((limit * error, alone), (own, ALPHA))
        interval = one.mean - half, one.mean + half
        p = max(dunnett.tail(abs(one.mean) / error, shared.arms, shared.degrees), one.p_value() or 0.0)
        out[name] = Adjusted(DUNNETT, interval, level, p, excludes_zero(interval), steps[name].p_value, shared)
    return out


def _two_sided(t: float, degrees: float) -> float:
    from scipy.special import stdtr

    return 2.0 * float(stdtr(degrees, -t))
