"""Protocol `approximate`: signal and exploration alike at weight 1; less variance than `exact`, and biased.

The rows are those of `exact` (samplers/exact.py): k_S = round(alpha m) of signal S, k_E = m - k_S drawn uniformly from the
complement C. pi = 1 on S, k_E / (n - k_S) on C, and every weight is 1.

Source: the approximate calibration of Ayed & Hayou (TMLR 2023, arXiv 2302.06960), which gives up some consistency for less
variance.

Guarantee: the bias of any mean is known, alpha (1 - keep) (mean over S - mean over C). The law that the draw has in expectation
is alpha (1 - keep) in total variation from the data on the cells S and C, an upper bound on coarser ones. Neither shrinks with
n. Selections of growing keep are nested under one seed and alpha.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.samplers.design import Budget, Design, make_design


def design(budgets: Sequence[Budget]) -> Design:
    """Return pi = 1 on S and k_E / (n - k_S) on the complement C, weight 1 on both.

    The bias of any mean is alpha (1 - keep) (mean over S - mean over C). Alpha = 1 is `topk`.
    """
    ones = [1.0] * len(budgets)
    return make_design(budgets, ones, ones)
