"""What growth is told with: a power law with a fixed cost, fitted in logarithms, and the least makespan there can be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
SHARE = 0.95


@dataclass(frozen=True)
class Fit:
    """Hold y = fixed + scale * x**exponent, the 95 % interval of the exponent, and the spread of log y about it."""

    fixed: float
    scale: float
    exponent: float
    low: float
    high: float
    spread: float

    def at(self, x: float) -> float:
        """Return y at x."""
        return self.fixed + self.scale * x**self.exponent


def fit_power(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Return the power law of least squares in log y, with a fixed cost only where an F test at 5 % asks for one.

    The interval is Student's, from the Jacobian at the optimum where there is a fixed cost. Raises ValueError unless there are
    three different x, and all are positive.
    """
    at, log_y = np.asarray(x, dtype=np.float64), np.log(np.asarray(y, dtype=np.float64))
    if len(at) != len(log_y) or len(np.unique(at)) < 3 or (at <= 0).any() or not np.isfinite(log_y).all():
        raise ValueError(f"x {list(x)} and y {list(y)} give no power law: give three different x or more, all above 0")
    plain, least = _power_alone(at, log_y)
    if len(np.unique(at)) < 5 or least < 1e-12 * len(at):
        return plain
    shifted, less = _with_fixed(at, log_y, plain)
    freedom = len(at) - 3
    from scipy.stats import f

    wins = shifted is not None and (least - less) * freedom > f.ppf(SHARE, 1, freedom) * less
    return shifted if wins and shifted is not None else plain


def _power_alone(x: F64, log_y: F64) -> tuple[Fit, float]:
    """Return the straight line through (log x, log y), and what is left of the squares."""
    jacobian = np.stack([np.ones(len(x)), np.log(x)], axis=1)
    (level, exponent), *_ = np.linalg.lstsq(jacobian, log_y, rcond=None)
    left = log_y - jacobian @ np.array([level, exponent])
    half, spread = _half_width(jacobian, left, 1)
    return Fit(0.0, math.exp(level), float(exponent), exponent - half, exponent + half, spread), float(left @ left)


def _with_fixed(x: F64, log_y: F64, start: Fit) -> tuple[Fit | None, float]:
    """Return the same with a fixed cost, None where no start comes to one."""
    from scipy.optimize import least_squares

    # Both costs as logarithms: neither can be negative, and neither runs over.
    unit = x / x.max()

    def residuals(place: F64) -> F64:
        found: F64 = np.logaddexp(place[0], place[1] + place[2] * np.log(unit)) - log_y
        return found

    best = None
    for exponent in (0.5, 1.0, max(0.1, start.exponent)):
        found = least_squares(
            residuals, np.array([log_y.min() - 0.1, log_y.max(), exponent]), bounds=([-40, -40, 0.01], [40, 40, 6])
        )
        if best is None or found.cost < best.cost:
            best = found
    if best is None or not best.success:
        return None, math.inf
    log_fixed, log_scale, exponent = (float(one) for one in best.x)
    half, spread = _half_width(best.jac, best.fun, 2)
    if half >= exponent:
        # Where the last point alone stands out, any steep exponent does.
        return None, math.inf
    scale = math.exp(log_scale) / float(x.max()) ** exponent
    fit = Fit(math.exp(log_fixed), scale, exponent, exponent - half, exponent + half, spread)
    return fit, float(best.fun @ best.fun)


def _half_width(jacobian: F64, left: F64, which: int) -> tuple[float, float]:
    """Return half the 95 % interval of one parameter, and the residuals' standard deviation."""
    from scipy.stats import t

    freedom = len(left) - jacobian.shape[1]
    spread = math.sqrt(float(left @ left) / freedom)
    covariance = np.linalg.pinv(jacobian.T @ jacobian)
    return float(t.ppf((1 + SHARE) / 2, freedom)) * spread * math.sqrt(covariance[which, which]), spread


def lower_bound(work: float, longest: float, slots: Sequence[tuple[float, int]]) -> float:
    """Return the least makespan of items of `work` seconds in all and at most `longest` each: max(work / slots, longest).

    `slots` says (from which second, how many there are), ascending from 0; the last number stays.
    """
    left = work
    for (begin, there), (end, _) in pairwise([*slots, (math.inf, 0)]):
        if there and left <= there * (end - begin):
            return max(begin + left / there, longest)
        left -= there * (end - begin)
    raise ValueError(f"slots {list(slots)} never finish {work:g} s of work: the last number must be above 0")


def greedy_bound(work: float, longest: float, slots: int) -> float:
    """Return what any order stays within that leaves no slot idle while an item waits: work / slots + (1 - 1/slots) longest.

    R. L. Graham, Bounds on multiprocessing timing anomalies, SIAM J. Appl. Math. 17 (1969), for independent jobs.
    """
    return work / slots + (1 - 1 / slots) * longest
