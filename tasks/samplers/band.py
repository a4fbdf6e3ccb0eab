"""Protocol `band`: a class-balanced uniform draw from a band of moderate hardness, all weights 1.

The first round(beta n) of the ranking are dropped (ties by hash), the next round(width n) are the band, and the budget is
divided equally over the classes in the band (`balanced` in samplers/design.py), or in proportion to them where `classes` says
so; within a class the draw is uniform without replacement, pi = m_k / n_k.

Source: the hardest are dropped as in CCS (Zheng et al., ICLR 2023), and a middle band is kept as in moderate coresets (Xia et
al., ICLR 2023); the two ends together are this project's own.

Guarantee: equal or proportional budgets of the classes, exact to the row. Examples outside the band have pi = 0, and the weights
make no estimate of anything.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.samplers.design import Budget, Design, make_design


def design(budgets: Sequence[Budget]) -> Design:
    """Return pi = m_k / n_k in each class of the band, weight 1."""
    ones = [1.0] * len(budgets)
    return make_design(budgets, ones, ones)
