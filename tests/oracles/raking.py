"""Slow, independent truth of calibration: proportional fitting row by row, the bounded program by SciPy, and its variance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


def fitted(weights: list[float], labels: Sequence[list[int]], totals: Sequence[dict[int, float]]) -> list[float]:
    """Return the weights after raking without bounds: scaled to the totals of one family after another, until all are met.

    `labels` holds the margin of each row in each family. Deming & Stephan (1940).
    """
    out = list(weights)
    for _ in range(5000):
        worst = 0.0
        for family, wanted in zip(labels, totals):
            met = dict.fromkeys(wanted, 0.0)
            for weight, label in zip(out, family):
                met[label] += weight
            worst = max(worst, *(abs(met[label] / wanted[label] - 1) for label in wanted))
            out = [weight * wanted[label] / met[label] for weight, label in zip(out, family)]
        if worst < 1e-13:
            return out
    raise AssertionError("proportional fitting does not converge")


def bounded(base: F64, labels: Sequence[npt.NDArray[np.int64]], totals: Sequence[F64], bound: float) -> F64:
    """Return the factors (C,) in [1/bound, bound] of least entropy that meet the totals of every family; all base > 0."""
    from scipy.optimize import minimize

    rows = [np.where(family == label, base, 0.0) for family, wanted in zip(labels, totals) for label in range(len(wanted))]
    # The last margin of every further family follows from the others.
    ends = np.cumsum([len(wanted) for wanted in totals])[1:] - 1
    left, wanted = np.delete(np.array(rows), ends, axis=0), np.delete(np.concatenate(totals), ends)
    n = base.sum()
    found = minimize(
        lambda g: float((base * (g * np.log(g) - g + 1)).sum() / n),
        np.ones(len(base)),
        jac=lambda g: base * np.log(g) / n,
        method="SLSQP",
        bounds=[(1 / bound, bound)] * len(base),
        constraints={"type": "eq", "fun": lambda g: (left @ g - wanted) / wanted, "jac": lambda g: left / wanted[:, None]},
        options={"ftol": 1e-16, "maxiter": 1000},
    )
    return np.asarray(found.x)


def residual_variance(value: F64, labels: Sequence[npt.NDArray[np.int64]], drawn: int, population: int) -> float:
    """Return the approximate variance of the mean over `population` when `drawn` of these rows are drawn and calibrated.

    That of a simple random sample of the residuals of a regression on the margins (Deville & Särndal 1992). Rows (N,) are the
    complement; `labels` holds their margin in each family.
    """
    columns = np.concatenate([family[:, None] == np.unique(family) for family in labels], axis=1).astype(np.float64)
    residual = value - columns @ np.linalg.lstsq(columns, value, rcond=None)[0]
    n = len(value)
    return float((n / population) ** 2 * (1 - drawn / n) * residual.var(ddof=1) / drawn)
