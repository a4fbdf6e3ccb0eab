"""Slow, independent truth of class budgets and of the draws from a slice of the ranking: one full sort, plain Python."""

from __future__ import annotations

from fractions import Fraction

from tests.oracles.selection import Row, hash64, quotas, rank


def handed_out(m: int, sizes: list[int], seed: int) -> list[int]:
    """Return equal budgets: m handed out one at a time, group by group in the order of their hash, while there is room."""
    budgets = [0] * len(sizes)
    order = sorted(range(len(sizes)), key=lambda g: hash64("tie", seed, g))
    while m:
        for group in order:
            if m and budgets[group] < sizes[group]:
                budgets[group] += 1
                m -= 1
    return budgets


def in_proportion(m: int, sizes: list[int], seed: int) -> list[int]:
    """Return proportional budgets by largest remainder, equal remainders by hash."""
    shares = quotas(m, sizes)
    budgets = [int(share) for share in shares]
    order = sorted(range(len(sizes)), key=lambda g: (budgets[g] - shares[g], hash64("tie", seed, g)))
    for group in order[: m - sum(budgets)]:
        budgets[group] += 1
    return budgets


def class_budgets(classes: str | None, m: int, sizes: list[int], seed: int) -> list[int]:
    """Return the budget of each class, or m where there are no such budgets."""
    if classes is None:
        return [m]
    return handed_out(m, sizes, seed) if classes == "balanced" else in_proportion(m, sizes, seed)


def strata_of(scores: list[float], strata: int) -> list[int]:
    """Return the stratum of each score, in float64."""
    low, high = min(scores), max(scores)
    span = high / 2 - low / 2
    return [min(strata - 1, int((score / 2 - low / 2) / span * strata)) if span else 0 for score in scores]


def covered_smallest_first(m: int, sizes: list[int], seed: int) -> list[int]:
    """Return algorithm 1 of Zheng et al. (2023): take the smallest stratum, give it its share, go on with the others."""
    budgets = [0] * len(sizes)
    left = list(range(len(sizes)))
    while left:
        stratum = min(left, key=lambda h: (sizes[h], hash64("tie", seed, h)))
        budgets[stratum] = min(sizes[stratum], m // len(left))
        m -= budgets[stratum]
        left.remove(stratum)
    return budgets


def select(
    ids: list[int],
    scores: list[float],
    codes: list[int],
    direction: str,
    keep: float,
    *,
    beta: float,
    width: float | None,
    strata: int,
    classes: str | None,
    weighted: bool,
    seed: int,
) -> list[Row]:
    """Return the rows of ccs (`width` None) or band (`strata` 1) in ascending id."""
    n, m = len(ids), round(keep * len(ids))
    dropped = round(beta * n)
    order = rank(ids, scores, direction, seed)
    part = order[dropped:] if width is None else order[dropped : dropped + round(width * n)]
    score_of, code_of = dict(zip(ids, scores)), dict(zip(ids, codes))
    stratum_of = dict(zip(part, strata_of([score_of[example] for example in part], strata)))
    groups = max(codes, default=0) + 1 if classes is not None else 1
    group_of = {example: code_of[example] if classes is not None else 0 for example in part}
    shares = class_budgets(classes, m, [sum(group_of[e] == g for e in part) for g in range(groups)], seed)
    cells = []
    for group, share in enumerate(shares):
        members = [[e for e in part if group_of[e] == group and stratum_of[e] == h] for h in range(strata)]
        cells += list(zip(members, covered_smallest_first(share, [len(cell) for cell in members], seed)))
    spoken_for = sum(len(cell) for cell, budget in cells if budget)
    rows = []
    for cell, budget in cells:
        chosen = sorted(cell, key=lambda example: (hash64("explore", seed, example), example))[:budget]
        for example in chosen:
            probability = Fraction(budget, len(cell))
            weight = Fraction(m, spoken_for) / probability if weighted else Fraction(1)
            rows.append(Row(example, "exploration", probability, weight))
    return sorted(rows, key=lambda row: row.example_id)
