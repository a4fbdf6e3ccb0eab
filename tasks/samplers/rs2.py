"""Protocol `rs2`: a fresh uniform draw of m every epoch, so that more distinct examples are seen at the same cost.

pi = m/n and weight 1 on all in every epoch, each drawn without replacement and independently of the others.

Source: Okanovic et al. (2023), "Repeated random sampling for minimizing the time-to-accuracy of learning" (arXiv 2305.18424),
their RS2 with replacement: an example may come again in the next epoch.

Guarantee: the mean of anything is unbiased in every epoch. After E whole epochs n (1 - (1 - m/n)^E) distinct examples are
expected to have been shown, where a fixed subset shows m.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.samplers.design import Budget, Design
from tasks.samplers.uniform import design as uniform


def design(budgets: Sequence[Budget]) -> Design:
    """Return pi = m/n and weight 1 on all, in every epoch."""
    return uniform(budgets)
