"""The test set as a sample: the standard error it gives, and intervals over replicates and test examples both."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tasks.comparison.paired import Interval, critical, spread

if TYPE_CHECKING:
    from tasks.comparison.paired import Floats


def example_error(difference: Floats) -> float:
    """Return the standard error, in points, that test sampling gives the mean of `difference` (R, T) in {-1, 0, 1}."""
    examples = difference.shape[1]
    if examples < 2:
        return 100.0
    return float(100.0 * difference.mean(axis=0).std(ddof=1) / math.sqrt(examples))


def two_way_interval(difference: Floats, level: float, least: float = 0.0) -> Interval | None:
    """Return the interval of the mean of `difference` (R, T), in points, with replicates and examples both random.

    Variance of a crossed two-way layout without repeats: V = V_R + V_T - V_RT, where V_R comes from the R replicate
    means, V_T from the T example means, and V_RT (their interaction) is in both; never below either. Degrees of
    freedom after Satterthwaite. None for fewer than two replicates or examples. Never narrower than the t interval
    over replicates, and its half-width no less than `least`.
    """
    replicates, examples = difference.shape
    if replicates < 2 or examples < 2:
        return None
    rows, columns = difference.mean(axis=1), difference.mean(axis=0)
    mean = float(rows.mean())
    v_rows = spread(100.0 * rows) ** 2 / replicates
    v_columns = float((100.0 * columns).var(ddof=1)) / examples
    # Sum of squares of the residuals, from the three others: the (R, T) residuals are never laid out.
    total = float(((difference - mean) ** 2).sum())
    residual = total - examples * float(((rows - mean) ** 2).sum()) - replicates * float(((columns - mean) ** 2).sum())
    v_both = 1e4 * max(residual, 0.0) / ((replicates - 1) * (examples - 1)) / (replicates * examples)
    variance = max(v_rows + v_columns - v_both, v_rows, v_columns)
    half = least
    if variance > 0.0:
        degrees = variance**2 / (v_rows**2 / (replicates - 1) + v_columns**2 / (examples - 1))
        both = critical(level, degrees) * math.sqrt(variance)
        half = max(both, critical(level, replicates - 1) * math.sqrt(v_rows), least)
    return 100.0 * mean - half, 100.0 * mean + half


def margin_refusal(margin: float, error: float | None, examples: int | None) -> str:
    """Return why nothing can be claimed within `margin` points on this test set, or an empty string.

    `error` is that of `example_error`, None where it is not known.
    """
    if margin == 0:
        return "no margin is set"
    if error is None or examples is None:
        return "the standard error of the test set is not known"
    if margin >= 2 * error:
        return ""
    wanted = math.ceil(examples * (2 * error / margin) ** 2)
    return (
        f"the margin of {margin:g} points is below two standard errors of the test set (2 x {error:.2f} points on "
        f"{examples:,} examples); it takes about {wanted:,} test examples, or a wider margin"
    )
