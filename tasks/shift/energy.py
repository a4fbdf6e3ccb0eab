"""Energy distance between the full split and a weighted subset of it, as an effect size."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tasks.hashing import I64

F64 = npt.NDArray[np.float64]

BLOCK_ROWS = 1024


def mean_within(x: npt.NDArray[np.float32], weight: F64) -> float | None:
    """Return the mean distance between two different rows of x (N, k), pairs weighted by the product of weights (N,).

    None where fewer than two rows have a weight.
    """
    own = np.arange(len(x))
    total = math.fsum(weight) ** 2 - math.fsum(weight * weight)
    if len(x) < 2 or total <= 0:
        return None
    return math.fsum(_sums(x, x, weight, weight, own)) / total


def mean_between(
    x: npt.NDArray[np.float32], x_id: I64, y: npt.NDArray[np.float32], y_id: I64, weight: F64
) -> float | None:
    """Return the mean distance between rows of x (N, k) and of y (M, k), weighted by weight (M,) of y.

    Pairs of one example, which the kept have with the sample, are left out: their distance of zero says nothing. Ids of y
    ascend. None where no pair is left.
    """
    at = np.minimum(np.searchsorted(y_id, x_id), len(y_id) - 1)
    own = np.where(y_id[at] == x_id, at, -1)
    total = len(x) * math.fsum(weight) - math.fsum(weight[own[own >= 0]])
    if total <= 0:
        return None
    return math.fsum(_sums(x, y, np.ones(len(x)), weight, own)) / total


def _sums(
    x: npt.NDArray[np.float32], y: npt.NDArray[np.float32], x_weight: F64, y_weight: F64, own: npt.NDArray[np.int64]
) -> Iterator[float]:
    """Yield, block by block of rows of x, the weighted sums of distances; that of row i to row own[i] of y is 0."""
    far, whole = y.astype(np.float64), x.astype(np.float64)
    far_squares = np.einsum("ij,ij->i", far, far)
    for start in range(0, len(x), BLOCK_ROWS):
        near = whole[start : start + BLOCK_ROWS]
        squares = np.einsum("ij,ij->i", near, near)[:, None] + far_squares - 2.0 * (near @ far.T)
        distance = np.sqrt(np.maximum(squares, 0.0, out=squares), out=squares)
        same = own[start : start + BLOCK_ROWS]
        rows = np.flatnonzero(same >= 0)
        distance[rows, same[rows]] = 0.0
        yield float(x_weight[start : start + BLOCK_ROWS] @ (distance @ y_weight))


def energy_coefficient(between: float | None, within: float | None, other: float | None) -> float | None:
    """Return (2 E|X-Y| - E|X-X'| - E|Y-Y'|) / (2 E|X-Y|): 0 for one law, towards 1 for laws far apart.

    From means over different examples, so its expectation is 0 for a random draw, and a draw may be slightly below. The
    coefficient of inhomogeneity of Szekely & Rizzo 2013. None where a mean is, or where all examples are one point.
    """
    if between is None or within is None or other is None or between <= 0:
        return None
    return (2.0 * between - within - other) / (2.0 * between)
