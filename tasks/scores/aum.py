"""The score `aum`: the area under the margin (Pleiss et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

READS = ("aum",)


def aum(dynamics: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """Return the mean of z_y - max over k != y of z_k, (N,) float32, over all presentations; z are LOGITS.

    `dynamics` holds columns of schemas.DYNAMICS, where the recorder of the proxy's training put that mean.
    """
    return dynamics["aum"].astype(np.float32)
