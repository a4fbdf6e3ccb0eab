"""Paired differences of one arm to another: mean, spread, and the t interval and test they give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[Any, np.dtype[np.float64]]
    Bools = np.ndarray[Any, np.dtype[np.bool_]]

ALPHA = 0.05
MIN_REPLICATES = 5
"""Fewest replicates for a verdict on one comparison named in advance."""
SEARCH_REPLICATES = 10
"""Fewest replicates for a verdict where several comparisons are named, as in a sweep or a search."""
# Differences of percentages carry rounding noise near 1e-14; one answer in 1e9 examples moves accuracy by 1e-7 points.
NO_SPREAD = 1e-9

Interval = tuple[float, float]


@dataclass(frozen=True)
class Sample:
    """Hold one arm's results in replicate order.

    `accuracy` (R,) float64 in percent; `correct` (R, T) bool over one fixed order of the test examples, or None where
    it is not known (then no standard error of the test set can be stated, and no claim within a margin). `by_class`
    (R, K) float64 in percent, NaN for a class without test examples, or None. `draws_as_random` says that its subsets
    are random's own.
    """

    accuracy: Floats
    correct: Bools | None = None
    by_class: Floats | None = None
    draws_as_random: bool = False


@dataclass(frozen=True)
class Paired:
    """Hold the differences of one arm in replicate order, with their mean and standard deviation (ddof 1), in points."""

    differences: Floats
    mean: float
    deviation: float

    @property
    def count(self) -> int:
        """Return the number of replicates."""
        return len(self.differences)

    @property
    def error(self) -> float:
        """Return the standard error of the mean."""
        return self.deviation / math.sqrt(self.count)

    def interval(self, level: float) -> Interval | None:
        """Return the two-sided paired t interval that misses with probability `level`, None for one replicate."""
        if self.count < 2:
            return None
        half = critical(level, self.count - 1) * self.error
        return self.mean - half, self.mean + half

    def p_value(self) -> float | None:
        """Return the two-sided p of the mean being 0, None for one replicate."""
        return None if self.count < 2 else min(1.0, 2.0 * self.p_above(0.0, self.mean < 0))

    def p_above(self, bound: float, below: bool = False) -> float:
        """Return the one-sided p of the true mean being no more than `bound` (`below`: no less), 1 for one replicate."""
        from scipy.special import stdtr

        distance = bound - self.mean if below else self.mean - bound
        if self.count < 2 or (self.deviation == 0.0 and distance <= 0):
            return 1.0
        if self.deviation == 0.0:
            return 0.0
        return float(stdtr(self.count - 1, -distance / self.error))


def least_replicates(comparisons: int) -> int:
    """Return the fewest replicates for a verdict in a run that names so many comparisons, over all its keeps."""
    return MIN_REPLICATES if comparisons <= 1 else SEARCH_REPLICATES


def least_text(least: int) -> str:
    """Return the rule about the fewest replicates for a verdict, as it applies."""
    why = " where several comparisons are named" if least >= SEARCH_REPLICATES else ""
    return f"a verdict takes at least {least}{why}"


def pair(differences: Floats) -> Paired:
    """Return differences (R,) with their mean and spread, both 0 where they are rounding noise."""
    mean = float(differences.mean())
    return Paired(differences, mean if abs(mean) > NO_SPREAD else 0.0, spread(differences))


def spread(values: Floats) -> float:
    """Return the standard deviation (ddof 1), 0 where all values are equal up to rounding noise."""
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return deviation if deviation > NO_SPREAD else 0.0


def critical(level: float, degrees: float) -> float:
    """Return the value that |t| of Student's t exceeds with probability `level`."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1.0 - level / 2.0))


def mean_interval(values: Floats) -> Interval | None:
    """Return the 95 % t interval of the mean of values (R,) over replicates, None for fewer than two."""
    return pair(values).interval(ALPHA)


def excludes_zero(interval: Interval | None) -> bool:
    """Return whether the interval lies wholly above or wholly below 0; False for None."""
    return interval is not None and (interval[0] > 0.0 or interval[1] < 0.0)
