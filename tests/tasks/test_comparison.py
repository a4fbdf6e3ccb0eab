"""Intervals, Holm, verdicts and the replicates it would take, against hand calculation and independent oracles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cluster.errors import InputError
from tasks import comparison
from tasks.comparison import Comparison, Sample, compare_with_random, mean_interval, two_way_interval
from tests.oracles import comparison as oracle

BASE = np.array([90.0, 90.4, 89.8, 90.1, 90.2, 90.3])


def sample(accuracy: Any, correct: Any = None) -> Sample:
    return Sample(np.asarray(accuracy, dtype=float), correct)


def quiet_tables(replicates: int, examples: int = 2000) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return tables of arms that answer alike: no error from test sampling."""
    return np.ones((replicates, examples), dtype=bool)


def alone(differences: list[float], *, margin: float = 0.5, tables: bool = True, least: int = 5) -> Comparison:
    """Return the comparison of one arm with these differences to random."""
    count = len(differences)
    table = quiet_tables(count) if tables else None
    arms = {"arm": sample(90.0 + np.array(differences), table)}
    return compare_with_random(
        arms, sample(np.full(count, 90.0), table), margin_points=margin, min_replicates=least
    )[0]


def test_paired_t_by_hand() -> None:
    # d = 1, 2, 3, 4, 5: mean 3, sd sqrt(2.5), se sqrt(0.5); t(4, 97.5 %) = 2.776445.
    found = alone([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean_difference == pytest.approx(3.0)
    assert found.ci95 == pytest.approx((3 - 2.776445 * math.sqrt(0.5), 3 + 2.776445 * math.sqrt(0.5)), abs=1e-5)
    assert found.p_value == pytest.approx(2 * stats.t.sf(3 / math.sqrt(0.5), 4))
    assert found.verdict == "better"
    assert found.confidence == pytest.approx(0.95)
    assert found.needed_replicates is None


def test_paired_by_replicate_and_not_by_arm_means() -> None:
    # Spread between replicates is large and shared: only pairing sees a steady gain of about 0.3.
    shared = np.array([80.0, 85.0, 90.0, 95.0, 99.0])
    gain = np.array([0.3, 0.31, 0.29, 0.3, 0.32])
    found = compare_with_random({"arm": sample(shared + gain)}, sample(shared), margin_points=0.0)[0]
    assert found.verdict == "better"
    shuffled = compare_with_random({"arm": sample((shared + gain)[::-1])}, sample(shared), margin_points=0.0)[0]
    assert shuffled.verdict == "undecided"


@pytest.mark.parametrize("seed", range(4))
def test_interval_equals_the_oracle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arm, random = rng.normal(91, 1, 7), rng.normal(90, 1, 7)
    found = compare_with_random({"arm": sample(arm)}, sample(random), margin_points=0.0)[0]
    assert found.ci95 == pytest.approx(oracle.paired_interval(arm.tolist(), random.tolist(), 0.05), abs=1e-6)


@pytest.mark.parametrize("seed", range(25))
def test_holm_equals_the_closed_procedure_and_never_contradicts_its_intervals(seed: int) -> None:
    rng = np.random.default_rng(seed)
    random = sample(rng.normal(90, 0.5, 6))
    arms = {f"arm{i}": sample(random.accuracy + rng.normal(shift, 0.5, 6)) for i, shift in
            enumerate(rng.choice([0.0, 0.4, 0.8, -1.5], 5))}  # fmt: skip
    found = compare_with_random(arms, random, margin_points=0.0)
    rejected = oracle.holm_rejections([float(row.p_value or 0) for row in found], 0.05)
    for number, row in enumerate(found):
        assert row.ci95 is not None and row.ci95_unadjusted is not None
        excludes = row.ci95[0] > 0 or row.ci95[1] < 0
        assert excludes == (number in rejected) == (row.verdict in ("better", "worse"))
        assert (row.p_holm is not None and row.p_holm <= 0.05) == excludes
        # Adjusted intervals hold the plain ones.
        assert row.ci95[0] <= row.ci95_unadjusted[0] + 1e-12 and row.ci95[1] >= row.ci95_unadjusted[1] - 1e-12
        assert row.confidence >= 0.95 - 1e-12


def test_holm_adjusted_p_by_hand() -> None:
    values = {
        "a": [1.0, 1.1, 0.9, 1.05, 0.95],
        "b": [0.2, 0.5, -0.1, 0.3, 0.4],
        "c": [0.1, -0.2, 0.0, 0.2, -0.1],
    }
    pairs = {name: comparison._pair(np.array(differences)) for name, differences in values.items()}
    raw = {name: pair.p_value() or 0.0 for name, pair in pairs.items()}
    levels = comparison.holm_levels(pairs)
    assert raw["a"] < raw["b"] < raw["c"]
    assert levels["a"][:2] == pytest.approx((0.05 / 3, 3 * raw["a"]))
    # b (p near 0.06) stops the procedure at 5 % / 2; c keeps that level.
    assert levels["b"][:2] == pytest.approx((0.025, 2 * raw["b"]))
    assert levels["c"][:2] == pytest.approx((0.025, max(2 * raw["b"], raw["c"])))
    assert [levels[name][2] for name in "abc"] == [True, False, False]


def test_family_error_of_equal_arms_is_at_most_5_percent() -> None:
    rng = np.random.default_rng(7)
    draws, wrong = 600, 0
    for _ in range(draws):
        random = rng.normal(90, 0.4, 6)
        arms = {str(i): sample(rng.normal(90, 0.4, 6)) for i in range(4)}
        found = compare_with_random(arms, sample(random), margin_points=0.0)
        wrong += any(row.verdict in ("better", "worse") for row in found)
    # 5 % and three standard errors of 600 draws.
    assert wrong / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


def test_interval_covers_95_percent() -> None:
    rng = np.random.default_rng(1)
    draws = 3000
    values = rng.normal(0.3, 0.6, (draws, 5))
    hits = 0
    for row in values:
        interval = mean_interval(row)
        assert interval is not None
        hits += interval[0] <= 0.3 <= interval[1]
    assert hits / draws == pytest.approx(0.95, abs=3 * math.sqrt(0.05 * 0.95 / draws))


def test_two_way_interval_covers_where_the_one_way_does_not() -> None:
    # Examples matter much, replicates little: over fresh test sets only the two-way interval covers the true 0.02.
    rng = np.random.default_rng(2)
    draws, one, two = 400, 0, 0
    for _ in range(draws):
        chance = np.where(rng.random(300) < 0.12, rng.choice([-1.0, 1.0], 300, p=[0.4167, 0.5833]), 0.0)
        table = np.where(rng.random((6, 300)) < 0.9, chance, 0.0)
        truth = 100 * 0.9 * 0.12 * (0.5833 - 0.4167)
        narrow, wide = mean_interval(100 * table.mean(axis=1)), two_way_interval(table, 0.05)
        assert narrow is not None and wide is not None
        one += narrow[0] <= truth <= narrow[1]
        two += wide[0] <= truth <= wide[1]
    assert two / draws > 0.92
    assert one / draws < 0.75


@pytest.mark.parametrize("seed", range(5))
def test_two_way_variance_equals_the_mean_squares(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.integers(-1, 2, (5, 40)).astype(float) * (rng.random(40) < 0.4)
    interval = two_way_interval(table, 0.05)
    assert interval is not None
    rows = (100 * table.mean(axis=1)).var(ddof=1) / 5
    columns = (100 * table.mean(axis=0)).var(ddof=1) / 40
    variance = 1e4 * oracle.two_way_variance(table.tolist())
    degrees = variance**2 / (rows**2 / 4 + columns**2 / 39)
    half = max(oracle.t_critical(0.05, degrees) * math.sqrt(variance), oracle.t_critical(0.05, 4) * math.sqrt(rows))
    assert interval[1] - interval[0] == pytest.approx(2 * half, rel=1e-5)
    assert sum(interval) / 2 == pytest.approx(100 * table.mean())


def test_test_set_error_of_12_percent_disagreement_is_035_points() -> None:
    # methods.md: 12 % disagreement, 10,000 images.
    table = np.zeros((1, 10000))
    table[0, :600], table[0, 600:1200] = 1, -1
    assert comparison.test_set_error(table) == pytest.approx(0.346, abs=0.001)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_never_a_verdict_below_five_replicates(count: int) -> None:
    for gain in (5.0, -5.0, 0.0):
        found = alone([gain + 0.001 * i for i in range(count)])
        assert found.verdict == "undecided"
        assert "at least 5" in found.reason
        assert found.needed_replicates == 5
        assert (found.ci95 is None) == (count == 1)


def test_a_search_takes_ten() -> None:
    assert alone([1.0, 1.1, 0.9, 1.0, 1.05]).verdict == "better"
    found = alone([1.0, 1.1, 0.9, 1.0, 1.05], least=10)
    assert (found.verdict, found.needed_replicates) == ("undecided", 10)


def differences_with_interval(low: float, high: float, count: int = 6) -> list[float]:
    """Return differences whose plain 95 % interval is [low, high]."""
    shape = np.array([-1.0, -0.6, -0.2, 0.2, 0.6, 1.0])[:count]
    half = stats.t.ppf(0.975, count - 1) * shape.std(ddof=1) / math.sqrt(count)
    return list((low + high) / 2 + shape * (high - low) / 2 / half)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.001, 0.8, "better"),
        (-0.001, 0.8, "undecided"),
        (-0.8, -0.001, "worse"),
        (-0.8, 0.001, "undecided"),
        (-0.499, 0.499, "equivalent"),
        (-0.499, 0.501, "undecided"),
        (-0.501, 0.499, "undecided"),
        (0.001, 0.4, "better"),
        (-0.6, 0.6, "undecided"),
    ],
)
def test_verdicts_at_their_boundaries(low: float, high: float, verdict: str) -> None:
    found = alone(differences_with_interval(low, high))
    assert found.ci95 == pytest.approx((low, high), abs=1e-9)
    assert found.verdict == verdict
    assert (found.needed_replicates is None) == (verdict != "undecided")
    if (low, high) == (0.001, 0.4):
        assert "within the margin" in found.reason


def test_no_equivalence_without_a_margin_or_without_test_tables() -> None:
    differences = differences_with_interval(-0.1, 0.1)
    assert alone(differences).verdict == "equivalent"
    assert alone(differences, margin=0.0).verdict == "undecided"
    unknown = alone(differences, tables=False)
    assert unknown.verdict == "undecided" and "not known" in unknown.reason


def test_margin_below_two_standard_errors_of_the_test_set_is_refused() -> None:
    # 10 % of 1,000 examples flip, evenly: se = 100 sqrt(0.1 / 1000) = 1 point.
    right, arm = np.ones((6, 1000), bool), np.ones((6, 1000), bool)
    right[:, :50], arm[:, 50:100] = False, False
    differences = np.array(differences_with_interval(-0.1, 0.1))
    for margin, verdict in ((1.9, "undecided"), (2.1, "equivalent")):
        found = compare_with_random(
            {"arm": sample(95 + differences, arm)}, sample(np.full(6, 95.0), right), margin_points=margin
        )[0]
        assert found.se_test == pytest.approx(1.0, abs=0.01)
        assert found.verdict == verdict
        assert found.margin_refused == (verdict == "undecided")
        assert ("two standard errors" in found.reason) == (verdict == "undecided")


def test_better_on_this_test_set_only_is_said() -> None:
    rng = np.random.default_rng(0)
    random = np.ones((6, 200), bool)
    random[:, :12] = False
    arm = np.ones((6, 200), bool)
    arm[:, 12:20] = False
    arm[np.arange(6), rng.integers(40, 200, 6)] = False
    found = compare_with_random(
        {"arm": sample(100 * arm.mean(1) + rng.normal(0, 1e-3, 6), arm)}, sample(100 * random.mean(1), random),
        margin_points=0.0,
    )[0]  # fmt: skip
    assert found.verdict == "better"
    assert found.two_way_ci95 is not None and found.two_way_ci95[0] < 0 < found.two_way_ci95[1]
    assert "this test set only" in found.reason


@pytest.mark.parametrize(("gain", "verdict"), [(0.0, "equivalent"), (0.3, "better"), (-0.3, "worse")])
def test_equal_differences_give_a_point_and_no_nan(gain: float, verdict: str) -> None:
    accuracy = np.array([90.1, 90.7, 89.3, 91.9, 90.0])
    table = quiet_tables(5)
    found = compare_with_random({"arm": sample(accuracy + gain, table)}, sample(accuracy, table), margin_points=0.5)[0]
    assert found.verdict == verdict
    assert found.ci95 == pytest.approx((gain, gain), abs=1e-9)
    assert "interval is a point" in found.reason
    assert found.p_value == (1.0 if gain == 0 else 0.0)
    numbers = [found.mean_difference, found.p_value, found.p_holm, found.se_test, *(found.two_way_ci95 or ())]
    assert all(math.isfinite(float(value)) for value in numbers if value is not None)


def test_needed_replicates_reach_80_percent_power_and_one_fewer_does_not() -> None:
    found = alone(differences_with_interval(-0.1, 0.9), margin=0.0)
    number = found.needed_replicates
    assert number is not None and number > 6 and not found.needed_capped
    effect = found.mean_difference / float(np.std(found.differences, ddof=1))

    def power(count: int) -> float:
        critical = stats.t.ppf(0.975, count - 1)
        shift = effect * math.sqrt(count)
        return float(stats.nct.sf(critical, count - 1, shift) + stats.nct.cdf(-critical, count - 1, shift))

    assert power(number) >= 0.8 > power(number - 1)


def test_power_by_simulation() -> None:
    rng = np.random.default_rng(3)
    draws = rng.normal(0.5, 1.0, (20000, 12))
    t = draws.mean(1) / draws.std(1, ddof=1) * math.sqrt(12)
    assert comparison.power_of_difference(0.5, 12, 0.05) == pytest.approx(
        float((abs(t) > stats.t.ppf(0.975, 11)).mean()), abs=0.012
    )
    draws = rng.normal(0.1, 1.0, (20000, 30))
    half = stats.t.ppf(0.975, 29) * draws.std(1, ddof=1) / math.sqrt(30)
    inside = (abs(draws.mean(1)) + half < 0.8).mean()
    assert comparison.power_of_equivalence(0.1, 0.8, 30, 0.05) == pytest.approx(float(inside), abs=0.012)


def test_needed_replicates_are_capped_and_finite_for_huge_effects() -> None:
    found = alone(differences_with_interval(-1.0, 1.0), margin=0.0)
    assert (found.needed_replicates, found.needed_capped) == (1000, True)
    assert alone([50.0, 50.001], margin=0.5).needed_replicates == 5
    assert alone([0.9, 0.5, 1.2]).needed_replicates == 5


def test_replicates_without_a_partner_are_left_out_and_said() -> None:
    shorter = sample(BASE[:5] + np.array([1, 1.1, 0.9, 1, 1.2]))
    found = compare_with_random({"arm": shorter}, sample(BASE), margin_points=0.0)[0]
    assert found.replicates == 5
    assert "1 replicate without a partner" in found.reason


@pytest.mark.parametrize("margin", [-1.0, float("nan"), float("inf")])
def test_margins_that_are_none_are_refused(margin: float) -> None:
    with pytest.raises(InputError, match="equivalence margin"):
        compare_with_random({"arm": sample(BASE)}, sample(BASE), margin_points=margin)


def test_other_test_sets_and_empty_arms_are_refused() -> None:
    with pytest.raises(InputError, match="one test set"):
        compare_with_random(
            {"arm": sample(BASE, quiet_tables(6, 10))}, sample(BASE, quiet_tables(6, 11)), margin_points=0.5
        )
    with pytest.raises(InputError, match="no trained replicate"):
        compare_with_random({"arm": sample([])}, sample(BASE), margin_points=0.5)


def test_order_of_arms_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    arms = {str(i): sample(BASE + rng.normal(0.2 * i, 0.3, 6)) for i in range(5)}
    backward = dict(reversed(arms.items()))
    first = {row.arm: row for row in compare_with_random(arms, sample(BASE), margin_points=0.5)}
    assert first == {row.arm: row for row in compare_with_random(backward, sample(BASE), margin_points=0.5)}
