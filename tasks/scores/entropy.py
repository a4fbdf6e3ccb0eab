"""The score `entropy`: how undecided the model is, whatever the label."""

from __future__ import annotations

import torch


def entropy(log_p: torch.Tensor) -> torch.Tensor:
    """Return -sum p log p, (B,) in [0, log K], for log probabilities (B, K) float32."""
    return -(log_p.exp() * log_p).sum(1)
