"""Protocol `topk`: the first m of the ranking, plain score-based pruning; not consistent.

The m examples that come first in the score's kept direction, ties by hash: pi = 1 on them and 0 elsewhere, weight 1. In classes
with budgets m_g, the first m_g of each.

Source: the score-based pruning algorithm of Ayed & Hayou (TMLR 2023, arXiv 2302.06960); with EL2N or GraNd it is the pruning of
Paul et al. (2021).

Guarantee: none on any mean. For a score without mass points the kept converge to the law of the data on the acceptance region
alone, mu|A_r / r (the same paper), so what lies outside is never seen, however large n is. Selections of growing keep are nested.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.samplers.design import Budget, Design


def design(budgets: Sequence[Budget]) -> Design:
    """Return pi = 1 on the signal and 0 elsewhere, weight 1: no weight can speak for what is never drawn."""
    ones = np.ones(len(budgets))
    return Design(np.array([0.0 if budget.complement else 1.0 for budget in budgets]), ones, np.zeros(len(budgets)))
