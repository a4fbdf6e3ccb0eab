"""Scores: one file a score, their registry, and exact per-example gradient norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.scores.batch import score_batch

__all__ = ["score_batch"]


def __getattr__(name: str) -> Any:
    # torch takes over a second to import, and the plan of a run needs only the registry.
    if name == "score_batch":
        from tasks.scores.batch import score_batch

        return score_batch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
