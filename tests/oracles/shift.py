"""Slow truths about distribution shift: counting, every pair of points, every pair of scores."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from fractions import Fraction


def total_variation(kept: Sequence[Hashable], weights: Sequence[float], full: Sequence[Hashable]) -> float:
    """Return the greatest difference that any set of cells has under the two laws, by trying all sets."""
    cells = sorted({*kept, *full}, key=repr)
    counts = Counter(full)
    mass = {cell: sum(Fraction(w) for own, w in zip(kept, weights) if own == cell) for cell in cells}
    whole = sum(mass.values())
    gaps = [mass[cell] / whole - Fraction(counts[cell], len(full)) for cell in cells]
    best = max(
        sum((gaps[i] for i in chosen), Fraction(0))
        for size in range(len(cells) + 1)
        for chosen in itertools.combinations(range(len(cells)), size)
    )
    return float(best)


def energy(
    full: Sequence[Sequence[float]], full_id: Sequence[int], kept: Sequence[Sequence[float]], kept_id: Sequence[int],
    weights: Sequence[float],
) -> float:
    """Return the energy coefficient from every pair of different examples."""
    between = _mean((math.dist(x, y), w) for x, i in zip(full, full_id) for y, j, w in zip(kept, kept_id, weights) if i != j)
    within = _mean((math.dist(x, y), 1.0) for i, x in enumerate(full) for j, y in enumerate(full) if i != j)
    other = _mean(
        (math.dist(x, y), v * w)
        for i, (x, v) in enumerate(zip(kept, weights))
        for j, (y, w) in enumerate(zip(kept, weights))
        if i != j
    )
    return (2 * between - within - other) / (2 * between)


def _mean(pairs: object) -> float:
    found = list(pairs)  # type: ignore[call-overload]
    return math.fsum(value * weight for value, weight in found) / math.fsum(weight for _, weight in found)


def area(score: Sequence[float], positive: Sequence[bool], weight: Sequence[float]) -> float:
    """Return the weighted share of pairs in which the positive is above the negative, ties a half."""
    won = whole = 0.0
    for s, p, v in zip(score, positive, weight):
        for t, q, w in zip(score, positive, weight):
            if p and not q:
                whole += v * w
                won += v * w * (1.0 if s > t else 0.5 if s == t else 0.0)
    return won / whole


def empty(full: Sequence[int], kept: Sequence[int]) -> tuple[int, float]:
    """Return how many cells of the full hold no kept example, and the share of the full in them."""
    gone = set(full) - set(kept)
    return len(gone), sum(cell in gone for cell in full) / len(full)
