"""Arms against `random` over replicates: differences, adjusted intervals, verdicts, and the replicates they take."""

from tasks.comparison.paired import (
    MIN_REPLICATES,
    SEARCH_REPLICATES,
    Interval,
    Sample,
    least_replicates,
    least_text,
    mean_interval,
)
from tasks.comparison.verdict import Comparison, compare_with_random

__all__ = [
    "MIN_REPLICATES", "SEARCH_REPLICATES", "Comparison", "Interval", "Sample", "compare_with_random", "least_replicates",
    "least_text", "mean_interval",
]  # fmt: skip
