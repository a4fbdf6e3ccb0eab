"""The winner's curse and its cure by split halves."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.errors import InputError
from tasks.comparison.hindsight import hindsight_best
from tests.oracles import comparison as oracle


@pytest.mark.parametrize("replicates", [2, 3, 5, 6])
def test_split_half_equals_the_oracle(replicates: int) -> None:
    table = np.random.default_rng(replicates).normal(90, 1, (4, replicates))
    found = hindsight_best(table)
    assert found.split_half == pytest.approx(oracle.split_half(table.tolist()))
    assert found.naive == pytest.approx(table.mean(axis=1).max())


def test_25_equal_arms_with_5_seeds() -> None:
    # methods.md: +0.4 points by naive choice. 0.45 points is the spread of one training there.
    rng = np.random.default_rng(1)
    spread, draws = 0.45, 2000
    found = [hindsight_best(rng.normal(0, spread, (25, 5))) for _ in range(draws)]
    # The largest of 25 standard normals is 1.965 on average.
    assert np.mean([one.naive for one in found]) == pytest.approx(1.965 * spread / 5**0.5, abs=0.01)
    assert np.mean([one.naive for one in found]) == pytest.approx(0.4, abs=0.02)
    assert np.mean([one.split_half for one in found]) == pytest.approx(0.0, abs=0.015)
    assert np.mean([one.curse for one in found]) == pytest.approx(0.4, abs=0.02)


def test_a_truly_best_arm_keeps_its_gain() -> None:
    rng = np.random.default_rng(2)
    table = rng.normal(0, 0.3, (400, 6, 8))
    table[:, 2] += 2.0
    assert np.mean([hindsight_best(one).split_half for one in table]) == pytest.approx(2.0, abs=0.02)


def test_many_replicates_draw_their_splits_by_a_seed() -> None:
    table = np.random.default_rng(3).normal(90, 1, (5, 24))
    first = hindsight_best(table)
    assert first.splits == 2000
    assert first == hindsight_best(table, seed=0)
    assert first != hindsight_best(table, seed=1)
    assert first.split_half == pytest.approx(hindsight_best(table, seed=1).split_half, abs=0.1)


@pytest.mark.parametrize("shape", [(0, 5), (3, 1), (4,)])
def test_tables_that_cannot_be_split_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="two replicates"):
        hindsight_best(np.zeros(shape))
