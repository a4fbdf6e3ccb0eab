"""Calibrated selection: from a score table to a weighted subset of a stated design."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks.selection.spec import SelectionSpec

if TYPE_CHECKING:
    from tasks.selection.calibrated import calibrated_selection
    from tasks.selection.rows import ArrayRows

__all__ = ["ArrayRows", "SelectionSpec", "calibrated_selection"]


def __getattr__(name: str) -> Any:
    # pyarrow and numpy are not needed to plan a run.
    if name == "calibrated_selection":
        from tasks.selection.calibrated import calibrated_selection

        return calibrated_selection
    if name == "ArrayRows":
        from tasks.selection.rows import ArrayRows

        return ArrayRows
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
