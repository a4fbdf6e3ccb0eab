"""What a selection says of itself: its settings, its counts, and the figures of its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.hashing import I64
from tasks.samplers.ccs import UNIT
from tasks.samplers.design import QUANTILES, Budget, Design, covered, weight_counts, weight_figures
from tasks.samplers.registry import protocol_info
from tasks.selection.order import value_of
from tasks.selection.spec import HT, RAKED, UNWEIGHTED, SelectionSpec


def stated_facts(
    spec: SelectionSpec, seed: int, n: int, m: int, by: str | None, classes: str | None
) -> dict[str, Any]:
    """Return the facts that follow from the settings. `population` is what the weights speak for."""
    params = spec.params()
    unweighted = protocol_info(spec.protocol).population == "band" or params.get("weights") == UNIT
    return {
        "n": n,
        "keep": spec.keep,
        "alpha": spec.signal_share,
        "protocol": spec.protocol,
        "gamma": None,
        **params,
        "seed": seed,
        "score": spec.score,
        "direction": spec.kept_end,
        # Every weight is d times a constant of the design, never over the realised sum of weights; or that, calibrated to known
        # totals; or 1, and of no estimate.
        "estimator": UNWEIGHTED if unweighted else RAKED if spec.protocol == RAKED else HT,
        "population": protocol_info(spec.protocol).population,
        "by": by,
        "classes": classes,
        "num_kept": m,
        "threshold": None,
        "design_effect": None,
        "class_counts": None,
    }


def budget_facts(budgets: Sequence[Budget], design: Design) -> dict[str, Any]:
    """Return the facts of budgets in groups."""
    return {
        "num_signal": sum(budget.signal for budget in budgets),
        "num_exploration": sum(budget.exploration for budget in budgets),
        "covered": covered(budgets),
        "uncovered_groups": sum(1 for budget in budgets if budget.n and not budget.kept),
        **weight_figures(weight_counts(budgets, design)),
    }


def sample_facts(budget: Budget, constant: float, weight: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return the facts of a sample whose signal has one weight, and whose explored rows have each their own."""
    # Certain rows have the least weight of all.
    ordered, certain = np.sort(weight), budget.signal
    total = constant * certain + math.fsum(ordered)
    squares = constant**2 * certain + math.fsum(ordered * ordered)
    ranks = {name: int(share * (budget.kept - 1)) for name, share in QUANTILES.items()}
    return {
        "num_signal": budget.signal,
        "num_exploration": budget.exploration,
        "covered": budget.n,
        "uncovered_groups": 0,
        "weight_sum": total,
        "ess": total * total / squares,
        "weight_quantiles": {
            name: constant if rank < certain else float(ordered[rank - certain]) for name, rank in ranks.items()
        },
    }


def threshold(top: int, direction: str | None) -> float | None:
    """Return the score of the signal's last row from its key, None where it is infinite: JSON has no infinity."""
    value = value_of(top ^ (2**64 - 1) if direction == "high" else top)
    return value if math.isfinite(value) else None


def class_counts(counts: tuple[I64, I64, I64], classes: int) -> dict[str, list[int]]:
    """Return how many rows have each class: all that were drawn from, signal, exploration; a class is a code's remainder."""
    names = ("full", "signal", "exploration")
    return {name: found.reshape(-1, classes).sum(axis=0).tolist() for name, found in zip(names, counts, strict=True)}
