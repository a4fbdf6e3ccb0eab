"""A problem on [0, 1] whose excess risk is an integral in closed form, and two local learners that can learn anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.theory.laws import F64

# No grid of cells has an edge at 1/pi, so no excess risk is 0 by a coincidence.
FIRST, SECOND = 1 / math.pi, 1 - 1 / math.pi
MARGIN = 0.8
"""|2 P(Y=1|x) - 1|: the labels are wrong with probability 0.1 everywhere, which is the Bayes risk."""
DEFAULT = 0
"""What a histogram says in a cell without examples."""
QUERIES = 4096


def ones(x: F64) -> F64:
    """Return the length of [0, x] on which the Bayes decision is 1: outside (FIRST, SECOND)."""
    return np.minimum(x, FIRST) + np.maximum(x - SECOND, 0.0)


def draw_labels(x: F64, generator: np.random.Generator) -> Any:
    """Return labels (N,) in {0, 1}: the Bayes decision, flipped with probability (1 - MARGIN) / 2."""
    truth = (x < FIRST) | (x > SECOND)
    return truth ^ (generator.random(len(x)) < (1 - MARGIN) / 2)


def excess_risk(edges: F64, says_one: Any) -> float:
    """Return P(decision != Y) minus the Bayes risk, X uniform, of a decision constant between edges (G + 1,)."""
    length = np.diff(edges)
    one = np.diff(ones(edges))
    return float(MARGIN * np.where(says_one, length - one, one).sum())


def region(keep: float) -> tuple[float, float]:
    """Return the acceptance region of the score |x - FIRST|, low end kept: where a proxy that knows FIRST is unsure."""
    return FIRST - keep / 2, FIRST + keep / 2


@dataclass(frozen=True)
class Histogram:
    """Vote in ceil(sqrt m) cells whose origin is `offset` of a cell; DEFAULT where nobody votes, and on ties."""

    name = "histogram"

    def excess(self, x: F64, signs: F64, weights: F64, offset: float) -> float:
        """Return the excess risk after training on points (M,), signs 2y - 1 (M,) and weights (M,)."""
        cells = math.ceil(math.sqrt(len(x)))
        votes = np.bincount((x * cells + offset).astype(np.int64), weights * signs, cells + 1)
        edges = np.clip((np.arange(cells + 2) - offset) / cells, 0.0, 1.0)
        return excess_risk(edges, votes > 0)

    def reach(self, keep: float, kept: int) -> float:
        """Return MARGIN times a cell: how far topk may be off its limit for what it says on one edge's cell."""
        return MARGIN / math.ceil(math.sqrt(kept))

    def limit(self, keep: float) -> float:
        """Return where topk tends: MARGIN times the length outside the region where the default is wrong."""
        low, high = region(keep)
        outside = ones(np.array([low, high, 1.0]))
        return float(MARGIN * (outside[0] + outside[2] - outside[1]))


@dataclass(frozen=True)
class Neighbours:
    """Vote among the ceil(sqrt m) nearest kept examples, at QUERIES midpoints; 0 on ties."""

    name = "k-NN"

    def excess(self, x: F64, signs: F64, weights: F64, offset: float) -> float:
        """Return the excess risk after training on points (M,), signs 2y - 1 (M,) and weights (M,)."""
        order = np.argsort(x, kind="stable")
        x, votes = x[order], np.concatenate([[0.0], np.cumsum((weights * signs)[order])])
        k = math.ceil(math.sqrt(len(x)))
        queries = (np.arange(QUERIES) + 0.5) / QUERIES
        # The window of k starts where its successor's far end is no nearer: x[i] + x[i + k] is increasing in i.
        first = np.searchsorted(x[:-k] + x[k:], 2 * queries) if k < len(x) else np.zeros(QUERIES, dtype=np.int64)
        edges = np.arange(QUERIES + 1) / QUERIES
        return excess_risk(edges, votes[first + k] - votes[first] > 1e-9)

    def reach(self, keep: float, kept: int) -> float:
        """Return MARGIN times a window of k neighbours inside the region."""
        return MARGIN * keep * math.ceil(math.sqrt(kept)) / kept

    def limit(self, keep: float) -> float:
        """Return where topk tends: outside the region it says what holds at the nearer edge, 1 left and 0 right."""
        low, high = region(keep)
        edge = ones(np.array([low, high, 1.0]))
        return float(MARGIN * ((low - edge[0]) + (edge[2] - edge[1])))
