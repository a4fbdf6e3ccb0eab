"""Forgetting and AUM from the full history of presentations: O(E n K), straight from the definitions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np


class History:
    """Keep the logits of every presentation of n examples."""

    def __init__(self, n: int) -> None:
        self.shown: list[list[tuple[Any, int]]] = [[] for _ in range(n)]

    def observe(self, rows: Any, logits: Any, targets: Any) -> None:
        """Add one presentation of each of `rows`."""
        for row, values, target in zip(rows, logits, targets):
            self.shown[int(row)].append((np.array(values, dtype=np.float64), int(target)))

    def columns(self) -> dict[str, Any]:
        """Return the columns of the dynamics table."""
        out: dict[str, list[float]] = {
            name: [] for name in ("presentations", "forgetting_events", "never_learned", "forgetting", "aum")
        }
        for history in self.shown:
            margins = []
            for values, target in history:
                others = [values[k] for k in range(len(values)) if k != target]
                margins.append(values[target] - max(others))
            right = [margin > 0 for margin in margins]
            events = sum(1 for before, after in itertools.pairwise(right) if before and not after)
            out["presentations"].append(len(history))
            out["forgetting_events"].append(events)
            out["never_learned"].append(not any(right))
            out["forgetting"].append(events if any(right) else len(history) + 1)
            out["aum"].append(sum(margins) / len(margins) if margins else 0.0)
        return {name: np.array(values) for name, values in out.items()}
