"""The score `forgetting`: events from correct to wrong (Toneva et al. 2019)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def forgetting(
    events: npt.NDArray[Any],
    never_learned: npt.NDArray[np.bool_],
    presentations: npt.NDArray[Any],
) -> npt.NDArray[np.float32]:
    """Return the ranking value of each example, (N,) float32: its forgetting events.

    A never-learned example has no events at all and is the hardest, not the easiest: its value is presentations + 1,
    finite and above every other.
    """
    return np.where(never_learned, presentations.astype(np.int64) + 1, events).astype(np.float32)
