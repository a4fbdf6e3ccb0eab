"""The score `loss`: cross-entropy."""

from __future__ import annotations

import torch


def loss(log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return -log p_y, (B,), for log probabilities (B, K) float32 and labels (B,)."""
    return -log_p.gather(1, targets.unsqueeze(1)).squeeze(1)
