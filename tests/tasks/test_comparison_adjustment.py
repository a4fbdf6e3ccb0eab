"""Dunnett and Holm: the rule that chooses, the levels, and the error over a family, against independent oracles."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tasks.comparison import Sample, compare_with_random, dunnett, paired
from tasks.comparison.adjustment import adjust, holm
from tests.oracles import comparison as oracle
from tests.tasks.comparison_case import sample


@pytest.mark.parametrize("seed", range(25))
def test_holm_equals_the_closed_procedure_and_never_contradicts_its_intervals(seed: int) -> None:
    rng = np.random.default_rng(seed)
    random = sample(rng.normal(90, 0.5, 6))
    arms = {f"arm{i}": sample(random.accuracy + rng.normal(shift, 0.5, 6)) for i, shift in
            enumerate(rng.choice([0.0, 0.4, 0.8, -1.5], 5))}  # fmt: skip
    # One arm with a much larger spread keeps Dunnett's test away.
    arms["wild"] = sample(random.accuracy + rng.normal(0, 30, 6))
    found = compare_with_random(arms, random, margin_points=0.0)
    rejected = oracle.holm_rejections([float(row.p_value or 0) for row in found], 0.05)
    for number, row in enumerate(found):
        assert (row.adjustment, row.family) == ("Holm", 6)
        assert row.ci95 is not None and row.ci95_unadjusted is not None
        excludes = row.ci95[0] > 0 or row.ci95[1] < 0
        assert excludes == (number in rejected) == (row.verdict in ("better", "worse"))
        assert (row.p_holm is not None and row.p_holm == row.p_adjusted and row.p_holm <= 0.05) == excludes
        # Adjusted intervals hold the plain ones.
        assert row.ci95[0] <= row.ci95_unadjusted[0] + 1e-12 and row.ci95[1] >= row.ci95_unadjusted[1] - 1e-12
        assert row.confidence >= 0.95 - 1e-12


def test_holm_adjusted_p_by_hand() -> None:
    values = {
        "a": [1.0, 1.1, 0.9, 1.05, 0.95],
        "b": [0.2, 0.5, -0.1, 0.3, 0.4],
        "c": [0.1, -0.2, 0.0, 0.2, -0.1],
    }
    pairs = {name: paired.pair(np.array(differences)) for name, differences in values.items()}
    raw = {name: pair.p_value() or 0.0 for name, pair in pairs.items()}
    levels = {name: (step.level, step.p_value, step.rejected) for name, step in holm(raw, 0.05).items()}
    assert raw["a"] < raw["b"] < raw["c"]
    assert levels["a"][:2] == pytest.approx((0.05 / 3, 3 * raw["a"]))
    # b (p near 0.06) stops the procedure at 5 % / 2; c keeps that level.
    assert levels["b"][:2] == pytest.approx((0.025, 2 * raw["b"]))
    assert levels["c"][:2] == pytest.approx((0.025, max(2 * raw["b"], raw["c"])))
    assert [levels[name][2] for name in "abc"] == [True, False, False]


# Dunnett (1964), Biometrics 20, table of two-sided 5 % points.
@pytest.mark.parametrize(
    ("arms", "degrees", "point"),
    [(1, 10, 2.23), (2, 10, 2.57), (3, 10, 2.76), (5, 10, 2.99), (9, 10, 3.24), (2, 5, 3.03), (1, 5, 2.57)],
)
def test_critical_values_are_those_of_the_printed_table(arms: int, degrees: int, point: float) -> None:
    assert dunnett.critical_value(0.05, arms, degrees) == pytest.approx(point, abs=0.0051)


@pytest.mark.parametrize(("arms", "degrees"), [(3, 8.0), (25, 14.29), (7, 30.0)])
def test_tail_equals_the_slow_integral(arms: int, degrees: float) -> None:
    for limit in (1.5, 3.0, 4.5):
        assert dunnett.tail(limit, arms, degrees) == pytest.approx(oracle.dunnett_tail(limit, arms, degrees), abs=1e-6)


def test_tail_equals_scipy_for_independent_groups() -> None:
    rng = np.random.default_rng(3)
    groups = [rng.normal(0.6 * i, 1, 6) for i in range(4)]
    # SciPy integrates by random points.
    found = stats.dunnett(*groups[1:], control=groups[0], rng=np.random.default_rng(0))
    for statistic, p in zip(found.statistic, found.pvalue):
        assert dunnett.tail(abs(statistic), 3, 4 * 5) == pytest.approx(p, abs=2e-3)


def test_spreads_are_compared_by_bartlett_without_what_replicates_share() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(90, 1, (4, 7))
    rest = values - values.mean(axis=0)
    assert dunnett.spread_p(list(values)) == pytest.approx(stats.bartlett(*rest).pvalue, rel=1e-9)
    assert dunnett.spread_p(list(values + 5 * rng.normal(size=7))) == pytest.approx(dunnett.spread_p(list(values)))


@pytest.mark.parametrize("seed", range(3))
def test_dunnett_equals_the_oracle_and_never_undercuts_the_plain_interval(seed: int) -> None:
    rng = np.random.default_rng([seed, 8])
    random, effects = rng.normal(90, 0.4, 8), rng.choice([0.0, 0.6, -1.0], 5)
    # Equal residual spreads by construction: rotated copies of one pattern.
    pattern = rng.normal(0, 0.4, 8)
    values = [random + effect + np.roll(pattern, step) for step, effect in enumerate(effects)]
    found = compare_with_random({str(i): sample(row) for i, row in enumerate(values)}, sample(random), margin_points=0.0)
    expected = oracle.dunnett_paired([row.tolist() for row in values], random.tolist(), 0.05)
    for row, interval in zip(found, expected):
        assert (row.adjustment, row.family) == ("Dunnett", 5)
        assert row.spreads_p is not None and row.spreads_p > 0.25
        assert row.ci95 == pytest.approx(interval, abs=1e-5)
        assert row.ci95 is not None and row.ci95_unadjusted is not None
        excludes = row.ci95[0] > 0 or row.ci95[1] < 0
        assert excludes == (row.verdict in ("better", "worse")) == (row.p_adjusted is not None and row.p_adjusted <= 0.05)
        assert row.ci95[0] <= row.ci95_unadjusted[0] + 1e-12 and row.ci95[1] >= row.ci95_unadjusted[1] - 1e-12
        assert row.confidence >= 0.95 - 1e-12


def test_the_rule_that_chooses() -> None:
    rng = np.random.default_rng(0)
    base, pattern = rng.normal(90, 0.3, 8), rng.normal(0, 0.4, 8)

    def method(rows: list[np.ndarray[tuple[int], np.dtype[np.float64]]]) -> str:
        arms = {str(i): row for i, row in enumerate(rows)}
        pairs = {name: paired.pair(row - base[: len(row)]) for name, row in arms.items()}
        return next(iter(adjust(pairs, arms)[0].values())).method

    alike = [base + np.roll(pattern, step) for step in range(4)]
    assert method(alike) == "Dunnett"
    assert method(alike[:1]) == "paired t"
    assert method(alike[:2]) == "Holm"
    assert method([*alike[:3], base + 20 * np.roll(pattern, 5)]) == "Holm"
    assert method([*alike[:3], alike[3][:7]]) == "Holm"
    assert method([row[:4] for row in alike]) == "Holm"
    # A gain without any spread.
    assert method([*alike[:3], base + 1.0]) == "Holm"


@pytest.mark.parametrize("arms", [4, 12])
def test_family_error_of_equal_arms_is_at_most_5_percent(arms: int) -> None:
    rng = np.random.default_rng(7)
    draws, wrong, shared = 500, 0, 0
    for _ in range(draws):
        random = rng.normal(90, 0.4, 6)
        values = {str(i): rng.normal(90, 0.4, 6) for i in range(arms)}
        found, _ = adjust({name: paired.pair(row - random) for name, row in values.items()}, values)
        wrong += any(one.rejected for one in found.values())
        shared += found["0"].method == "Dunnett"
    assert wrong / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)
    # A quarter of families of equal spreads look as if they differed.
    assert shared / draws == pytest.approx(0.75, abs=0.08)


@pytest.mark.parametrize("count", [2, 5])
def test_an_arm_that_is_random_is_in_no_family(count: int) -> None:
    generator = np.random.default_rng(count)
    correct = generator.random((10, 400)) < 0.9
    base = sample(100 * correct.mean(axis=1), correct)

    def other(shift: int) -> Sample:
        answers = correct.copy()
        for row in answers:
            row[generator.integers(0, 400, 30)] = True
            row[generator.integers(0, 400, shift)] = False
        return sample(100 * answers.mean(axis=1), answers)

    arms = {f"arm {number}": other(4 * number) for number in range(count)}
    same = Sample(base.accuracy, correct.copy(), draws_as_random=True)
    alike = {"first": same, **arms, "last": same}
    found = compare_with_random(alike, base, margin_points=5.0)
    assert [one.arm for one in found] == list(alike)
    assert found[1:-1] == compare_with_random(arms, base, margin_points=5.0)
    for one in (found[0], found[-1]):
        assert (one.family, one.adjustment, one.ci95, one.verdict) == (1, "paired t", (0.0, 0.0), "equivalent")
        assert "it is random, and in no family" in one.reason
    # Equal results alone do not make an arm random, nor does an equal draw that came out otherwise.
    for other_arm in (sample(base.accuracy, correct.copy()), replace(arms["arm 0"], draws_as_random=True)):
        assert compare_with_random({**arms, "one more": other_arm}, base, margin_points=5.0)[0].family == count + 1


def test_a_run_of_nothing_but_random_is_compared_all_the_same() -> None:
    correct = np.random.default_rng(0).random((10, 400)) < 0.9
    base = sample(100 * correct.mean(axis=1), correct)
    (one,) = compare_with_random({"only": replace(base, draws_as_random=True)}, base, margin_points=5.0)
    assert one.verdict == "equivalent" and one.family == 1
