"""Verdicts: every arm of one keep against `random`, each question answered with its own adjustment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.errors import InputError
from tasks.comparison.adjustment import Adjusted, adjust
from tasks.comparison.classes import ClassDifference, class_difference
from tasks.comparison.examples import example_error, margin_refusal, two_way_interval
from tasks.comparison.margins import Within, equivalence, non_inferiority
from tasks.comparison.paired import ALPHA, MIN_REPLICATES, Interval, Paired, Sample, excludes_zero, least_text, pair
from tasks.comparison.power import needed_replicates

if TYPE_CHECKING:
    from tasks.comparison.paired import Floats

NON_INFERIORITY_POINTS = 0.5


@dataclass(frozen=True)
class Comparison:
    """Say how one arm compares with another. Differences, intervals and standard errors are in points."""

    arm: str
    versus: str
    replicates: int
    differences: tuple[float, ...]
    mean_difference: float
    ci95: Interval | None
    """Adjusted: it decides `better` and `worse`. None with one replicate."""
    ci95_unadjusted: Interval | None
    confidence: float
    """Level of `ci95` taken alone, in (0, 1): 0.95 or above."""
    adjustment: str
    """`paired t` for one arm, `Dunnett` or `Holm` for several."""
    family: int
    """Arms that were adjusted together, this one included."""
    spreads_p: float | None
    """Bartlett's p of the family having one spread, which chose the adjustment; None where it was not asked."""
    p_value: float | None
    p_adjusted: float | None
    """By `adjustment`."""
    p_holm: float | None
    se_test: float | None
    """Standard error of the difference that comes from the test examples being a sample."""
    two_way_ci95: Interval | None
    """At the level of `ci95`, over replicates and test examples both; never narrower than `ci95`."""
    margin_refused: bool
    equivalence_ci: Interval | None
    """At 90 % for one arm, adjusted by Holm for several: within the margin it shows equivalence."""
    equivalence_confidence: float
    p_equivalence: float | None
    """Of the two one-sided tests, Holm-adjusted; None where no margin is set or there is one replicate."""
    non_inferior: bool | None
    """Whether a loss of the non-inferiority margin was ruled out; None where it was not judged."""
    non_inferiority_bound: float | None
    """One-sided lower bound at 97.5 %, adjusted by Holm."""
    worst_class_difference: float | None
    worst_class_ci95: Interval | None
    class_differences: tuple[float | None, ...] | None
    """Means over replicates (K,); see tasks.comparison.classes."""
    verdict: str
    """better, worse, equivalent or undecided."""
    reason: str
    needed_replicates: int | None
    """Replicates in all, for 80 % power at the observed difference and spread; None where decided or not a help."""
    needed_capped: bool


@dataclass(frozen=True)
class _Case:
    """Hold what is known about one arm before it is judged."""

    one: Paired
    found: Adjusted
    near: Within
    loss: Within
    table: Floats | None
    classes: ClassDifference | None
    unpaired: int
    is_random: bool


def compare_with_random(
    arms: Mapping[str, Sample],
    random: Sample,
    *,
    margin_points: float,
    non_inferiority_points: float = NON_INFERIORITY_POINTS,
    versus: str = "random",
    min_replicates: int = MIN_REPLICATES,
) -> list[Comparison]:
    """Return the comparison of every arm of one family, as a rule those of one keep, with `random`, in their order.

    Pairs by replicate number; where one has more replicates, those without a partner are left out and `reason` says
    so. An arm that draws as random does, with no difference in any replicate, is random: it is in no family, as it can
    be no false finding and would cost the others power. `margin_points` is the half-width within which arms count
    as equivalent, `non_inferiority_points` the loss that a non-inferior arm has less than; 0 switches the question off.
    Give `min_replicates` by `least_replicates` where the run names more comparisons than one. Raises InputError on an
    arm without results, a margin that is no number >= 0, or tables of other test examples.
    """
    for word, margin in (("equivalence", margin_points), ("non-inferiority", non_inferiority_points)):
        if not (math.isfinite(margin) and margin >= 0):
            raise InputError(f"margin {margin!r}: give the {word} margin in points, a number of 0 or more")
    pairs: dict[str, Paired] = {}
    tables: dict[str, Floats | None] = {}
    for name, sample in arms.items():
        count = min(len(sample.accuracy), len(random.accuracy))
        if count == 0:
            raise InputError(f"arm {name!r} or {versus!r} has no trained replicate; train at least one of each")
        pairs[name] = pair(sample.accuracy[:count] - random.accuracy[:count])
        tables[name] = _table_difference(name, sample, random, count)
    found = {}
    # On a GPU equal subsets may end in other weights: then it is compared as any arm.
    alike = [name for name, one in pairs.items() if arms[name].draws_as_random and one.mean == 0.0 == one.deviation]
    for names in ([name for name in pairs if name not in alike], *([name] for name in alike)):
        family = {name: pairs[name] for name in names}
        adjusted, agreement = adjust(family, {name: arms[name].accuracy[: one.count] for name, one in family.items()})
        near, loss = equivalence(family, margin_points), non_inferiority(family, non_inferiority_points)
        for name, one in family.items():
            case = _Case(
                one, adjusted[name], near[name], loss[name], tables[name], _classes(arms[name], random, one.count),
                max(len(arms[name].accuracy), len(random.accuracy)) - one.count, name in alike,
            )  # fmt: skip
            found[name] = _judge(
                name, case, versus, len(family), agreement, margin_points, non_inferiority_points, min_replicates
            )
    return [found[name] for name in pairs]


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


def _classes(sample: Sample, random: Sample, count: int) -> ClassDifference | None:
    if sample.by_class is None or random.by_class is None:
        return None
    return class_difference(sample.by_class[:count], random.by_class[:count])


def _judge(
    name: str, case: _Case, versus: str, family: int, agreement: float | None, margin: float, loss: float, least: int
) -> Comparison:
    one, found = case.one, case.found
    interval = found.interval
    half = 0.0 if interval is None else (interval[1] - interval[0]) / 2
    se_test = None if case.table is None else example_error(case.table)
    examples = None if case.table is None else case.table.shape[1]
    two_way = None if case.table is None else two_way_interval(case.table, found.level, half)
    refusal = margin_refusal(margin, se_test, examples)
    enough = one.count >= max(least, 2)
    verdict, reason = _verdict(case, margin, refusal, two_way, least)
    needed, capped = None, False
    if verdict == "undecided" and (not enough or one.deviation > 0.0):
        needed, capped = needed_replicates(
            one, found.level, max(least, one.count + 1) if enough else least, margin=0.0 if refusal else margin,
            margin_level=case.near.level, shared=found.shared,
        )  # fmt: skip
    if case.is_random:
        reason += "; without signal it draws what random draws: it is random, and in no family"
    elif one.count >= 2 and one.deviation == 0.0:
        reason += f"; all {one.count} differences are equal, so the interval is a point"
    if case.unpaired:
        reason += f"; {case.unpaired} replicate{'s' * (case.unpaired != 1)} without a partner left out"
    judged = enough and not margin_refusal(loss, se_test, examples)
    return Comparison(
        arm=name,
        versus=versus,
        replicates=one.count,
        differences=tuple(float(value) for value in one.differences),
        mean_difference=one.mean,
        ci95=interval,
        ci95_unadjusted=one.interval(ALPHA),
        confidence=1.0 - found.level,
        adjustment=found.method,
        family=family,
        spreads_p=agreement,
        p_value=one.p_value(),
        p_adjusted=found.p_value,
        p_holm=found.p_holm,
        se_test=se_test,
        two_way_ci95=two_way,
        margin_refused=bool(refusal) and margin > 0,
        equivalence_ci=case.near.interval,
        equivalence_confidence=1.0 - 2 * case.near.level,
        p_equivalence=case.near.p_value if margin > 0 else None,
        non_inferior=case.loss.shown if judged else None,
        non_inferiority_bound=None if case.loss.interval is None else case.loss.interval[0],
        worst_class_difference=None if case.classes is None else case.classes.worst,
        worst_class_ci95=None if case.classes is None else case.classes.worst_ci95,
        class_differences=None if case.classes is None else case.classes.by_class,
        verdict=verdict,
        reason=reason,
        needed_replicates=needed,
        needed_capped=capped,
    )


def _verdict(case: _Case, margin: float, refusal: str, two_way: Interval | None, least: int) -> tuple[str, str]:
    """Return the verdict and its reason."""
    one, near = case.one, case.near
    if case.found.interval is None or one.count < least:
        return "undecided", f"{one.count} replicate{'s' * (one.count != 1)}: {least_text(least)}"
    ends = "" if near.interval is None else f"[{near.interval[0]:+.2f}, {near.interval[1]:+.2f}]"
    if case.found.rejected:
        reason = f"the interval lies {'above' if one.mean > 0 else 'below'} 0"
        if near.shown:
            reason += f", and within the margin of {margin:g} points: a real difference, but a small one"
        if two_way is not None and not excludes_zero(two_way):
            reason += "; it holds on this test set only: with other test examples the interval includes 0"
        return ("better" if one.mean > 0 else "worse"), reason
    if near.shown and not refusal:
        return "equivalent", f"two one-sided tests give {ends}, within the margin of {margin:g} points"
    reason = "the interval includes 0"
    if refusal:
        return "undecided", f"{reason}; equivalence is not judged: {refusal}"
    return "undecided", f"{reason} and two one-sided tests give {ends}, beyond the margin of {margin:g} points"
