"""The score `entropy`: how undecided the model is, whatever the label."""

from __future__ import annotations

import torch


def entropy(log_p: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Return -sum p log p, (B,) in [0, log K], for log probabilities and probabilities (B, K) float32."""
    return -(p * log_p).sum(1)
