"""The score `grand`: the length of the whole loss gradient (Paul et al. 2021)."""

from __future__ import annotations

import torch

from tasks.scores.el2n import error_vector
from tasks.scores.norms import gradient_norms


def grand(
    model: torch.nn.Module, inputs: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Return ||gradient of the example's cross-entropy||_2, (B,) float32, over all parameters that require a gradient.

    `logits` (B, K) is the model's output for `inputs`, with its graph, in eval mode. A gradient of each example's own
    loss: the backward pass is that of the SUM over the batch, never the mean.
    """

    def root(outputs: torch.Tensor, rows: slice) -> torch.Tensor:
        log_p = torch.log_softmax(outputs.float() if outputs.dtype != torch.float64 else outputs, dim=1)
        return error_vector(log_p.exp(), targets[rows]).to(outputs.dtype)

    return gradient_norms(model, inputs, logits, root)
