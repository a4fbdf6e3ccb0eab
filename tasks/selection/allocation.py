"""Alpha by theory: how protocol `exact` divides its budget so that the design variance of the mean gradient is least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cluster.errors import CorruptError, InputError
from tasks.hashing import I64
from tasks.selection.exact_sum import ExactSum
from tasks.selection.order import U64, kept_first, refuse_missing
from tasks.selection.rows import over_pieces
from tasks.selection.threshold import Bounds, Counted, KeyedRows, counted

F64 = npt.NDArray[np.float64]

FLAT = 0.05
"""Share above the least variance within which an alpha counts as no worse."""

_CURVE_POINTS = 200
# Rows beyond the threshold's that may be sorted with the top: 16 bytes each.
_OPEN_ROWS = 2**18


@dataclass(frozen=True)
class Pair:
    """Hold some rows: the score (N,) that ranks them and the gradient norm (N,), any numeric dtypes."""

    score: npt.NDArray[Any]
    norm: npt.NDArray[Any]


class PairRows(Protocol):
    """Give the rows of a table, as often as asked, in pieces of at most 2^26 rows that may be read in any order."""

    @property
    def num_rows(self) -> int: ...

    def pieces(self) -> Sequence[Any]: ...

    def read(self, piece: Any) -> Iterator[Pair]: ...


@dataclass(frozen=True)
class Allocation:
    """Hold the division of least variance, and the curve it was found on.

    `signal` is k_S*, alpha* = k_S* / m. `ratio` is Var(alpha*)/Var_random, None where no design has any variance.
    `flat` is the stretch of alphas around alpha* whose variance is within FLAT of the least, one of `stretches`. `curve`
    samples (alpha, Var(alpha)/Var_random) evenly, alpha* among them.
    """

    n: int
    kept: int
    signal: int
    ratio: float | None
    flat: tuple[float, float]
    stretches: int
    curve: list[tuple[float, float]]

    @property
    def alpha(self) -> float:
        """Return alpha*; round(alpha* m) is k_S*."""
        return self.signal / self.kept

    def facts(self) -> dict[str, Any]:
        """Return what the record of a selection says of it."""
        return {
            "alpha": self.alpha,
            "ratio": self.ratio,
            "flat": list(self.flat),
            "flat_within": FLAT,
            "flat_stretches": self.stretches,
        }

    def drawn(self) -> list[list[float]]:
        """Return the curve as a record holds it, for drawing: [alpha, ratio] in six digits."""
        return [[float(f"{alpha:.6g}"), float(f"{ratio:.6g}")] for alpha, ratio in self.curve]


def allocate(folds: Sequence[PairRows], kept: int, direction: str, threads: int = 1) -> Allocation:
    """Return the k_S in 0..m-1 of least Var_exact for m = `kept`, from the whole curve; the smallest of equals.

    With N = n - k_S and S2_C bounded by the second moment of the norm over the complement,
    Var_exact(k_S) <= (n - k_S)(n - m) / (n^2 (m - k_S)) * sum_C norm^2 / (N - 1). The divisor N - 1 is that of the exact
    variance, so this is a bound for every n. The boundary rule of take-all strata (Hidiroglou 1986) finds its minimum only
    where the ranking is by the norm itself, so every k_S is looked at.

    Each fold ranks the same n rows by one thing and measures the norm by another (cross-fitting); their sums of squares are
    added. Rows of equal score take their places in random order, and the curve is the mean over these orders. So the result
    depends on the values alone: not on ids, seeds, shards, threads or the order of rows. A fold costs two to five passes and
    holds m rows in memory, about 64 bytes each.

    Raises InputError on scores or norms that are not finite, and on negative norms.
    """
    n = folds[0].num_rows
    if not 1 <= kept <= n:
        raise InputError(f"a budget of {kept} among {n} examples; it lies between 1 and {n}")
    left = np.zeros(kept)
    for rows in folds:
        if rows.num_rows != n:
            raise CorruptError(f"one fold has {n} rows, another {rows.num_rows}: they are of one table")
        left += _left_squares(rows, kept, direction, threads)
    if kept == n or left[0] == 0:
        return Allocation(n, kept, 0, None, (0.0, (kept - 1) / kept), 1, [])
    signal = np.arange(kept)
    left *= (n - signal) / (n - signal - 1.0) / (kept - signal)
    left /= left[0]
    return _allocation(n, kept, left)


def _allocation(n: int, kept: int, ratios: F64) -> Allocation:
    best = int(ratios.argmin())
    near = ratios <= ratios[best] * (1 + FLAT)
    edges = np.flatnonzero(np.diff(near)) + 1
    stretches = int(near[0]) + int(np.count_nonzero(near[edges]))
    before = int(np.searchsorted(edges, best, side="right"))
    low = int(edges[before - 1]) if before else 0
    high = int(edges[before]) - 1 if before < len(edges) else kept - 1
    shown = np.unique(np.append(np.linspace(0, kept - 1, _CURVE_POINTS).round().astype(np.int64), best)).tolist()
    curve = [(at / kept, float(ratios[at])) for at in shown]
    return Allocation(n, kept, best, float(ratios[best]), (low / kept, high / kept), stretches, curve)


def _left_squares(rows: PairRows, kept: int, direction: str, threads: int) -> F64:
    """Return the sum of norm^2 over the complement for every k_S in 0..m-1 (m,)."""
    bounds = _threshold(rows, kept, direction, threads)
    # One key throughout: these rows are a block of equals, which need not be told apart.
    block = bool(bounds.low_key[0] == bounds.high_key[0])
    capacity = kept - int(bounds.rank[0]) + (0 if block else int(bounds.inside[0]))
    if bounds.rank[0] == bounds.inside[0]:
        capacity = kept
    keys, squares = np.empty(capacity, dtype=np.uint64), np.empty(capacity)
    filled = seen = equals = 0
    equal_squares, rest = ExactSum(), ExactSum()
    work = partial(_divide, bounds=bounds, block=block, direction=direction)
    for found in over_pieces(rows.pieces(), rows.read, work, threads):
        seen += found.rows
        equals += found.equals
        equal_squares.merge(found.equal_squares)
        rest.merge(found.rest)
        for key, square in found.top:
            if filled + len(key) > capacity:
                raise CorruptError(f"more than {capacity} rows lie above the threshold: the table changed meanwhile")
            keys[filled : filled + len(key)], squares[filled : filled + len(key)] = key, square
            filled += len(key)
    if seen != rows.num_rows or filled != capacity:
        raise CorruptError(f"{seen} rows were read, {rows.num_rows} announced: the table changed meanwhile")
    # By key, then value: the sums of equals do not depend on the order in which rows came.
    order = np.lexsort((squares, keys))
    keys, squares = keys[order], squares[order]
    del order
    if filled >= kept:
        # Where the passes stopped narrowing shall not show in the last digit: the m-th score divides, as in a block.
        first, after = (int(np.searchsorted(keys, keys[kept - 1], side)) for side in ("left", "right"))
        rest.add(squares[after:])
        equal_squares.add(squares[first:after])
        equals += after - first
        keys, squares = keys[:first], squares[:first]
    return _suffix_sums(keys, squares, kept, (equals, equal_squares.value), rest.value)


def _suffix_sums(keys: U64, squares: F64, kept: int, equals: tuple[int, float], rest: float) -> F64:
    """Return the sum of squares from every place 0..m-1 on: sorted rows, then a block of equals, then the rest."""
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.zeros(0, dtype=np.int64)
    sizes = np.diff(starts, append=len(keys))
    means = np.add.reduceat(squares, starts) / sizes if len(starts) else np.zeros(0)
    places = np.empty(kept)
    places[: len(keys)] = np.repeat(means, sizes)
    del starts, sizes, means
    count, total = equals
    places[len(keys) :] = total / count
    # From the tail on: what is left after a heavy top is small, and a difference of sums would lose it.
    places[-1] += rest + total * ((count + len(keys) - kept) / count)
    return np.cumsum(places[::-1])[::-1]


@dataclass
class _Divided:
    """Hold what one piece gives: the rows of the top, and sums over rows equal to the threshold and over all others."""

    rows: int
    top: list[tuple[U64, F64]]
    equals: int
    equal_squares: ExactSum
    rest: ExactSum


def _divide(pairs: Iterator[Pair], bounds: Bounds, block: bool, direction: str) -> _Divided:
    out = _Divided(0, [], 0, ExactSum(), ExactSum())
    for pair in pairs:
        keyed = _keyed(pair, direction)
        squares = _squares(pair.norm)
        top, inside = bounds.classify(keyed, _no_tie)
        out.rows += len(squares)
        if block:
            out.equals += int(np.count_nonzero(inside))
            out.equal_squares.add(squares[inside])
            out.rest.add(squares[~(top | inside)])
        else:
            top |= inside
            out.rest.add(squares[~top])
        out.top.append((keyed.key[top], squares[top]))
    return out


def _threshold(rows: PairRows, kept: int, direction: str, threads: int) -> Bounds:
    """Return bounds of the m-th score: few rows between them, or rows of one score only."""
    bounds = Bounds([kept], [rows.num_rows])

    def count(pairs: Iterator[Pair]) -> list[Counted]:
        return [counted(bounds.count(_keyed(pair, direction), _no_tie) for pair in pairs)]

    while bounds.open_rows > max(_OPEN_ROWS, kept // 8) and not bounds.needs_ids:
        parts = over_pieces(rows.pieces(), rows.read, count, threads)
        bounds.narrow(counted(found for part in parts for found in part))
    return bounds


def _keyed(pair: Pair, direction: str) -> KeyedRows:
    key, missing = kept_first(pair.score, direction)
    refuse_missing(missing, len(key))
    return KeyedRows(key, np.broadcast_to(np.int64(0), len(key)))


def _no_tie(ids: I64) -> U64:
    raise AssertionError(f"ties of {len(ids)} rows are not broken here")


def _squares(norm: npt.NDArray[Any]) -> F64:
    wide = norm.astype(np.float64)
    with np.errstate(over="ignore"):
        squares = wide * wide
    if not np.isfinite(squares).all():
        raise InputError(
            f"{np.count_nonzero(~np.isfinite(squares))} of {len(wide)} gradient norms are missing, infinite or too large to "
            "square; alpha auto needs a finite norm of every example: mend them, or give alpha as a number"
        )
    negative = int(np.count_nonzero(wide < 0))
    if negative:
        raise InputError(
            f"{negative} of {len(wide)} gradient norms are negative, which no norm is; alpha auto needs a column like grand, "
            "grand_last or el2n: name one (--param moment=COLUMN), or give alpha as a number"
        )
    return squares
