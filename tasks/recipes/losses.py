"""Losses per example."""

from __future__ import annotations

import torch
from torch.nn import functional


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Return the cross-entropy of each row (B,) from logits (B, K) and targets (B,) int64."""
    return functional.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
