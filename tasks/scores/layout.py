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


def fitting_layouts(plain: torch.Tensor, scaled: torch.Tensor, scales: torch.Tensor) -> Fits | None:
    """Return every (before, after) that the rows agree with, none where they agree with no layout.

    `plain` (R, W) is the gradient of sum_i f_i, `scaled` that of sum_i scales[i] f_i, f_i a function of example i: rows
    of example i differ by the factor scales[i], and only if the model keeps examples apart. Rows of zeros say nothing;
    returns null where all are.
    """
    examples, rows = len(scales), len(plain)
    if rows == 0 or rows % examples:
        return frozenset()
    size = plain.abs().amax(1)
    told = size > 0
    if not told.any():
        return None
    # (R, examples): how far each row is from belonging to each example.
    distance = torch.stack([(scaled - scale * plain).abs().amax(1) / (scale * size) for scale in scales], 1)
    best, owner = distance[told].min(1)
    if not bool((best <= 1e-3).all()):
        return frozenset()
    number = torch.arange(rows, device=plain.device)[told]
    each = rows // examples
    return frozenset(
        (each // after, after)
        for after in range(1, each + 1)
        if each % after == 0 and bool(((number // after) % examples == owner).all())
    )
