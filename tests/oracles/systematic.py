"""Slow, independent truth of sampling in proportion to size: exact fractions throughout, the points walked one by one."""

from __future__ import annotations

from fractions import Fraction

from tests.oracles.selection import Row, hash64


def probabilities(scores: list[float], m: int, floor: float) -> list[Fraction]:
    """Return pi_i = min(1, c x_i) with sum m, x_i = (1 - floor) s_i + floor mean(s): the greatest become certain in turn."""
    exact = [Fraction(score) for score in scores]
    if not any(exact):
        # All of one size, as scores of any one value are.
        exact = [Fraction(1)] * len(exact)
    mean = sum(exact) / len(exact)
    sizes = [(1 - Fraction(floor)) * score + Fraction(floor) * mean for score in exact]
    certain: set[int] = set()
    while len(certain) < m:
        rest = [i for i in range(len(sizes)) if i not in certain]
        factor = (m - len(certain)) / sum(sizes[i] for i in rest)
        more = {i for i in rest if sizes[i] * factor >= 1}
        if not more:
            return [Fraction(1) if i in certain else sizes[i] * factor for i in range(len(sizes))]
        certain |= more
    return [Fraction(int(i in certain)) for i in range(len(sizes))]


def select(ids: list[int], scores: list[float], keep: float, *, floor: float, seed: int) -> list[Row]:
    """Return the rows in ascending id: certain ones, and those in which a point falls, in hash order from one start."""
    m = round(keep * len(ids))
    chance = dict(zip(ids, probabilities(scores, m, floor)))
    rows = [Row(example, "signal", Fraction(1), Fraction(m, len(ids))) for example, pi in chance.items() if pi == 1]
    point = Fraction(hash64("start", seed, 0) % 2**52, 2**52)
    end = Fraction(0)
    # A point u falls into [0, 1) of the line: the unit whose length first passes 1 - u holds it, and so on, one by one.
    next_point = 1 - point
    for example in sorted((e for e, pi in chance.items() if pi < 1), key=lambda e: hash64("explore", seed, e)):
        end += chance[example]
        if end >= next_point:
            rows.append(Row(example, "exploration", chance[example], Fraction(m, len(ids)) / chance[example]))
            next_point += 1
    return sorted(rows, key=lambda row: row.example_id)
