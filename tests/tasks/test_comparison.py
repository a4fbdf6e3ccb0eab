"""Intervals and verdicts against random, by hand calculation and at their boundaries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from cluster.errors import InputError
from tasks.comparison import compare_with_random, mean_interval
from tests.oracles import comparison as oracle
from tests.tasks.comparison_case import BASE, alone, differences_with_interval, quiet_tables, sample


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

@pytest.mark.parametrize(
    ("low", "high", "level", "verdict"),
    [
        (0.001, 0.8, 0.05, "better"),
        (-0.001, 0.8, 0.05, "undecided"),
        (-0.8, -0.001, 0.05, "worse"),
        (-0.8, 0.001, 0.05, "undecided"),
        (-0.499, 0.499, 0.1, "equivalent"),
        (-0.499, 0.501, 0.1, "undecided"),
        (-0.501, 0.499, 0.1, "undecided"),
        (0.001, 0.4, 0.05, "better"),
        (-0.7, 0.7, 0.05, "undecided"),
    ],
)
def test_verdicts_at_their_boundaries(low: float, high: float, level: float, verdict: str) -> None:
    found = alone(differences_with_interval(low, high, level=level))
    assert (found.ci95 if level == 0.05 else found.equivalence_ci) == pytest.approx((low, high), abs=1e-9)
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
