"""Ten thousand draws of the shipped code: each estimate's mean is its target, and the variance of pps what theory says."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from tasks.selection import SelectionSpec, calibrated_selection
from tasks.selection.rows import ArrayRows

F64 = npt.NDArray[np.float64]

N, DRAWS = 48, 10_000
# Passed by chance once in 15,000, and the seeds are fixed.
SIGMAS = 4.0


def population() -> tuple[ArrayRows, F64]:
    """Return rows with skewed scores, and a value that goes with the score, but not all the way."""
    generator = np.random.default_rng(21)
    score = generator.random(N) ** 2
    return ArrayRows(np.arange(N, dtype=np.int64), score), 1 + 2 * score + generator.random(N)


def simulate(rows: ArrayRows, chosen: SelectionSpec, value: F64) -> tuple[F64, F64, F64]:
    """Return the estimated means of many seeds (DRAWS,), how often each row was drawn (N,), and its probability (N,).

    The probability of a row that is never drawn is 0.
    """
    estimates, drawn, chance = np.empty(DRAWS), np.zeros(N), np.zeros(N)
    for seed in range(DRAWS):
        table = calibrated_selection(rows, chosen, seed)
        # One group, and one weight for either arm, unless the table says more.
        group = getattr(table, "explore_group", None)
        group = 0 if group is None else group
        by_row = getattr(table, "explore_prob", None)
        weight = table.design.explore_weight[group] if by_row is None else table.explore_weight
        explored, signal = table.explore_id, table.signal_id
        chance[explored] = table.design.explore_prob[group] if by_row is None else by_row
        chance[signal] = 1
        drawn[explored] += 1
        drawn[signal] += 1
        total = (value[explored] * weight).sum() + value[signal].sum() * table.design.signal_weight[0]
        # Weights are d times m/n of what they speak for: a mean over the m drawn is the estimate of the mean.
        estimates[seed] = total / table.num_rows
    return estimates, drawn, chance


@pytest.mark.parametrize(
    "chosen",
    [
        SelectionSpec(protocol="exact", score="el2n", alpha=0.4, keep=0.25),
        SelectionSpec(protocol="ccs", score="el2n", beta=0.15, strata=5, weights="ht", keep=0.25),
        SelectionSpec(protocol="pps", score="el2n", keep=0.25),
    ],
    ids=["exact", "ccs", "pps"],
)
def test_the_estimate_is_unbiased_and_rows_are_drawn_as_often_as_stated(chosen: SelectionSpec) -> None:
    rows, value = population()
    assert rows.score is not None
    estimates, drawn, chance = simulate(rows, chosen, value)
    # What ccs drops, no weight speaks for: it is unbiased for the retained alone.
    target = np.sort(rows.score)[: N - round(0.15 * N)] if chosen.protocol == "ccs" else rows.score
    retained = np.isin(rows.score, target)
    assert ((chance > 0) == retained).all()
    z = (estimates.mean() - value[retained].mean()) / (estimates.std(ddof=1) / math.sqrt(DRAWS))
    assert abs(z) < SIGMAS
    if chosen.protocol == "ccs":
        # And far from the mean of all, were it read as that.
        assert abs(estimates.mean() - value.mean()) > 20 * estimates.std() / math.sqrt(DRAWS)
    free = (chance > 0) & (chance < 1)
    z_each = (drawn[free] / DRAWS - chance[free]) / np.sqrt(chance[free] * (1 - chance[free]) / DRAWS)
    # The largest of 48 normal deviates passes 4.5 once in 3,000.
    assert np.abs(z_each).max() < 4.5
    assert (drawn[chance == 1] == DRAWS).all()
    if chosen.protocol == "pps":
        assert estimates.var(ddof=1) == pytest.approx(hartley_rao(value, chance), rel=0.1)


def hartley_rao(value: F64, chance: F64) -> float:
    """Return the variance of the estimated mean under systematic sampling in random order (Hartley & Rao 1962, eq. 5.15).

    To the order 1/N: sum over the units that are not certain of pi (1 - (m-1)/m pi) (y/pi - Y/m)^2, over N^2.
    """
    free = chance < 1
    y, pi = value[free], chance[free]
    m = pi.sum()
    return float((pi * (1 - (m - 1) / m * pi) * (y / pi - y.sum() / m) ** 2).sum()) / N**2
