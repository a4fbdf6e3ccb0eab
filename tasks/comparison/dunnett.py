"""Dunnett's test for paired arms: all against one control, with a spread that they share.

Source: Dunnett (1955), JASA 50. Arms share the replicates of `random`, so their mean differences correlate by 1/2 where
all spreads are equal. Two things differ from the textbook's one-way layout, for reasons in
docs/decisions/0011-dunnett-or-holm.md:

- The shared spread is the root mean square of the arms' spreads of differences, not the residual of a layout that takes
  random's own spread for that of the arms. Its degrees of freedom are fewer, as the differences share random:
  (R - 1) M / (1 + (M - 1) / 4).
- An arm must pass its own paired t at 5 % too. So one arm whose spread is larger than the rest, which no test of spreads
  finds surely in 5 replicates, gains little by what the others lend it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[Any, np.dtype[np.float64]]

FEWEST_ARMS = 3
"""With two arms nothing tells their own spreads apart once what they share is taken out."""
AGREEMENT = 0.25
"""Bartlett's p above which spreads count as equal: high, as few replicates find a difference seldom."""
CORRELATION = 0.5
# Nodes of the two trapezoid sums; four times as many move critical values by less than 1e-6.
Z_NODES, S_NODES = 97, 49


def spread_p(accuracies: Sequence[Floats]) -> float:
    """Return Bartlett's p of M >= 3 arms, each (R,), having one spread, after the replicates' means are taken out.

    The differences' own spreads would not do: all hold random's. Bartlett errs towards "unequal" for heavy tails.
    """
    import numpy as np
    from scipy.special import chdtrc

    values = np.stack(list(accuracies))
    arms, degrees = len(values), values.shape[1] - 1
    rest = values - values.mean(axis=0)
    variances = rest.var(axis=1, ddof=1)
    if not variances.min() > 0.0:
        return 0.0
    # scipy.stats.bartlett, written out: importing scipy.stats takes longer than a whole report.
    gap = arms * math.log(variances.mean()) - float(np.log(variances).sum())
    correction = 1.0 + (arms / degrees - 1.0 / (arms * degrees)) / (3.0 * (arms - 1))
    return float(chdtrc(arms - 1, degrees * gap / correction))


def degrees_of(arms: int, replicates: int) -> float:
    """Return the degrees of freedom of the shared spread (Satterthwaite; variances correlate by CORRELATION^2)."""
    return (replicates - 1) * arms / (1.0 + (arms - 1) * CORRELATION**2)


def tail(limit: float, arms: int, degrees: float) -> float:
    """Return P(max |T_a| > limit) over M arms: multivariate t, all correlations 1/2.

    By the one-factor form T_a = (Z_a - Z_0) / (S sqrt 2), integrated over Z_0 and log S by the trapezoid rule. No
    random numbers: scipy.stats.multivariate_t draws some.
    """
    import numpy as np
    from scipy.special import ndtr

    z, z_weight, s, s_weight = _nodes(degrees)
    reach = math.sqrt(2.0) * limit * s[:, None]
    inside = (ndtr(z + reach) - ndtr(z - reach)) ** arms
    return float(np.clip(1.0 - s_weight @ inside @ z_weight, 0.0, 1.0))


@lru_cache(maxsize=8)
def _nodes(degrees: float) -> tuple[Floats, Floats, Floats, Floats]:
    import numpy as np
    from scipy.special import chdtri

    z = np.linspace(-8.0, 8.0, Z_NODES)
    z_weight = np.exp(-z * z / 2.0)
    low, high = (0.5 * math.log(float(chdtri(degrees, share)) / degrees) for share in (1.0 - 1e-11, 1e-11))
    x = np.linspace(low, high, S_NODES)
    log_weight = degrees * (x - np.exp(2.0 * x) / 2.0)
    s_weight = np.exp(log_weight - log_weight.max())
    return z, z_weight / z_weight.sum(), np.exp(x), s_weight / s_weight.sum()


@lru_cache(maxsize=4096)
def critical_value(level: float, arms: int, degrees: float) -> float:
    """Return c with P(max |T_a| > c) = level."""
    from scipy.optimize import brentq

    from tasks.comparison.paired import critical

    # One arm's own value lies below, Bonferroni's above.
    low, high = critical(level, degrees), critical(level / arms, degrees)
    if arms == 1:
        return low
    return float(brentq(lambda c: tail(c, arms, degrees) - level, low, high, xtol=1e-7))
