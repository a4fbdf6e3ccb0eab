"""Protocol `random`: a uniform draw without replacement, the consistent baseline.

The m examples of smallest hash are kept: pi = m/n, weight (n/m) (m/n) = 1 on all. With class budgets m_g the same is done in each
class: pi = m_g/n_g and weight (n_g/m_g) (m/n).

Source: simple and stratified random sampling as in Cochran, "Sampling Techniques" (3rd ed. 1977), the weights those of Horvitz &
Thompson (1952); the baseline that most score-based pruning does not beat at keep 0.3 or less, Ayed & Hayou (TMLR 2023, arXiv
2302.06960).

Guarantee: the weighted mean of anything over the kept is unbiased over seeds, for every finite n, and the weights add up to m; of
class budgets this holds for the classes that have one. Selections of growing keep are nested under one seed, in classes where the
budgets grow.
"""

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
