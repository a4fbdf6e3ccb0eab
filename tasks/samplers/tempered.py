"""Protocol `tempered`: exploration weighted W^gamma, from `approximate` (gamma 0) to `exact` (gamma 1)."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.samplers.design import Budget, Design, kept, make_design


def design(budgets: Sequence[Budget], gamma: float) -> Design:
    """Return pi = 1 on S and 1/W on the complement, weights (1 on S, W^gamma on E) m / (k_S + k_E W^gamma).

    In groups the constant is m over the sum of k_S + k_E W^gamma. Alpha = 1 is `topk`.
    """
    total = 0.0
    for budget in budgets:
        total += budget.signal
        if budget.exploration:
            # k_E W^gamma; at gamma = 1 this form is n - k_S, and the constant m/n, to the last bit.
            total += budget.complement * budget.explore_factor ** (gamma - 1) if gamma else budget.exploration
    constant = kept(budgets) / total
    weights = [budget.explore_factor**gamma * constant if budget.exploration else 0.0 for budget in budgets]
    return make_design(budgets, [constant] * len(budgets), weights)
