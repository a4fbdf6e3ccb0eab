"""The score `random`: a control that knows nothing of the data."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tasks.hashing import I64, hash_unit


def uniform(seed: int, ids: I64) -> npt.NDArray[np.float32]:
    """Return a number in [0, 1) for each id, (N,) float32: the same in any order, shard or process."""
    # Rounded towards zero, since the nearest float32 of the largest hashes would be 1.
    return (np.floor(hash_unit("score-random", seed, ids) * 2.0**24) * 2.0**-24).astype(np.float32)
