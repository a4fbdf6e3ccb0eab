"""The score `forgetting`: events from correct to wrong (Toneva et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

READS = ("forgetting_events", "never_learned", "presentations")


def forgetting(dynamics: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """Return the ranking value of each example, (N,) float32: its events from correct to wrong.

    `dynamics` holds columns of schemas.DYNAMICS. A never-learned example has no events at all and is the hardest, not
    the easiest: its value is presentations + 1, finite and above every other.
    """
    shown = dynamics["presentations"].astype(np.int64)
    return np.where(dynamics["never_learned"], shown + 1, dynamics["forgetting_events"]).astype(np.float32)
