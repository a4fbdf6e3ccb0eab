"""Slow, independent truth of prototypes: Lloyd's algorithm in plain Python, and medoids by exact fractions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from tests.oracles.selection import hash64

Row = Sequence[float]


def lloyd(rows: Sequence[Row], centres: Sequence[Row], passes: int = 1000) -> list[int]:
    """Return the cluster of each row: rows go to the nearest centre, centres to the mean of their rows, until none moves."""
    at = [[float(value) for value in centre] for centre in centres]
    labels: list[int] = []
    for _ in range(passes):
        found = [min(range(len(at)), key=lambda c: (squared(row, at[c]), c)) for row in rows]
        if found == labels:
            break
        labels = found
        for cluster in range(len(at)):
            members = [row for row, label in zip(rows, labels) if label == cluster]
            if members:
                at[cluster] = [sum(column) / len(members) for column in zip(*members)]
    return labels


def squared(row: Row, centre: Row) -> float:
    """Return the squared distance of two points."""
    return sum((a - b) ** 2 for a, b in zip(row, centre))


def medoid(rows: Sequence[Row], ids: Sequence[int], seed: int) -> int:
    """Return the id of the row nearest to the mean of all, in exact arithmetic; equally near ones by hash."""
    exact = [[Fraction(value) for value in row] for row in rows]
    mean = [sum(column, Fraction(0)) / len(rows) for column in zip(*exact)]
    away = [sum((a - b) ** 2 for a, b in zip(row, mean)) for row in exact]
    return min(zip(away, (hash64("tie", seed, example) for example in ids), ids))[2]


def prototypes(rows: Sequence[Row], ids: Sequence[int], labels: Sequence[int], budget: int, seed: int) -> list[int]:
    """Return the ids of the prototypes, ascending, given the cluster of each row."""
    chosen = set()
    for cluster in set(labels):
        inside = [place for place, label in enumerate(labels) if label == cluster]
        chosen.add(medoid([rows[place] for place in inside], [ids[place] for place in inside], seed))
    left = sorted((example for example in ids if example not in chosen), key=lambda example: hash64("explore", seed, example))
    return sorted([*chosen, *left[: budget - len(chosen)]])


def principal(rows: Sequence[Row], count: int, turns: int = 2000) -> list[list[float]]:
    """Return the first principal components of the rows, up to their sign, by power iteration with deflation."""
    means = [sum(column) / len(rows) for column in zip(*rows)]
    rest = [[value - mean for value, mean in zip(row, means)] for row in rows]
    out: list[list[float]] = [[] for _ in rows]
    for number in range(count):
        axis = [1.0 + (number + 1) * place % 7 for place in range(len(means))]
        for _ in range(turns):
            along = [sum(a * b for a, b in zip(row, axis)) for row in rest]
            axis = [sum(a * row[place] for a, row in zip(along, rest)) for place in range(len(means))]
            length = sum(value * value for value in axis) ** 0.5
            axis = [value / length for value in axis]
        along = [sum(a * b for a, b in zip(row, axis)) for row in rest]
        for row, a, found in zip(rest, along, out):
            found.append(a)
            row[:] = [value - a * part for value, part in zip(row, axis)]
    return out
