"""The test set as a sample, and accuracy by class."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tasks.comparison import compare_with_random, mean_interval
from tasks.comparison.classes import class_difference, worst_class
from tasks.comparison.examples import example_error, two_way_interval
from tests.oracles import comparison as oracle
from tests.tasks.comparison_case import BASE, sample


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
    assert example_error(table) == pytest.approx(0.346, abs=0.001)


def test_two_way_interval_is_no_narrower_than_asked() -> None:
    table = np.zeros((5, 40))
    table[:, :3] = 1
    assert two_way_interval(table, 0.05, 30.0) == pytest.approx((7.5 - 30, 7.5 + 30))


def test_worst_class_by_hand() -> None:
    nan = math.nan
    arm = np.array([[90.0, 80.0, nan], [70.0, 85.0, nan], [88.0, 82.0, nan]])
    random = np.array([[91.0, 79.0, nan], [80.0, 82.0, nan], [86.0, 83.0, nan]])
    assert worst_class(arm) == pytest.approx([80, 70, 82])
    found = class_difference(arm, random)
    assert found.by_class[2] is None
    assert found.by_class[:2] == pytest.approx((-9 / 3, 3 / 3))
    # 80 - 79, 70 - 80, 82 - 83.
    assert found.worst == pytest.approx(-10 / 3)
    assert found.worst_ci95 == pytest.approx(mean_interval(np.array([1.0, -10.0, -1.0])))


def test_a_class_that_an_arm_gives_up_shows_where_the_mean_does_not() -> None:
    even = np.full((6, 10), 90.0) + np.arange(6)[:, None] / 10
    given_up = even + np.where(np.arange(10) == 3, -20.0, 20.0 / 9)
    found = compare_with_random(
        {"arm": sample(BASE, by_class=given_up)}, sample(BASE, by_class=even), margin_points=0.5
    )[0]
    assert found.mean_difference == 0
    assert found.worst_class_difference == pytest.approx(-20)
    assert found.class_differences is not None and found.class_differences[3] == pytest.approx(-20)
    assert compare_with_random({"arm": sample(BASE)}, sample(BASE), margin_points=0.5)[0].class_differences is None
