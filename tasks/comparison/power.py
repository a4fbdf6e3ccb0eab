"""How many replicates a verdict takes: power of the paired tests by the noncentral t distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

from tasks.comparison import dunnett
from tasks.comparison.adjustment import Shared
from tasks.comparison.paired import ALPHA, Paired, critical

POWER = 0.8
"""Share of repetitions in which the stated number of replicates gives the verdict, if effect and spread are true."""
MAX_NEEDED = 1000


def power_of_difference(effect: float, count: int, level: float) -> float:
    """Return the power of the paired t test; `effect` = |difference| / spread, by the noncentral t distribution."""
    return _power_beyond(critical(level, count - 1), effect, count, count - 1)


def power_of_dunnett(effect: float, own_effect: float, count: int, arms: int) -> float:
    """Return about the power of the rule of tasks.comparison.adjustment for one of `arms` arms of equal spreads.

    `effect` is the difference over the shared spread, `own_effect` over the arm's own. Equal spreads look unequal with
    probability dunnett.AGREEMENT, and then Holm's first step decides. Dunnett's test takes the arm's own paired t too:
    of the two powers the smaller counts, which errs high by what the other refuses.
    """
    degrees = dunnett.degrees_of(arms, count)
    family = _power_beyond(dunnett.critical_value(ALPHA, arms, degrees), effect, count, degrees)
    agreed = min(family, power_of_difference(own_effect, count, ALPHA))
    return (1 - dunnett.AGREEMENT) * agreed + dunnett.AGREEMENT * power_of_difference(own_effect, count, ALPHA / arms)


def power_of_equivalence(effect: float, margin: float, count: int, level: float) -> float:
    """Return the power of the two one-sided tests, each at `level`; `effect` and `margin` in units of the spread.

    By two noncentral t distributions, which is exact but for the dependence between the two tests (it errs low).
    """
    degrees, root = count - 1, math.sqrt(count)
    limit = critical(2 * level, degrees)
    upper = _noncentral(degrees, (effect - margin) * root, -limit)
    lower = _noncentral(degrees, (effect + margin) * root, limit)
    return max(0.0, upper - lower)


def _power_beyond(limit: float, effect: float, count: int, degrees: float) -> float:
    shift = effect * math.sqrt(count)
    return 1.0 - _noncentral(degrees, shift, limit) + _noncentral(degrees, shift, -limit)


def _noncentral(degrees: float, shift: float, t: float) -> float:
    """Return P(T <= t) of the noncentral t distribution."""
    from scipy.special import nctdtr

    # nctdtr gives NaN where t < 0 lies far below the shift: take the mirror image.
    return 1.0 - float(nctdtr(degrees, -shift, -t)) if t < 0 else float(nctdtr(degrees, shift, t))


def fewest(enough: Callable[[int], bool], least: int) -> tuple[int, bool]:
    """Return (smallest count >= least that is enough, False), or (MAX_NEEDED, True) where not even that many are.

    Takes power to grow with the count.
    """
    if not enough(MAX_NEEDED):
        return MAX_NEEDED, True
    low, high = max(least, 2), MAX_NEEDED
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low, False


def replicates_for(effect: float, spread: float, *, level: float = ALPHA, power: float = POWER) -> tuple[int, bool]:
    """Return (replicates at which the paired t test finds a difference of `effect` with this power, capped).

    `effect` and `spread` in points, the spread that of paired differences in a pilot. For one arm; for the first step
    of Holm over M arms give `level` 0.05 / M.
    """
    if spread <= 0.0:
        return 2, False
    return fewest(lambda count: power_of_difference(abs(effect) / spread, count, level) >= power, 2)


def needed_replicates(
    one: Paired, level: float, least: int, *, margin: float = 0.0, margin_level: float = ALPHA, shared: Shared | None = None
) -> tuple[int, bool]:
    """Return (replicates in all for POWER to decide either way, whether that is the cap of MAX_NEEDED).

    Takes the observed difference and spread as true and the adjustment as it was: a guide, not a promise; what became of
    it in repetitions is in benchmarks/honesty.md. `level` is that of the two-sided test, `margin_level` of each of the
    two one-sided ones; `margin` 0 means that equivalence is not on offer; `shared` that Dunnett's test was used.
    """
    if one.count < 2 or one.deviation == 0.0:
        return least, False
    effect, width = abs(one.mean) / one.deviation, margin / one.deviation

    def enough(count: int) -> bool:
        if shared is None:
            found = power_of_difference(effect, count, level)
        else:
            found = power_of_dunnett(abs(one.mean) / shared.deviation, effect, count, shared.arms)
        return found >= POWER or (effect < width and power_of_equivalence(effect, width, count, margin_level) >= POWER)

    return fewest(enough, least)
