"""The score `aum`: the area under the margin (Pleiss et al. 2020)."""

from __future__ import annotations

import torch


def logit_margin(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return z_y - max over k != y of z_k, (B,), for LOGITS (B, K): what `aum` is the mean of over presentations."""
    column = targets.unsqueeze(1)
    others = logits.scatter(1, column, float("-inf")).amax(1)
    return logits.gather(1, column).squeeze(1) - others


def aum(margin_sums: torch.Tensor, presentations: torch.Tensor) -> torch.Tensor:
    """Return the mean logit margin over all presentations of each example, (N,) float32."""
    return (margin_sums.double() / presentations).float()
