"""Sums of floats without rounding: the same for any order and any split of the numbers."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import numpy.typing as npt

_MANTISSA = 53
_HALF = 26


class ExactSum:
    """Add finite float64 numbers as whole numbers of each binary exponent; rounded once, when the value is asked for."""

    def __init__(self) -> None:
        self._wholes: Counter[int] = Counter()

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Take in values (N,), N at most 2^26: sums of half mantissas are then exact in float64."""
        if not len(values):
            return
        mantissa, exponent = np.frexp(values)
        whole = np.ldexp(mantissa, _MANTISSA).astype(np.int64)
        lowest = int(exponent.min())
        place = exponent - lowest
        high = np.bincount(place, weights=(whole >> _HALF).astype(np.float64))
        low = np.bincount(place, weights=(whole & (2**_HALF - 1)).astype(np.float64))
        for at in np.flatnonzero((high != 0) | (low != 0)).tolist():
            self._wholes[lowest + at] += (int(high[at]) << _HALF) + int(low[at])

    def merge(self, other: ExactSum) -> None:
        """Take in another sum."""
        for exponent, whole in other._wholes.items():
            self._wholes[exponent] += whole

    @property
    def value(self) -> float:
        """Return the sum, correctly rounded."""
        exact = sum((whole * Fraction(2) ** (exponent - _MANTISSA) for exponent, whole in self._wholes.items()), Fraction(0))
        return float(exact)
