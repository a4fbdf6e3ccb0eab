"""Equivalence and non-inferiority: levels, boundaries, and false claims over a family."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tasks.comparison import compare_with_random
from tasks.comparison.margins import equivalence, non_inferiority
from tasks.comparison.paired import pair
from tests.oracles import comparison as oracle
from tests.tasks.comparison_case import BASE, alone, differences_with_interval, quiet_tables, sample


@pytest.mark.parametrize("seed", range(8))
def test_equal_scipys_one_sided_tests_and_the_closed_procedure(seed: int) -> None:
    rng = np.random.default_rng([seed, 4])
    rows = {str(i): rng.normal(rng.choice([0.0, 0.2, 0.6, -0.5]), 0.25, 7) for i in range(5)}
    pairs = {name: pair(row) for name, row in rows.items()}
    above = [float(stats.ttest_1samp(row, -0.5, alternative="greater").pvalue) for row in rows.values()]
    below = [float(stats.ttest_1samp(row, 0.5, alternative="less").pvalue) for row in rows.values()]
    near = [equivalence(pairs, 0.5)[name].shown for name in rows]
    loss = [non_inferiority(pairs, 0.5)[name].shown for name in rows]
    both = [max(pair_) for pair_ in zip(above, below)]
    assert {i for i, shown in enumerate(near) if shown} == oracle.holm_rejections(both, 0.05)
    assert {i for i, shown in enumerate(loss) if shown} == oracle.holm_rejections(above, 0.025)


def test_one_arm_has_the_90_percent_interval_and_the_lower_end_of_the_95_percent_one() -> None:
    found = alone([0.1, -0.2, 0.3, 0.05, 0.15])
    values = np.array(found.differences)
    wide = stats.t.ppf(0.95, 4) * values.std(ddof=1) / math.sqrt(5)
    assert found.equivalence_ci == pytest.approx((values.mean() - wide, values.mean() + wide))
    assert found.equivalence_confidence == pytest.approx(0.9)
    assert found.ci95 is not None
    assert found.non_inferiority_bound == pytest.approx(found.ci95[0])


@pytest.mark.parametrize(
    ("low", "shown"), [(-0.501, False), (-0.499, True)],
)
def test_non_inferiority_at_its_boundary_is_said_beside_the_verdict(low: float, shown: bool) -> None:
    found = alone(differences_with_interval(low, 1.0), margin=0.1)
    assert (found.verdict, found.non_inferior) == ("undecided", shown)


def test_nothing_within_a_margin_is_judged_below_the_least_replicates_or_on_a_small_test_set() -> None:
    steady = [0.01, -0.01, 0.02, -0.02]
    assert alone(steady).non_inferior is None and alone(steady).verdict == "undecided"
    assert alone([*steady, 0.0], tables=False).non_inferior is None
    right, arm = np.ones((6, 1000), bool), np.ones((6, 1000), bool)
    right[:, :50], arm[:, 50:100] = False, False
    found = compare_with_random({"arm": sample(BASE + 3, arm)}, sample(BASE, right), margin_points=0.5)[0]
    assert found.non_inferior is None and found.margin_refused


def test_switched_off_margins_claim_nothing() -> None:
    found = compare_with_random(
        {"arm": sample(BASE, quiet_tables(6))}, sample(BASE, quiet_tables(6)), margin_points=0.0, non_inferiority_points=0.0
    )[0]
    assert (found.verdict, found.non_inferior, found.p_equivalence) == ("undecided", None, None)


def test_false_claims_over_a_family_at_the_edge_of_the_margin() -> None:
    # Every true difference is just at the margin: to claim any of them is false.
    rng = np.random.default_rng(9)
    draws, near, loss = 1500, 0, 0
    for _ in range(draws):
        values = rng.normal(-0.5, 0.2, (6, 8)) - rng.normal(0, 0.2, 8)
        pairs = {str(i): pair(row) for i, row in enumerate(values)}
        near += any(one.shown for one in equivalence(pairs, 0.5).values())
        loss += any(one.shown for one in non_inferiority(pairs, 0.5).values())
    assert near / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)
    assert loss / draws <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / draws)
