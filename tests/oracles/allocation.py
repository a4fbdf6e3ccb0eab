"""Slow, independent truth of alpha by theory: the formula for every signal size, in fractions, and all possible draws."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, combinations, groupby


def complement_squares(scores: Sequence[float], norms: Sequence[float], direction: str) -> list[Fraction]:
    """Return the sum of norm^2 over the complement for every signal size 0..n, the mean over all orders of equal scores."""
    sign = -1.0 if direction == "high" else 1.0
    rows = sorted((sign * score, Fraction(norm)) for score, norm in zip(scores, norms))
    places: list[Fraction] = []
    for _, block in groupby(rows, key=lambda row: row[0]):
        squares = [norm * norm for _, norm in block]
        places += [sum(squares, Fraction(0)) / len(squares)] * len(squares)
    return list(accumulate(reversed(places), initial=Fraction(0)))[::-1]


def variances(folds: Sequence[tuple[Sequence[float], Sequence[float]]], kept: int, direction: str) -> list[Fraction]:
    """Return the bound of Var_exact for every signal size 0..m-1, each by the formula, summed over (scores, norms)."""
    n = len(folds[0][0])
    out = [Fraction(0)] * kept
    for scores, norms in folds:
        squares = complement_squares(scores, norms, direction)
        for signal in range(kept):
            explored, left = kept - signal, n - signal
            spread = squares[signal] / (left - 1) if left > 1 else Fraction(0)
            out[signal] += Fraction(left, n) ** 2 * (1 - Fraction(explored, left)) * spread / explored
    return out


def drawn_variance(ranked: Sequence[Sequence[Fraction]], signal: int, explored: int) -> Fraction:
    """Return the variance, summed over coordinates, of the estimated mean of vectors, over all draws of the exploration."""
    n, left = len(ranked), len(ranked) - signal
    weight = Fraction(left, explored)
    draws = list(combinations(range(signal, n), explored))
    total = Fraction(0)
    for axis in range(len(ranked[0])):
        fixed = sum((row[axis] for row in ranked[:signal]), Fraction(0))
        found = [(fixed + weight * sum((ranked[i][axis] for i in draw), Fraction(0))) / n for draw in draws]
        mean = sum(found, Fraction(0)) / len(draws)
        total += sum(((value - mean) ** 2 for value in found), Fraction(0)) / len(draws)
    return total
