"""Protocol `exact`: signal and exploration weighted by 1/pi; the weighted loss is exactly unbiased for finite n.

With k_S = round(alpha m) and k_E = m - k_S: the first k_S of the ranking are the signal S, k_E are drawn uniformly without
replacement from the complement C. pi = 1 on S and 1/W on C, W = (n - k_S) / k_E; weights m/n on S and W m/n on the drawn of C.

Source: the exact calibration of Ayed & Hayou (TMLR 2023, arXiv 2302.06960), which wraps any ranking and weights exploration so
that the subset's loss is an unbiased, consistent estimate of the full loss. The weights are those of Horvitz & Thompson (1952); a
take-all stratum beside a sampled one is that of Hidiroglou (1986).

Guarantee: the weighted mean of anything over the kept is unbiased over seeds, for every finite n, and the weights add up to m.
Selections of growing keep are nested under one seed and alpha. Alpha 0 is `random`; alpha 1 has no such weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.errors import InputError
from tasks.samplers import uniform
from tasks.samplers.design import Budget, Design, kept, make_design


def design(budgets: Sequence[Budget]) -> Design:
    """Return pi = 1 on S and 1/W on the complement, weights (1 on S, W on E) m/n, with W = (n - k_S) / k_E.

    Horvitz-Thompson: sum of 1/pi = n exactly, so the weights add up to m. Without signal in any group it is the design of
    `random`, which may leave groups without a budget uncovered. Raises InputError where beside signal a complement gets no
    exploration: examples with pi = 0 cannot be weighted for.
    """
    if not any(budget.signal for budget in budgets):
        return uniform.design(budgets)
    n = sum(budget.n for budget in budgets)
    for budget in budgets:
        if budget.complement and not budget.exploration:
            raise InputError(f"protocol exact: {_reason(budget, len(budgets))}")
    constant = kept(budgets) / n
    weights = [budget.explore_factor * constant if budget.exploration else 0.0 for budget in budgets]
    return make_design(budgets, [constant] * len(budgets), weights)


def _reason(budget: Budget, groups: int) -> str:
    """Return why a budget without exploration has no design, and what to do."""
    if not budget.kept:
        return (
            f"0 kept of a group of {budget.n}: its budget rounds to nothing, so its examples have inclusion probability 0 and no "
            "weight makes the estimate unbiased; raise keep, give classes: balanced, set alpha 0, which leaves such a group out "
            "as random does, or use approximate or topk"
        )
    where = "" if groups == 1 else f" of a group of {budget.n}"
    return (
        f"{budget.kept} kept{where}, all of it signal, leaves no exploration, so the other {budget.complement} examples have "
        "inclusion probability 0 and no weight makes the estimate unbiased; lower alpha, raise keep, or use approximate or topk"
    )
