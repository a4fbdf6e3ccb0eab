"""Slow, independent truth of subsets that change: every epoch one full sort in plain Python."""

from __future__ import annotations

import hashlib
from fractions import Fraction

from tests.oracles.selection import hash64, rank


def seed_of(seed: int, epoch: int) -> int:
    """Return the seed of an epoch's draw: the selection's in the first, then 63 bits of SHA-256 of both."""
    if epoch == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"epoch/{seed}/{epoch}".encode()).digest()[:8], "big") >> 1


def epoch(
    ids: list[int], scores: list[float], direction: str, keep: float, alpha: float, seed: int, number: int
) -> dict[int, Fraction]:
    """Return {id: weight} of an epoch's subset: the signal, and k_E of the rest by the epoch's own hash."""
    n = len(ids)
    m = round(keep * n)
    k_signal = round(alpha * m)
    order = rank(ids, scores, direction, seed)
    signal, rest = order[:k_signal], order[k_signal:]
    own = seed_of(seed, number)
    explored = sorted(rest, key=lambda example: hash64("explore", own, example))[: m - k_signal]
    weights = dict.fromkeys(signal, Fraction(m, n))
    return weights | dict.fromkeys(explored, Fraction(m, n) * Fraction(n - k_signal, m - k_signal))
