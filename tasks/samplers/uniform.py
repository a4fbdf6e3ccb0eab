"""Protocol `random`: a uniform draw without replacement, the consistent baseline."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.samplers.design import Budget, Design, covered, kept, make_design


def design(budgets: Sequence[Budget]) -> Design:
    """Return pi = m/n and weight (n/m) (m/n) = 1 on all; in groups, (n_g/m_g) (m/n): the weights add up to m.

    A group whose budget is 0 is not covered: the constant is m over the covered examples, for which alone the weights
    speak.
    """
    constant = kept(budgets) / covered(budgets)
    weights = [budget.explore_factor * constant if budget.exploration else 0.0 for budget in budgets]
    return make_design(budgets, [constant] * len(budgets), weights)
