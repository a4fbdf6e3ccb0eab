"""Protocol `approximate`: signal and exploration alike at weight 1; less variance than `exact`, and biased."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.samplers.design import Budget, Design, make_design


def design(budgets: Sequence[Budget]) -> Design:
    """Return pi = 1 on S and k_E / (n - k_S) on the complement C, weight 1 on both.

    The bias of any mean is alpha (1 - keep) (mean over S - mean over C). Alpha = 1 is `topk`.
    """
    ones = [1.0] * len(budgets)
    return make_design(budgets, ones, ones)
