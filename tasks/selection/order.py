"""The one order of examples: by score in its kept direction, as unsigned integers whose order is the floats' order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import InputError

U64 = npt.NDArray[np.uint64]

_LOWEST = np.int64(-(2**63))
_EXACT = 2**53
DIGIT_BITS = 16
DIGITS = 1 << DIGIT_BITS


def words_of(values: npt.NDArray[Any]) -> tuple[U64, int]:
    """Return (words as `sortable_bits` gives them, how many values are NaN); the words of NaN mean nothing."""
    if values.dtype.kind in "iu":
        check_exact(values)
    elif values.dtype.kind not in "iufb":
        raise InputError(f"scores are {values.dtype}: only numbers have an order; name a numeric column")
    # Adding 0.0 makes 0.0 of -0.0 and widens in one pass.
    wide_values = np.add(values, 0.0, dtype=np.float64)
    missing = int(np.count_nonzero(np.isnan(wide_values)))
    bits = wide_values.view(np.int64)
    # Negative floats: all bits flipped. Others: the sign bit alone.
    mask = bits >> np.int64(63)
    mask |= _LOWEST
    bits ^= mask
    return bits.view(np.uint64), missing


def check_exact(values: npt.NDArray[Any]) -> None:
    """Raise InputError where some of the integers lie beyond 2^53, which float64 cannot tell apart."""
    if values.dtype.itemsize < 8 or not values.size:
        return
    low, high = int(values.min()), int(values.max())
    if max(high, -low) > _EXACT:
        raise InputError(
            f"scores hold integers beyond 2^53, {high if high > _EXACT else low} for example: their order is lost in float64; "
            "give smaller integers or floats"
        )


def refuse_missing(missing: int, rows: int) -> None:
    """Raise InputError where some of the scores of `rows` examples are NaN."""
    if missing:
        raise InputError(
            f"{missing} of {rows} scores are NaN or null: they have no place in an order; mend the scores, or "
            "set missing to exclude or explore"
        )


def sortable_bits(values: npt.NDArray[Any]) -> U64:
    """Return uint64 words (N,) in the order of the values (N,): a < b exactly where word(a) < word(b).

    Floats and integers, taken as float64; -0.0 and 0.0 are one value, infinities are the ends. Raises InputError, with
    a count, on NaN, and on integers beyond 2^53, which float64 cannot tell apart.
    """
    words, missing = words_of(values)
    refuse_missing(missing, values.size)
    return words


def value_of(word: int) -> float:
    """Return the float64 whose sortable word is `word`."""
    bits = word ^ (1 << 63) if word >> 63 else word ^ (2**64 - 1)
    return float(np.array([bits], dtype=np.uint64).view(np.float64)[0])


def kept_first(values: npt.NDArray[Any], direction: str) -> tuple[U64, int]:
    """Return (words (N,) uint64, smallest at the end that is kept; number of NaN). `direction` is high or low."""
    words, missing = words_of(values)
    return (np.invert(words, out=words) if direction == "high" else words), missing


def kept_first_counts(sortable: Mapping[Any, int], direction: str) -> npt.NDArray[np.int64]:
    """Return counts (65536,) of the top 16 bits of `kept_first`, from sparse counts of those of `sortable_bits`."""
    counts = np.zeros(DIGITS, dtype=np.int64)
    for digit, count in sortable.items():
        counts[int(digit)] = count
    return counts[::-1].copy() if direction == "high" else counts
