"""The score `el2n`: the length of the error vector (Paul et al. 2021)."""

from __future__ import annotations

import torch


def el2n(p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return ||p - onehot(y)||_2 in [0, sqrt 2) for probabilities (B, K) float32 and labels (B,)."""
    out: torch.Tensor = torch.linalg.vector_norm(error_vector(p, targets), dim=1)
    return out


def error_vector(p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return p - onehot(y), (B, K): the gradient of each example's cross-entropy in its logits.

    1 - p_y is the sum of the other probabilities, which keeps its digits where p_y rounds to 1.
    """
    column = targets.unsqueeze(1)
    out = p.scatter(1, column, 0)
    return out.scatter(1, column, -out.sum(1, keepdim=True))
