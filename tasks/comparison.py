"""Arms against `random` over replicates: paired t intervals, Holm over the arms of one keep, verdicts.

The interval that is shown is the interval that decides. Holm's procedure orders the M arms of one keep by p and tests
the j-th at level 5 % / (M - j + 1) until one fails. Each rejected arm's interval has the level of its own step, every
other arm's the level of the step that failed: an interval excludes 0 exactly where Holm rejects. The chance that any
arm of one keep gets a false `better` or `worse` is at most 5 %; an interval alone covers at least 95 %, being never
narrower than the plain one. All of them together are not a 95 % simultaneous region.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[Any, np.dtype[np.float64]]
    Bools = np.ndarray[Any, np.dtype[np.bool_]]

ALPHA = 0.05
POWER = 0.8
MIN_REPLICATES = 5
"""Fewest replicates for a verdict on a comparison named in advance; a search or a sweep takes 10."""
MAX_NEEDED = 1000
# Differences of percentages carry rounding noise near 1e-14; one answer in 1e9 examples moves accuracy by 1e-7 points.
NO_SPREAD = 1e-9

Interval = tuple[float, float]


@dataclass(frozen=True)
class Sample:
    """Hold one arm's results in replicate order.

    `accuracy` (R,) float64 in percent; `correct` (R, T) bool over one fixed order of the test examples, or None where
    it is not known (then no standard error of the test set can be stated, and no equivalence).
    """

    accuracy: Floats
    correct: Bools | None = None


@dataclass(frozen=True)
class Comparison:
    """Say how one arm compares with another. Differences, intervals and standard errors are in points."""

    arm: str
    versus: str
    replicates: int
    differences: tuple[float, ...]
    mean_difference: float
    ci95: Interval | None
    """Adjusted: it decides the verdict. None with one replicate."""
    ci95_unadjusted: Interval | None
    confidence: float
    """Level of `ci95` taken alone, in (0, 1): 0.95 or above."""
    p_value: float | None
    p_holm: float | None
    se_test: float | None
    """Standard error of the difference that comes from the test examples being a sample."""
    two_way_ci95: Interval | None
    """At the level of `ci95`, over replicates and test examples both; never narrower than `ci95`."""
    margin_refused: bool
    verdict: str
    """better, worse, equivalent or undecided."""
    reason: str
    needed_replicates: int | None
    """Replicates in all, for 80 % power at the observed difference and spread; None where decided or not a help."""
    needed_capped: bool


@dataclass(frozen=True)
class _Paired:
    differences: Floats
    mean: float
    deviation: float

    @property
    def count(self) -> int:
        return len(self.differences)

    def interval(self, level: float) -> Interval | None:
        """Return the two-sided paired t interval that misses with probability `level`."""
        if self.count < 2:
            return None
        half = _critical(level, self.count - 1) * self.deviation / math.sqrt(self.count)
        return self.mean - half, self.mean + half

    def p_value(self) -> float | None:
        from scipy.special import stdtr

        if self.count < 2:
            return None
        if self.deviation == 0.0:
            return 1.0 if self.mean == 0.0 else 0.0
        t = abs(self.mean) / self.deviation * math.sqrt(self.count)
        return float(2.0 * stdtr(self.count - 1, -t))


def _critical(level: float, degrees: float) -> float:
    """Return the two-sided critical value of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1.0 - level / 2.0))


def _spread(values: Floats) -> float:
    """Return the standard deviation (ddof 1), 0 where all values are equal up to rounding noise."""
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return deviation if deviation > NO_SPREAD else 0.0


def _pair(values: Floats) -> _Paired:
    mean = float(values.mean())
    return _Paired(values, mean if abs(mean) > NO_SPREAD else 0.0, _spread(values))


def mean_interval(values: Floats) -> Interval | None:
    """Return the 95 % t interval of the mean of values (R,) over replicates, None for fewer than two."""
    return _pair(values).interval(ALPHA)


def test_set_error(difference: Floats) -> float:
    """Return the standard error, in points, that test sampling gives the mean of `difference` (R, T) in {-1, 0, 1}."""
    examples = difference.shape[1]
    if examples < 2:
        return 100.0
    return float(100.0 * difference.mean(axis=0).std(ddof=1) / math.sqrt(examples))


def two_way_interval(difference: Floats, level: float) -> Interval | None:
    """Return the interval of the mean of `difference` (R, T), in points, with replicates and examples both random.

    Variance of a crossed two-way layout without repeats: V = V_R + V_T - V_RT, where V_R comes from the R replicate
    means, V_T from the T example means, and V_RT (their interaction) is in both; never below either. Degrees of
    freedom after Satterthwaite. None for fewer than two replicates or examples. Never narrower than the t interval
    over replicates.
    """
    replicates, examples = difference.shape
    if replicates < 2 or examples < 2:
        return None
    rows, columns = difference.mean(axis=1), difference.mean(axis=0)
    mean = float(rows.mean())
    v_rows = _spread(100.0 * rows) ** 2 / replicates
    v_columns = float((100.0 * columns).var(ddof=1)) / examples
    # Sum of squares of the residuals, from the three others: the (R, T) residuals are never laid out.
    total = float(((difference - mean) ** 2).sum())
    residual = total - examples * float(((rows - mean) ** 2).sum()) - replicates * float(((columns - mean) ** 2).sum())
    v_both = 1e4 * max(residual, 0.0) / ((replicates - 1) * (examples - 1)) / (replicates * examples)
    variance = max(v_rows + v_columns - v_both, v_rows, v_columns)
    if variance == 0.0:
        return 100.0 * mean, 100.0 * mean
    degrees = variance**2 / (v_rows**2 / (replicates - 1) + v_columns**2 / (examples - 1))
    half = max(
        _critical(level, degrees) * math.sqrt(variance), _critical(level, replicates - 1) * math.sqrt(v_rows)
    )
    return 100.0 * mean - half, 100.0 * mean + half


def holm_levels(pairs: Mapping[str, _Paired]) -> dict[str, tuple[float, float | None, bool]]:
    """Return {name: (level of its interval, Holm-adjusted p, rejected)} by the rule in this module's docstring."""
    ranked = sorted(pairs, key=lambda name: (_p_or_one(pairs[name]), name))
    out: dict[str, tuple[float, float | None, bool]] = {}
    going, level, adjusted = True, ALPHA, 0.0
    for step, name in enumerate(ranked):
        left = len(ranked) - step
        if going:
            level = ALPHA / left
            # By the interval itself, so that rounding cannot part it from the verdict.
            going = _excludes_zero(pairs[name].interval(level))
        p = pairs[name].p_value()
        if p is not None:
            adjusted = max(adjusted, min(1.0, left * p))
        out[name] = (level, None if p is None else adjusted, going)
    return out


def _p_or_one(pair: _Paired) -> float:
    p = pair.p_value()
    return 1.0 if p is None else p


def _excludes_zero(interval: Interval | None) -> bool:
    return interval is not None and (interval[0] > 0.0 or interval[1] < 0.0)


def power_of_difference(effect: float, count: int, level: float) -> float:
    """Return the power of the paired t test; `effect` = |difference| / spread, by the noncentral t distribution."""
    degrees, shift = count - 1, effect * math.sqrt(count)
    critical = _critical(level, degrees)
    return 1.0 - _noncentral(degrees, shift, critical) + _noncentral(degrees, shift, -critical)


def power_of_equivalence(effect: float, margin: float, count: int, level: float) -> float:
    """Return the power of the two one-sided tests, each at level / 2; `effect` and `margin` in units of the spread.

    By two noncentral t distributions, which is exact but for the dependence between the two tests (it errs low).
    """
    degrees, root = count - 1, math.sqrt(count)
    critical = _critical(level, degrees)
    upper = _noncentral(degrees, (effect - margin) * root, -critical)
    lower = _noncentral(degrees, (effect + margin) * root, critical)
    return max(0.0, upper - lower)


def _noncentral(degrees: int, shift: float, t: float) -> float:
    """Return P(T <= t) of the noncentral t distribution."""
    from scipy.special import nctdtr

    # nctdtr gives NaN where t < 0 lies far below the shift: take the mirror image.
    return 1.0 - float(nctdtr(degrees, -shift, -t)) if t < 0 else float(nctdtr(degrees, shift, t))


def needed_replicates(pair: _Paired, level: float, margin: float, least: int) -> tuple[int, bool]:
    """Return (replicates for 80 % power to decide either way, whether that is the cap of MAX_NEEDED).

    Takes the observed difference and spread as true: a guide, not a promise. `margin` 0 means that equivalence is not
    on offer.
    """
    if pair.count < 2 or pair.deviation == 0.0:
        return least, False
    effect, width = abs(pair.mean) / pair.deviation, margin / pair.deviation

    def enough(count: int) -> bool:
        if power_of_difference(effect, count, level) >= POWER:
            return True
        return effect < width and power_of_equivalence(effect, width, count, level) >= POWER

    if not enough(MAX_NEEDED):
        return MAX_NEEDED, True
    low, high = max(least, 2), MAX_NEEDED
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low, False


def compare_with_random(
    arms: Mapping[str, Sample],
    random: Sample,
    *,
    margin_points: float,
    versus: str = "random",
    min_replicates: int = MIN_REPLICATES,
) -> list[Comparison]:
    """Return the comparison of every arm of one keep with `random`, in the order of `arms`.

    Pairs by replicate number; where one has more replicates, those without a partner are left out and `reason` says
    so. `margin_points` is the half-width within which arms count as equivalent; 0 switches equivalence off. Raises
    InputError on an arm without results, a margin that is no number >= 0, or tables of other test examples.
    """
    if not (math.isfinite(margin_points) and margin_points >= 0):
        raise InputError(f"margin {margin_points!r}: give the equivalence margin in points, a number of 0 or more")
    pairs: dict[str, _Paired] = {}
    tables: dict[str, Floats | None] = {}
    for name, sample in arms.items():
        count = min(len(sample.accuracy), len(random.accuracy))
        if count == 0:
            raise InputError(f"arm {name!r} or {versus!r} has no trained replicate; train at least one of each")
        pairs[name] = _pair(sample.accuracy[:count] - random.accuracy[:count])
        tables[name] = _table_difference(name, sample, random, count)
    levels = holm_levels(pairs)
    out = []
    for name, pair in pairs.items():
        level, p_holm, rejected = levels[name]
        out.append(
            _judge(
                name,
                pair,
                versus=versus,
                table=tables[name],
                level=level,
                p_holm=p_holm,
                rejected=rejected,
                margin=margin_points,
                least=min_replicates,
                unpaired=max(len(arms[name].accuracy), len(random.accuracy)) - pair.count,
            )
        )
    return out


def _table_difference(name: str, sample: Sample, random: Sample, count: int) -> Floats | None:
    if sample.correct is None or random.correct is None:
        return None
    if sample.correct.shape[1:] != random.correct.shape[1:]:
        raise InputError(
            f"arm {name!r} was tested on {sample.correct.shape[1]} examples, random on {random.correct.shape[1]}: "
            "arms are compared on one test set; train them under one data specification"
        )
    difference: Floats = sample.correct[:count].astype(float)
    difference -= random.correct[:count]
    return difference


def _judge(
    name: str,
    pair: _Paired,
    *,
    versus: str,
    table: Floats | None,
    level: float,
    p_holm: float | None,
    rejected: bool,
    margin: float,
    least: int,
    unpaired: int,
) -> Comparison:
    interval = pair.interval(level)
    se_test = None if table is None else test_set_error(table)
    two_way = None if table is None else two_way_interval(table, level)
    refusal = _margin_refusal(margin, se_test, None if table is None else table.shape[1])
    inside = interval is not None and -margin < interval[0] and interval[1] < margin
    needed: int | None = None
    capped = False
    if interval is None or pair.count < least:
        verdict = "undecided"
        reason = f"{pair.count} replicate{'s' * (pair.count != 1)}: a verdict takes at least {least}"
        needed, capped = needed_replicates(pair, level, 0.0 if refusal else margin, least)
    elif rejected:
        verdict = "better" if pair.mean > 0 else "worse"
        reason = f"the interval lies {'above' if pair.mean > 0 else 'below'} 0"
        if inside:
            reason += f", and within the margin of {margin:g} points: a real difference, but a small one"
        if two_way is not None and not _excludes_zero(two_way):
            reason += "; it holds on this test set only: with other test examples the interval includes 0"
    elif inside and not refusal:
        verdict, reason = "equivalent", f"the interval lies within the margin of {margin:g} points"
    else:
        verdict = "undecided"
        reason = refusal if inside else "the interval includes 0" + (
            f" and reaches beyond the margin of {margin:g} points" if margin > 0 and not refusal else ""
        )
        if refusal and not inside:
            reason += f"; {refusal}"
        if pair.deviation > 0.0:
            needed, capped = needed_replicates(pair, level, 0.0 if refusal else margin, max(least, pair.count + 1))
    if pair.count >= 2 and pair.deviation == 0.0:
        reason += f"; all {pair.count} differences are equal, so the interval is a point"
    if unpaired:
        reason += f"; {unpaired} replicate{'s' * (unpaired != 1)} without a partner left out"
    return Comparison(
        arm=name,
        versus=versus,
        replicates=pair.count,
        differences=tuple(float(value) for value in pair.differences),
        mean_difference=pair.mean,
        ci95=interval,
        ci95_unadjusted=pair.interval(ALPHA),
        confidence=1.0 - level,
        p_value=pair.p_value(),
        p_holm=p_holm,
        se_test=se_test,
        two_way_ci95=two_way,
        margin_refused=bool(refusal) and margin > 0,
        verdict=verdict,
        reason=reason,
        needed_replicates=needed,
        needed_capped=capped,
    )


def _margin_refusal(margin: float, se_test: float | None, examples: int | None) -> str:
    """Return why no equivalence can be claimed within `margin`, or an empty string."""
    if margin == 0:
        return "no equivalence margin is set"
    if se_test is None or examples is None:
        return "equivalence is not judged: the standard error of the test set is not known"
    if margin >= 2 * se_test:
        return ""
    wanted = math.ceil(examples * (2 * se_test / margin) ** 2)
    return (
        f"equivalence is not judged: the margin of {margin:g} points is below two standard errors of the test set "
        f"(2 x {se_test:.2f} points on {examples:,} examples); it takes about {wanted:,} test examples, or a wider "
        "margin"
    )
