"""Scaling laws: err = a + b n^-c over the size n of the data at a fixed keep, or `not identified`.

Residuals are relative to the error, as the spread of trainings is about proportional to it and sizes range over decades.
For a given c the best a >= 0 and b >= 0 have a closed form, so the fit is one search over c. A fit over keep at fixed n is no
scaling law: all arms meet at keep 1, so the worst looks steepest.

Intervals come from a seeded bootstrap in two levels. The sizes stay, being chosen and not drawn. Inside each, the
replicates are drawn with replacement, and their mean's deviation is widened by what R replicates leave unknown of their
spread, sqrt(R / chi2) with chi2 of R - 1 degrees of freedom, drawn for each size. Over 150 tables of four laws each, 6 sizes
and R = 5, intervals of c covered 95 to 97 % for 95, and 91 % where a is 0; replicates alone 81 to 88 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[Any, np.dtype[np.float64]]

Interval = tuple[float, float]

MIN_SIZES, MIN_RATIO, MIN_REPLICATES = 6, 100.0, 5
DRAWS = 1000
C_LOW, C_HIGH, C_STEPS = 0.02, 3.0, 600
WIDEST = 0.5
"""Width of c's interval above which nothing is said about c: laws in use have c between 0.1 and 0.7."""
MISFIT = 0.01
"""p of the curve against the replicates' own spread below which the curve is refused."""


@dataclass(frozen=True)
class Scaling:
    """Hold a fitted law; `identified` says whether its parameters mean anything, `reason` why not."""

    a: float
    """The error that more data does not remove, in the unit of the errors; 0 or more."""
    b: float
    c: float
    a_ci95: Interval
    c_ci95: Interval
    fit_p: float
    """Of the curve against the replicates' spread (F test of lack of fit)."""
    identified: bool
    reason: str


@dataclass(frozen=True)
class SlopeDifference:
    """Hold the difference of an arm's c to random's. `finding` is steeper, shallower, no difference shown, not identified."""

    difference: float
    ci95: Interval
    finding: str
    reason: str


@dataclass(frozen=True)
class EnvelopePoint:
    """Hold the keep with the least error at one number of kept examples.

    `error` is its mean, too low as the keep was chosen by it; `fair_error` chooses on one half of the replicates and
    scores on the other (tasks.comparison.hindsight).
    """

    kept: int
    keep: float
    error: float
    fair_error: float


@dataclass(frozen=True)
class _Fit:
    a: Floats
    b: Floats
    c: Floats
    loss: Floats


def fit_scaling(sizes: Sequence[int], errors: Floats, *, seed: int = 0, draws: int = DRAWS) -> Scaling:
    """Return the law of errors (S, R) > 0, replicate r of size s, over the S sizes; `not identified` where it is not.

    Raises InputError on tables that are no such table. Never on data that say nothing: that is a result.
    """
    table = _checked(sizes, errors)
    whole, drawn = _bootstrap(sizes, [table], seed, draws)[0]
    a, b, c = float(whole.a[0]), float(whole.b[0]), float(whole.c[0])
    c_interval, a_interval = _interval(drawn.c), _interval(drawn.a)
    fit_p = _misfit(table, float(whole.loss[0]))
    reason = _refusal(sizes, table, drawn, c_interval, fit_p)
    return Scaling(a, b, c, a_interval, c_interval, fit_p, not reason, reason)


def slope_difference(
    sizes: Sequence[int], errors: Floats, random: Floats, *, seed: int = 0, draws: int = DRAWS
) -> SlopeDifference:
    """Return the difference of c between two arms, both (S, R), whose replicates are paired: they are drawn together."""
    tables = [_checked(sizes, errors), _checked(sizes, random)]
    if tables[0].shape != tables[1].shape:
        raise InputError(f"tables of shapes {tables[0].shape} and {tables[1].shape}: arms share their sizes and replicates")
    (mine, my_draws), (other, other_draws) = _bootstrap(sizes, tables, seed, draws)
    difference = float(mine.c[0] - other.c[0])
    interval = _interval(my_draws.c - other_draws.c)
    for name, table, whole, drawn in (("arm", tables[0], mine, my_draws), ("random", tables[1], other, other_draws)):
        reason = _refusal(sizes, table, drawn, _interval(drawn.c), _misfit(table, float(whole.loss[0])))
        if reason:
            return SlopeDifference(difference, interval, "not identified", f"{name}: {reason}")
    if interval[0] > 0:
        return SlopeDifference(difference, interval, "steeper", "the interval lies above 0")
    if interval[1] < 0:
        return SlopeDifference(difference, interval, "shallower", "the interval lies below 0")
    return SlopeDifference(difference, interval, "no difference shown", "the interval includes 0")


def envelope(cells: Mapping[tuple[int, float], Floats], *, seed: int = 0) -> list[EnvelopePoint]:
    """Return, for each number of kept examples m, ascending, the best keep of errors {(m, keep): (R,)}.

    Every m compares keeps of data sets of different size, n = m / keep. Raises InputError where the keeps of one m have
    different numbers of replicates, or fewer than two. Ties go to the smaller keep.
    """
    import numpy as np

    from tasks.comparison.hindsight import hindsight_best

    out = []
    for kept in sorted({m for m, _ in cells}):
        keeps = sorted(keep for m, keep in cells if m == kept)
        rows = [np.asarray(cells[kept, keep], dtype=float) for keep in keeps]
        if len({len(row) for row in rows}) > 1:
            raise InputError(
                f"{kept} kept examples: the keeps have {sorted({len(row) for row in rows})} replicates; give each as many"
            )
        table = np.stack(rows)
        best = int(table.mean(axis=1).argmin())
        fair = -hindsight_best(-table, seed=seed).split_half
        out.append(EnvelopePoint(kept, keeps[best], float(table[best].mean()), fair))
    return out


def _checked(sizes: Sequence[int], errors: Floats) -> Floats:
    import numpy as np

    table = np.asarray(errors, dtype=float)
    if table.ndim != 2 or table.shape[0] != len(sizes) or len(sizes) < 4 or table.shape[1] < 2:
        raise InputError(
            f"errors of shape {table.shape} for {len(sizes)} sizes: give at least 4 sizes in rows and 2 replicates in columns"
        )
    if not (np.isfinite(table).all() and (table > 0).all()) or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise InputError("sizes must be different numbers of 1 or more, errors finite and above 0: an error of 0 has no law")
    return table


def _bootstrap(sizes: Sequence[int], tables: Sequence[Floats], seed: int, draws: int) -> list[tuple[_Fit, _Fit]]:
    """Return (fit, fits of the draws) of each table, the same replicates drawn from all of them."""
    import numpy as np

    count, replicates = tables[0].shape
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, replicates, (draws, count, replicates))
    widened = np.sqrt(replicates / rng.chisquare(replicates - 1, (draws, count)))
    out = []
    for table in tables:
        means = table.mean(axis=1)
        # (draws, S): deviations of the drawn replicates from their size's mean.
        moved = table[np.arange(count)[:, None], chosen].mean(axis=2) - means
        drawn = means + widened * moved
        out.append((_fit(sizes, means[None], means, refine=True), _fit(sizes, drawn, means)))
    return out


def _fit(sizes: Sequence[int], means: Floats, scale: Floats, refine: bool = False) -> _Fit:
    """Return the fits of means (B, S), residuals divided by `scale` (S,), over a grid of c; `refine` for B = 1."""
    import numpy as np

    grid = np.geomspace(C_LOW, C_HIGH, C_STEPS)
    a, b, loss = _for_c(sizes, means, scale, grid)
    best = loss.argmin(axis=1)
    rows = np.arange(len(means))
    if refine and 0 < best[0] < C_STEPS - 1:
        from scipy.optimize import minimize_scalar

        found = minimize_scalar(
            lambda c: float(_for_c(sizes, means, scale, np.array([c]))[2][0, 0]),
            bounds=(grid[best[0] - 1], grid[best[0] + 1]), method="bounded", options={"xatol": 1e-9},
        )  # fmt: skip
        at = np.array([float(found.x)])
        a, b, loss = _for_c(sizes, means, scale, at)
        return _Fit(a[:, 0], b[:, 0], at, loss[:, 0])
    return _Fit(a[rows, best], b[rows, best], grid[best], loss[rows, best])


def _for_c(sizes: Sequence[int], means: Floats, scale: Floats, grid: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the best a, b and sum of squares, each (B, C), at every c of the grid (C,)."""
    import numpy as np

    # Sizes over the smallest, so that no column is tiny; b is put back at the end.
    first = min(sizes)
    x = (np.asarray(sizes, dtype=float)[:, None] / first) ** -grid / scale[:, None]
    y, ones = means / scale, 1.0 / scale
    xx, x1, n1, yx, y1 = (x * x).sum(axis=0), ones @ x, ones @ ones, y @ x, (y @ ones)[:, None]
    determinant = n1 * xx - x1 * x1
    b = (n1 * yx - x1 * y1) / determinant
    a = (y1 - x1 * b) / n1
    # Outside a, b >= 0 the best lies on the border.
    b = np.where(a < 0, yx / xx, np.maximum(b, 0.0))
    a = np.where(a < 0, 0.0, np.where(b == 0.0, y1 / n1, a))
    yy = (y * y).sum(axis=1)[:, None]
    loss = yy - 2 * (a * y1 + b * yx) + a * a * n1 + 2 * a * b * x1 + b * b * xx
    return a, b * first**grid, loss


def _interval(values: Floats) -> Interval:
    import numpy as np

    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _misfit(table: Floats, loss: float) -> float:
    """Return p of the F test that the means lie on the curve but for the replicates' spread."""
    from scipy.special import fdtrc

    count, replicates = table.shape
    relative = table / table.mean(axis=1, keepdims=True)
    within = float(relative.var(axis=1, ddof=1).mean())
    lack = max(loss, 0.0) * replicates / (count - 3)
    if within == 0.0:
        return 1.0 if lack < 1e-9 else 0.0
    return float(fdtrc(count - 3, count * (replicates - 1), lack / within))


def _refusal(sizes: Sequence[int], table: Floats, drawn: _Fit, interval: Interval, fit_p: float) -> str:
    """Return why the law is not identified, or an empty string."""
    count, replicates = table.shape
    ratio = max(sizes) / min(sizes)
    if count < MIN_SIZES or ratio < MIN_RATIO or replicates < MIN_REPLICATES:
        return (
            f"{count} sizes over a ratio of {ratio:.3g} with {replicates} replicates: it takes at least {MIN_SIZES} sizes over "
            f"a ratio of {MIN_RATIO:g} with {MIN_REPLICATES}"
        )
    if fit_p < MISFIT:
        return f"the means do not lie on such a curve (p {fit_p:.2g} against the replicates' spread)"
    if float((drawn.b == 0).mean()) > 0.025:
        return "the error does not fall with n beyond its spread"
    if interval[0] <= C_LOW * 1.01 or interval[1] >= C_HIGH * 0.99:
        return f"a, b and c stand in for each other: the interval of c ends where the search does ({C_LOW:g} or {C_HIGH:g})"
    if interval[1] - interval[0] > WIDEST:
        return f"the interval of c, {interval[0]:.2f} to {interval[1]:.2f}, is wider than {WIDEST:g}"
    return ""
