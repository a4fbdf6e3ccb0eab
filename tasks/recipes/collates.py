"""From stored features to float32: what is done to a batch before its transform."""

from __future__ import annotations

from typing import Any

import numpy as np


def cast(x: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return features (B, ...) as float32: uint8 divided by 255, floats unchanged. The default."""
    if x.dtype == np.uint8:
        return x.astype(np.float32) / np.float32(255)
    return x.astype(np.float32, copy=False)
