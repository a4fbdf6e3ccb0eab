"""A slow, independent truth for races: exact fractions, and who stays found by counting who is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

Known = Mapping[tuple[str, int], float]


def better_than(name: str, other: str, order: Sequence[str], means: Mapping[str, Fraction]) -> bool:
    """Return whether one candidate comes before another: by its mean, then by its place in the family."""
    if means[name] != means[other]:
        return means[name] > means[other]
    return order.index(name) < order.index(other)


def survivors(names: Sequence[str], rungs: Sequence[int], stay: Fraction, known: Known) -> list[list[str]]:
    """Return who stays after each rung, in the family's order; accuracies are exact decimals of at most nine digits."""
    out = []
    alive = list(names)
    for number, replicates in enumerate(rungs):
        means = {}
        for name in alive:
            total = Fraction(0)
            for one in range(replicates):
                total += Fraction(str(known[name, one])) - Fraction(str(known["random", one]))
            means[name] = total / replicates
        places = 1 if number == len(rungs) - 1 else max(1, -(-stay.numerator * len(alive) // stay.denominator))
        alive = [name for name in alive if sum(better_than(other, name, names, means) for other in alive) < places]
        out.append(alive)
    return out


def winner_of(names: Sequence[str], rungs: Sequence[int], stay: Fraction, known: Known) -> str | None:
    """Return who wins the race, None where the best is not above random."""
    last = survivors(names, rungs, stay, known)[-1][0]
    total = sum((Fraction(str(known[last, one])) - Fraction(str(known["random", one])) for one in range(rungs[-1])), Fraction(0))
    return last if total > 0 else None
