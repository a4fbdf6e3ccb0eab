"""Slow, independent truth of calibrated selection: one full sort in plain Python, the hash in Python integers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction

MASK = 2**64 - 1


def hash64(domain: str, seed: int, example: int) -> int:
    """Return the keyed hash of one id."""
    digest = hashlib.blake2b(f"{domain}:{seed}".encode(), digest_size=24).digest()
    keys = [int.from_bytes(digest[i : i + 8], "little") for i in (0, 8, 16)]
    x = (example & MASK) ^ keys[0]
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & MASK
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & MASK
    x ^= x >> 31
    x = (x + keys[1]) & MASK
    x ^= x >> 33
    x = x * 0xFF51AFD7ED558CCD & MASK
    x ^= x >> 33
    x = x * 0xC4CEB9FE1A85EC53 & MASK
    x ^= x >> 33
    return x ^ keys[2]


@dataclass(frozen=True)
class Row:
    """Hold one selected example; the weight is a fraction, or a float where a power is taken."""

    example_id: int
    arm: str
    inclusion_prob: Fraction
    weight: Fraction | float


def rank(ids: list[int], scores: list[float], direction: str, seed: int) -> list[int]:
    """Return the ids from the kept end of the scores on."""
    sign = -1.0 if direction == "high" else 1.0
    rows = sorted(zip(ids, scores), key=lambda row: (sign * row[1], hash64("tie", seed, row[0]), row[0]))
    return [example for example, _ in rows]


def select(
    ids: list[int],
    scores: list[float],
    direction: str,
    keep: float,
    *,
    protocol: str,
    alpha: float,
    gamma: float | None,
    seed: int,
) -> list[Row]:
    """Return the selected rows in ascending id, by the table of methods.md."""
    n = len(ids)
    m = round(keep * n)
    k_signal = round(alpha * m)
    k_explore = m - k_signal
    order = rank(ids, scores, direction, seed)
    signal, complement = order[:k_signal], order[k_signal:]
    explore = sorted(complement, key=lambda example: (hash64("explore", seed, example), example))[:k_explore]
    probability = Fraction(k_explore, n - k_signal) if k_signal < n else Fraction(1)
    weight_signal: Fraction | float = Fraction(1)
    weight_explore: Fraction | float = Fraction(1)
    if protocol in ("exact", "random"):
        weight_signal = Fraction(m, n)
        weight_explore = Fraction(m, n) / probability if k_explore else Fraction(0)
    elif protocol == "tempered":
        assert gamma is not None
        factor = float(1 / probability) ** gamma if k_explore else 0.0
        weight_signal = m / (k_signal + k_explore * factor)
        weight_explore = weight_signal * factor
    rows = [Row(example, "signal", Fraction(1), weight_signal) for example in signal]
    rows += [Row(example, "exploration", probability, weight_explore) for example in explore]
    return sorted(rows, key=lambda row: row.example_id)


def quotas(m: int, sizes: list[int]) -> list[Fraction]:
    """Return the exact proportional shares, before any rounding."""
    return [Fraction(m * size, sum(sizes)) for size in sizes]
