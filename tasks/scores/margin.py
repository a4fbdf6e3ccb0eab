"""The score `margin`: the lead of the favourite class, whatever the label."""

from __future__ import annotations

import torch


def margin(p: torch.Tensor) -> torch.Tensor:
    """Return p_(1) - p_(2), (B,) in [0, 1], for probabilities (B, K) float32, K >= 2."""
    top = p.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]
