"""Replicates made up for comparisons: arms, tables of test examples, differences with a given interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import stats

from tasks.comparison import Comparison, Sample, compare_with_random

BASE = np.array([90.0, 90.4, 89.8, 90.1, 90.2, 90.3])


def sample(accuracy: Any, correct: Any = None, by_class: Any = None) -> Sample:
    """Return an arm."""
    return Sample(np.asarray(accuracy, dtype=float), correct, by_class)


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


def differences_with_interval(low: float, high: float, *, level: float = 0.05) -> list[float]:
    """Return six differences whose plain interval that misses with probability `level` is [low, high]."""
    shape = np.array([-1.0, -0.6, -0.2, 0.2, 0.6, 1.0])
    half = stats.t.ppf(1 - level / 2, 5) * shape.std(ddof=1) / math.sqrt(6)
    return list((low + high) / 2 + shape * (high - low) / 2 / half)
