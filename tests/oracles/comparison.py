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


def normal_cdf(x: float) -> float:
    """Return the standard normal's P(Z <= x)."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def dunnett_tail(limit: float, arms: int, degrees: float, pieces: int = 80) -> float:
    """Return P(max |T_a| > limit), all correlations 1/2, by Simpson's rule over Z_0 in [-7, 7] and S in (0, 4]."""

    def simpson(values: list[float], step: float) -> float:
        inner = sum((4 if i % 2 else 2) * values[i] for i in range(1, len(values) - 1))
        return (values[0] + values[-1] + inner) * step / 3

    log_norm = math.log(2) + degrees / 2 * math.log(degrees / 2) - math.lgamma(degrees / 2)

    def inside(s: float) -> float:
        reach, out = math.sqrt(2) * limit * s, []
        for i in range(pieces + 1):
            z = -7 + 14 * i / pieces
            density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
            out.append(density * (normal_cdf(z + reach) - normal_cdf(z - reach)) ** arms)
        return simpson(out, 14 / pieces)

    over = [0.0]
    for i in range(1, pieces + 1):
        s = 4 * i / pieces
        over.append(math.exp(log_norm + (degrees - 1) * math.log(s) - degrees * s * s / 2) * inside(s))
    return 1 - simpson(over, 4 / pieces)


def dunnett_paired(arms: Sequence[Sequence[float]], random: Sequence[float], level: float) -> list[tuple[float, float]]:
    """Return each arm's interval: the spread that all share, but no narrower than its own paired t."""
    count = len(random)
    differences = [[a - b for a, b in zip(arm, random, strict=True)] for arm in arms]
    means = [math.fsum(row) / count for row in differences]
    squares = [math.fsum((d - mean) ** 2 for d in row) / (count - 1) for row, mean in zip(differences, means)]
    shared = math.sqrt(math.fsum(squares) / len(arms) / count)
    degrees = (count - 1) * len(arms) / (1 + (len(arms) - 1) / 4)
    low, high = 1.0, 20.0
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if dunnett_tail(middle, len(arms), degrees) > level else (low, middle)
    out = []
    for arm, mean in zip(arms, means):
        own = paired_interval(arm, random, level)
        half = max(low * shared, (own[1] - own[0]) / 2)
        out.append((mean - half, mean + half))
    return out


def split_half(table: Sequence[Sequence[float]]) -> float:
    """Return the mean over all halves of the replicates, both ways, of what the best arm on one reached on the other."""
    numbers = range(len(table[0]))
    scores = []
    for chosen in combinations(numbers, len(numbers) // 2):
        halves = (set(chosen), set(numbers) - set(chosen))
        for choose, score in (halves, halves[::-1]):
            best = max(table, key=lambda arm: sum(arm[i] for i in choose) / len(choose))
            scores.append(sum(best[i] for i in score) / len(score))
    return sum(scores) / len(scores)
