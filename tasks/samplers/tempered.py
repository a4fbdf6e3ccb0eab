"""Protocol `tempered`: exploration weighted W^gamma, from `approximate` (gamma 0) to `exact` (gamma 1).

The rows are those of `exact` (samplers/exact.py): pi = 1 on S and 1/W on C, with W = (n - k_S) / k_E. The weights are 1 on S and
W^gamma on E, times m / (k_S + k_E W^gamma).

Source: its ends are the two calibrations of Ayed & Hayou (TMLR 2023, arXiv 2302.06960); the power between them is this project's
own.

Guarantee: unbiased at gamma 1 only. The estimate of a mean gives S the share k_S / (k_S + k_E W^gamma), where the data have
k_S / n: the bias is the difference of these shares times (mean over S - mean over C), and falls as gamma rises, while the
variance grows. The weights add up to m. Nested as `exact` is.
"""

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
