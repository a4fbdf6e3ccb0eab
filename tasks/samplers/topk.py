"""Protocol `topk`: the first m of the ranking, plain score-based pruning; not consistent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.samplers.design import Budget, Design


def design(budgets: Sequence[Budget]) -> Design:
    """Return pi = 1 on the signal and 0 elsewhere, weight 1: no weight can speak for what is never drawn."""
    ones = np.ones(len(budgets))
    return Design(np.array([0.0 if budget.complement else 1.0 for budget in budgets]), ones, np.zeros(len(budgets)))
