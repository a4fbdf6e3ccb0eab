"""Slow, independent truths for comparisons: no scipy, no vector arithmetic, definitions written out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations


def t_density(x: float, degrees: float) -> float:
    """Return the density of Student's t."""
    log = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    return math.exp(log - (degrees + 1) / 2 * math.log1p(x * x / degrees))


def t_inside(limit: float, degrees: float, pieces: int = 4000) -> float:
    """Return P(-limit < T < limit) by Simpson's rule."""
    step = limit / pieces
    total = t_density(0.0, degrees) + t_density(limit, degrees)
    total += sum((4 if i % 2 else 2) * t_density(i * step, degrees) for i in range(1, pieces))
    return 2 * total * step / 3


def t_critical(level: float, degrees: float) -> float:
    """Return c with P(|T| > c) = level, by bisection."""
    low, high = 0.0, 400.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if t_inside(middle, degrees) < 1 - level else (low, middle)
    return low


def paired_interval(first: Sequence[float], second: Sequence[float], level: float) -> tuple[float, float]:
    """Return the paired t interval of mean(first - second)."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    count = len(differences)
    mean = math.fsum(differences) / count
    variance = math.fsum((d - mean) ** 2 for d in differences) / (count - 1)
    half = t_critical(level, count - 1) * math.sqrt(variance / count)
    return mean - half, mean + half


def holm_rejections(p_values: Sequence[float], level: float) -> set[int]:
    """Return what Holm rejects, as the closure of Bonferroni tests: i falls when every set with i in it does."""
    numbers = range(len(p_values))
    subsets = [set(chosen) for size in range(1, len(p_values) + 1) for chosen in combinations(numbers, size)]
    falls = [(chosen, min(p_values[i] for i in chosen) <= level / len(chosen)) for chosen in subsets]
    return {i for i in numbers if all(fell for chosen, fell in falls if i in chosen)}


def two_way_variance(table: Sequence[Sequence[float]]) -> float:
    """Return the variance of the grand mean of a crossed layout (rows x columns), by its mean squares.

    V = (MS_rows + MS_columns - MS_residual) / (R T), never below what rows or columns alone give.
    """
    rows, columns = len(table), len(table[0])
    grand = sum(map(sum, table)) / (rows * columns)
    by_row = [sum(row) / columns for row in table]
    by_column = [sum(table[r][c] for r in range(rows)) / rows for c in range(columns)]
    ms_rows = columns * sum((m - grand) ** 2 for m in by_row) / (rows - 1)
    ms_columns = rows * sum((m - grand) ** 2 for m in by_column) / (columns - 1)
    residual = sum(
        (table[r][c] - by_row[r] - by_column[c] + grand) ** 2 for r in range(rows) for c in range(columns)
    ) / ((rows - 1) * (columns - 1))
    return max(ms_rows + ms_columns - residual, ms_rows, ms_columns) / (rows * columns)
