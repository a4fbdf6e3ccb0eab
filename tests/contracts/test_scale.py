"""The arithmetic of `benchmarks.scale`: known data give known exponents and intervals, known items a known least makespan."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import linregress, t

from benchmarks.scale_calls import Counted, counted_stores
from benchmarks.scale_fit import fit_power, greedy_bound, lower_bound
from benchmarks.scale_tables import _slope
from cluster.storage import Store

DECADES = [10.0**power for power in np.arange(1, 4.5, 0.5)]


def test_an_exact_power_law_is_found_without_a_fixed_cost() -> None:
    fit = fit_power(DECADES, [3 * x**0.75 for x in DECADES])
    assert (fit.fixed, fit.scale, fit.exponent) == pytest.approx((0, 3, 0.75))
    assert fit.low == pytest.approx(0.75) == fit.high
    assert fit.at(10**6) == pytest.approx(3 * 10**4.5)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_a_fixed_cost_is_told_from_the_growth(exponent: float) -> None:
    fit = fit_power(DECADES, [20 + 0.1 * x**exponent for x in DECADES])
    assert (fit.fixed, fit.scale, fit.exponent) == pytest.approx((20, 0.1, exponent), rel=1e-3)


def test_without_a_fixed_cost_the_interval_is_that_of_the_regression() -> None:
    noise = np.random.default_rng(3).normal(0, 0.1, len(DECADES))
    y = 2 * np.array(DECADES) ** 1.1 * np.exp(noise)
    fit, line = fit_power(DECADES, y), linregress(np.log(DECADES), np.log(y))
    half = t.ppf(0.975, len(DECADES) - 2) * line.stderr
    assert fit.fixed == 0
    assert (fit.exponent, fit.low, fit.high) == pytest.approx((line.slope, line.slope - half, line.slope + half))


def test_the_interval_holds_the_exponent_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    x = np.repeat(DECADES, 2)
    held = 0
    for _ in range(100):
        fit = fit_power(x, (5 + 0.01 * x) * np.exp(generator.normal(0, 0.05, len(x))))
        held += fit.low <= 1.0 <= fit.high
    assert held >= 90


def test_what_does_not_grow_has_an_exponent_of_none() -> None:
    fit = fit_power(DECADES, [7.0, 7.1, 6.9, 7.0, 7.05, 6.95, 7.0])
    assert fit.low <= 0 <= fit.high


@pytest.mark.parametrize(("x", "y"), [([1, 1, 2], [1, 1, 2]), ([1, 2, 3], [1, 0, 2]), ([0, 1, 2], [1, 1, 1]), ([1, 2], [1, 2])])
def test_too_little_to_fit_is_refused(x: list[float], y: list[float]) -> None:
    with np.errstate(divide="ignore"), pytest.raises(ValueError, match="three different x"):
        fit_power(x, y)


def test_the_least_makespan_is_the_work_or_the_longest_item() -> None:
    assert lower_bound(80, 4, [(0, 8)]) == 10
    assert lower_bound(80, 40, [(0, 8)]) == 40
    # 8 slots for 4 s do 32 of 80, 6 do the rest.
    assert lower_bound(80, 4, [(0, 8), (4, 6)]) == 12
    assert lower_bound(80, 4, [(0, 8), (20, 1)]) == 10
    # All nodes are gone for a while.
    assert lower_bound(80, 4, [(0, 8), (5, 0), (9, 8)]) == 14
    assert greedy_bound(80, 4, 8) == 13.5
    with pytest.raises(ValueError, match="never finish"):
        lower_bound(80, 4, [(0, 8), (1, 0)])


def test_counts_are_straight_lines_of_the_shards() -> None:
    assert _slope([(10, 37), (30, 97), (100, 307)]) == (3, 7)


def test_a_counted_store_counts_every_call_and_changes_none(tmp_path: object) -> None:
    from collections import Counter

    count: Counter[str] = Counter()
    with counted_stores(count):
        store = Store(str(tmp_path))
        assert store.create("stages/a/1", b"four")
        assert not store.create("stages/a/1", b"more")
        assert store.read("stages/a/1") == b"four"
        assert store.list("stages") == ["stages/a/1"]
        assert not store.exists("stages/b")
        with store.open("stages/a/1") as file:
            file.seek(1)
            assert file.read() == b"our"
    assert count == {"create": 2, "bytes in": 8, "read": 1, "open": 1, "bytes out": 7, "list": 1, "exists": 1}
    assert not isinstance(Store(str(tmp_path)).objects, Counted)
