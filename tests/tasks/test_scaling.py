"""Scaling laws against SciPy's curve fit, on laws that are known, and where nothing can be said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import curve_fit

from cluster.errors import InputError
from tasks.scaling import envelope, fit_scaling, slope_difference

SIZES = [500, 1000, 3000, 8000, 20000, 60000]


def errors_of(
    a: float, b: float, c: float, *, spread: float = 0.02, seed: int = 0, replicates: int = 5, sizes: list[int] | None = None
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return errors (S, R) on the law, spread in proportion to the error."""
    n = np.array(sizes or SIZES, dtype=float)
    noise = np.random.default_rng(seed).standard_normal((len(n), replicates))
    return (a + b * n**-c)[:, None] * (1 + spread * noise)


@pytest.mark.parametrize(("a", "b", "c"), [(1.0, 100.0, 0.4), (0.0, 60.0, 0.3), (2.0, 900.0, 0.7)])
def test_a_law_without_noise_is_found(a: float, b: float, c: float) -> None:
    found = fit_scaling(SIZES, errors_of(a, b, c, spread=0.0), draws=20)
    assert (found.a, found.b, found.c) == pytest.approx((a, b, c), rel=1e-3, abs=2e-3)
    assert found.identified and found.fit_p == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_fit_equals_scipys(seed: int) -> None:
    table = errors_of(1.0, 100.0, 0.4, seed=seed)
    means = table.mean(axis=1)
    expected, _ = curve_fit(
        lambda n, a, b, c: a + b * n**-c, np.array(SIZES, dtype=float), means, p0=(1, 100, 0.4), sigma=means,
        xtol=1e-12, ftol=1e-12, maxfev=20000,
    )  # fmt: skip
    found = fit_scaling(SIZES, table, draws=20)
    assert (found.a, found.b, found.c) == pytest.approx(tuple(expected), rel=1e-3)


def test_a_stays_at_zero_where_the_law_would_have_it_below() -> None:
    # Steeper and steeper: a free fit has a negative error at the end.
    table = np.repeat([[40.0], [30.0], [18.0], [9.0], [3.0], [0.5]], 5, axis=1)
    found = fit_scaling(SIZES, table + np.arange(5) / 100, draws=50)
    assert found.a == 0.0 and found.b > 0
    assert not found.identified and "do not lie" in found.reason


def test_intervals_cover_what_is_true() -> None:
    draws, covered, named = 80, 0, 0
    for seed in range(draws):
        found = fit_scaling(SIZES, errors_of(1.0, 100.0, 0.4, spread=0.03, seed=seed), draws=200)
        covered += found.c_ci95[0] <= 0.4 <= found.c_ci95[1]
        named += found.identified
    assert covered / draws >= 0.86
    assert named / draws >= 0.9


def test_the_same_seed_gives_the_same_interval() -> None:
    table = errors_of(1.0, 100.0, 0.4)
    assert fit_scaling(SIZES, table, draws=50) == fit_scaling(SIZES, table, draws=50)
    assert fit_scaling(SIZES, table, draws=50) != fit_scaling(SIZES, table, draws=50, seed=1)
    backward = fit_scaling(SIZES[::-1], table[::-1], draws=50)
    assert backward.c == pytest.approx(fit_scaling(SIZES, table, draws=50).c, rel=1e-6)


@pytest.mark.parametrize(
    ("sizes", "table", "reason"),
    [
        (SIZES[:5], errors_of(1, 100, 0.4, sizes=SIZES[:5]), "at least 6 sizes"),
        ([500, 600, 700, 800, 900, 1000], errors_of(1, 100, 0.4, sizes=[500, 600, 700, 800, 900, 1000]), "at least 6 sizes"),
        (SIZES, errors_of(1, 100, 0.4, replicates=4), "with 5"),
        (SIZES, errors_of(10, 0, 0.4), "does not fall"),
        # A fall of one point under errors of 10 %.
        (SIZES, errors_of(10, 15, 0.4, spread=0.03), "interval of c"),
        # One size that stands above a constant: any steep c will do.
        (SIZES, errors_of(5, 1e7, 2.5, spread=0.02), "search does"),
        # A step is no power law.
        (SIZES, np.repeat([[30.0], [30.0], [30.0], [3.0], [3.0], [3.0]], 5, axis=1) + np.arange(5) / 50, "do not lie"),
    ],
)
def test_not_identified_is_a_result_with_a_reason(sizes: list[int], table: Any, reason: str) -> None:
    found = fit_scaling(sizes, table, draws=200)
    assert not found.identified
    assert reason in found.reason


def test_differences_of_slope_are_paired() -> None:
    random = errors_of(1.0, 100.0, 0.4, seed=3)
    # The same replicates with their noise: nothing but the law differs.
    noise = random / (1.0 + 100.0 * np.array(SIZES, dtype=float) ** -0.4)[:, None]
    steeper = (1.0 + 200.0 * np.array(SIZES, dtype=float) ** -0.5)[:, None] * noise
    found = slope_difference(SIZES, steeper, random, draws=300)
    assert found.finding == "steeper" and found.difference == pytest.approx(0.1, abs=0.04)
    assert slope_difference(SIZES, random, steeper, draws=300).finding == "shallower"
    same = slope_difference(SIZES, 1.1 * random, random, draws=300)
    assert same.finding == "no difference shown" and same.ci95 == pytest.approx((0, 0), abs=0.01)
    apart = slope_difference(SIZES, errors_of(1.1, 110.0, 0.4, seed=4), random, draws=300)
    width = same.ci95[1] - same.ci95[0]
    assert apart.ci95[1] - apart.ci95[0] > 3 * width


def test_a_slope_that_is_not_identified_is_not_compared() -> None:
    found = slope_difference(SIZES, errors_of(10, 0, 0.4), errors_of(1, 100, 0.4, seed=1), draws=100)
    assert found.finding == "not identified" and found.reason.startswith("arm: ")


@pytest.mark.parametrize(
    ("sizes", "table"),
    [
        (SIZES, np.ones((5, 5))), (SIZES[:3], np.ones((3, 5))), (SIZES, np.zeros((6, 5))), (SIZES, np.ones((6, 1))),
        ([500] * 6, np.ones((6, 5))), (SIZES, np.full((6, 5), np.nan)),
    ],
)  # fmt: skip
def test_tables_that_are_none_are_refused(sizes: list[int], table: Any) -> None:
    with pytest.raises(InputError):
        fit_scaling(sizes, table)


def test_envelope_takes_the_best_keep_at_each_size_and_says_what_choosing_adds() -> None:
    rng = np.random.default_rng(0)
    cells = {(600, keep): rng.normal(10, 0.5, 6) for keep in (0.01, 0.03, 0.1, 0.3)}
    cells |= {(1800, 0.1): rng.normal(5, 0.1, 6), (1800, 0.3): rng.normal(8, 0.1, 6)}
    small, large = envelope(cells)
    assert (small.kept, large.kept, large.keep) == (600, 1800, 0.1)
    assert small.error == min(float(row.mean()) for (m, _), row in cells.items() if m == 600)
    assert small.error < small.fair_error
    assert large.error == pytest.approx(large.fair_error)
    with pytest.raises(InputError, match="replicates"):
        envelope({(600, 0.1): np.ones(5), (600, 0.3): np.ones(4)})
