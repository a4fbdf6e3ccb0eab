"""Protocol `exact`: signal and exploration weighted by 1/pi; the weighted loss is exactly unbiased for finite n."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.errors import InputError
from tasks.samplers.design import Budget, Design, kept, make_design


def design(budgets: Sequence[Budget]) -> Design:
    """Return pi = 1 on S and 1/W on the complement, weights (1 on S, W on E) m/n, with W = (n - k_S) / k_E.

    Horvitz-Thompson: sum of 1/pi = n exactly, so the weights add up to m. Raises InputError where a complement gets no
    exploration: examples with pi = 0 cannot be weighted for.
    """
    n = sum(budget.n for budget in budgets)
    for budget in budgets:
        if budget.complement and not budget.exploration:
            where = "" if len(budgets) == 1 else f" of a group of {budget.n}"
            raise InputError(
                f"protocol exact: {budget.kept} kept{where}, all of it signal, leaves no exploration, so the other "
                f"{budget.complement} examples have inclusion probability 0 and no weight makes the estimate unbiased; "
                "lower alpha, raise keep, or use approximate or topk"
            )
    constant = kept(budgets) / n
    weights = [budget.explore_factor * constant if budget.exploration else 0.0 for budget in budgets]
    return make_design(budgets, [constant] * len(budgets), weights)
