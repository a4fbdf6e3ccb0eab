"""The score `least_confidence`: what the favourite class leaves to the others."""

from __future__ import annotations

import torch


def least_confidence(log_p: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Return 1 - max p, (B,) in [0, 1), for log probabilities and probabilities (B, K) float32.

    Taken as the sum of the other probabilities, which keeps its digits where max p rounds to 1.
    """
    favourite = log_p.argmax(1, keepdim=True)
    return p.scatter(1, favourite, 0).sum(1)
