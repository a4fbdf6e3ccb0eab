"""Accuracy by class and of the worst class: what a mean over all examples hides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.comparison.paired import Interval, mean_interval

if TYPE_CHECKING:
    from tasks.comparison.paired import Floats


@dataclass(frozen=True)
class ClassDifference:
    """Hold differences to random by class and of the worst class, in points. Intervals are plain 95 % paired t.

    Neither is judged: they are described, and no adjustment is made for the number of classes.
    """

    by_class: tuple[float | None, ...]
    """Means over replicates (K,), None for a class without test examples."""
    worst: float
    """Mean over replicates of (worst class of the arm minus worst class of random), each its own class."""
    worst_ci95: Interval | None


def worst_class(by_class: Floats) -> Floats:
    """Return the accuracy of each replicate's worst class (R,) from by_class (R, K), classes without examples left out.

    The least of K noisy figures lies below the worst class's true one, by more the fewer examples a class has: compare
    it between arms on one test set, and do not read it alone.
    """
    import numpy as np

    return np.asarray(np.nanmin(by_class, axis=1), dtype=float)


def class_difference(arm: Floats, random: Floats) -> ClassDifference:
    """Return the class differences of an arm to random, both (R, K) in the order of the same replicates."""
    import numpy as np

    means = [None if np.isnan(column).any() else float(column.mean()) for column in (arm - random).T]
    worst = worst_class(arm) - worst_class(random)
    return ClassDifference(tuple(means), float(worst.mean()), mean_interval(worst))
