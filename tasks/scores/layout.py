"""Which rows of a tensor inside the model belong to which example: found by a probe, never assumed."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Layout(NamedTuple):
    """Say that row r of a tensor with before * examples * after rows belongs to example (r // after) % examples.

    (1, B, T) is the usual batch-first order, (T, B, 1) the sequence-first order inside attention.
    """

    before: int
    examples: int
    after: int


def by_example(values: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Return values (R, ...) as (examples, R / examples, ...)."""
    before, examples, after = layout
    tail = values.shape[1:]
    if before == 1:
        return values.reshape(examples, after, *tail)
    return values.reshape(before, examples, after, *tail).transpose(0, 1).reshape(examples, before * after, *tail)


Fits = frozenset[tuple[int, int]]
BASE = 16
"""Examples are told apart by the digits of their number, in as many probes as it has: factors stay below 2^16."""
# Below it squares lose digits in float32, and a length is no longer scaled exactly.
_SHORTEST = 2.0**-60


class Seen(NamedTuple):
    """Hold every (before, after) that a probe agrees with, none where it agrees with no layout, and the rows (R,) that told."""

    fits: Fits
    told: torch.Tensor


def digits_of(examples: int) -> torch.Tensor:
    """Return the digits (D, examples) of the examples' numbers, the lowest first."""
    places = [1]
    while places[-1] * BASE < examples:
        places.append(places[-1] * BASE)
    return torch.stack([torch.arange(examples) // place % BASE for place in places])


def fitting_layouts(plain: torch.Tensor, scaled: torch.Tensor, examples: int) -> Seen | None:
    """Return which layouts the rows of a probe agree with.

    `plain` (R,) are lengths of the rows of the gradient of sum_i f_i, f_i a function of example i, and `scaled` (D, R) of those
    of sum_i 2^digit f_i, digit by digit of `digits_of`: a row of example i is longer by its factor, and only if the model keeps
    examples apart. Rows of zeros, and those that overflow, say nothing; returns null where all are such.
    """
    rows = len(plain)
    if rows == 0 or rows % examples:
        return Seen(frozenset(), torch.zeros(rows, dtype=torch.bool, device=plain.device))
    told = (plain > _SHORTEST) & scaled.isfinite().all(0)
    if not told.any():
        return None
    ratio = scaled[:, told].double() / plain[told].double()
    digits = ratio.log2().round()
    if not bool(((ratio / 2**digits - 1).abs() <= 1e-3).all() and (digits >= 0).all()):
        return Seen(frozenset(), told)
    owner = sum(digit * BASE**place for place, digit in enumerate(digits.long()))
    number = torch.arange(rows, device=plain.device)[told]
    each = rows // examples
    fits = frozenset(
        (each // after, after)
        for after in range(1, each + 1)
        if each % after == 0 and bool(((number // after) % examples == owner).all())
    )
    return Seen(fits, told)
