"""Protocol `rotate`: the signal stays, exploration is drawn anew every epoch, weighted by 1/pi as in `exact`.

In every epoch the signal S is the same k_S = round(alpha m) of the ranking, and k_E = m - k_S are drawn uniformly from the
complement, epoch by epoch independently. pi = 1 on S and 1/W on the complement, W = (n - k_S) / k_E; weights m/n and W m/n.

Source: the exact calibration of Ayed & Hayou (TMLR 2023, arXiv 2302.06960) with the fresh draw of every epoch of Okanovic et al.
(2023, arXiv 2305.18424); to join the two is this project's own. The weights are those of Horvitz & Thompson (1952).

Guarantee: the weighted mean of anything is unbiased in every epoch, and the variance of its mean over E epochs falls as 1/E.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.errors import InputError
from tasks.samplers.design import Budget, Design, kept, make_design


def design(budgets: Sequence[Budget]) -> Design:
    """Return pi = 1 on S and 1/W on the complement, weights (1 on S, W on E) m/n, with W = (n - k_S) / k_E.

    An example of the complement is shown in a share k_E / (n - k_S) of the epochs, so over time it counts as much as one
    of the signal only with the weight W: with weight 1 the mean over epochs is that of `approximate`, biased by
    alpha (1 - r) (mean_S - mean_C) however many epochs there are. With W every epoch by itself is unbiased, as `exact`
    is (methods: Horvitz-Thompson), and the error of the mean over E independent epochs falls as 1/E. Raises InputError
    where no exploration is left.
    """
    n = sum(budget.n for budget in budgets)
    for budget in budgets:
        if budget.complement and not budget.exploration:
            raise InputError(
                f"protocol rotate: {budget.kept} kept, all of it signal, leaves no exploration to draw anew, and the other "
                f"{budget.complement} examples would never be seen; lower alpha, raise keep, or use topk"
            )
    constant = kept(budgets) / n
    weights = [budget.explore_factor * constant if budget.exploration else 0.0 for budget in budgets]
    return make_design(budgets, [constant] * len(budgets), weights)
