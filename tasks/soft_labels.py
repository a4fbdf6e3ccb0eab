"""Soft labels: a teacher's class probabilities beside the labels, and the loss of a student that learns from both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cluster.errors import StageError
from tasks.arithmetic import arithmetic, autocast
from tasks.evaluation import FORWARD_ROWS
from tasks.recipe import Pipeline
from tasks.spec import Numerics

F32 = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class SoftTargets:
    """Hold softmax(t / T) (N, K) of a teacher's logits t, one row an example, and how a student takes it.

    The loss of an example with logits z is (1 - mix) hard + mix T^2 KL(softmax(t / T) || softmax(z / T)), where `hard` is
    the recipe's loss with the label. T^2 keeps the gradient's size where T changes. Hinton et al. 2015, "Distilling the
    knowledge in a neural network" (arXiv 1503.02531); for pruned data Ben-Baruch et al. 2024, "Distilling the knowledge in
    data pruning" (arXiv 2403.07854).
    """

    probabilities: F32
    temperature: float
    mix: float

    def loss(self, hard: torch.Tensor, logits: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
        """Return the loss of each row (B,) from the hard one (B,), logits (B, K) and the teacher's probabilities (B, K)."""
        predicted = functional.log_softmax(logits / self.temperature, dim=1)
        apart = functional.kl_div(predicted, soft, reduction="none").sum(1)
        return (1 - self.mix) * hard + self.mix * self.temperature**2 * apart


def teacher_probabilities(
    model: nn.Module, x: np.ndarray[Any, Any], pipeline: Pipeline, numerics: Numerics, temperature: float
) -> F32:
    """Return softmax(t / T) (N, K) of the model on stored examples x (N, ...), in eval mode, without augmentation.

    Every pass has the same number of rows, so that a row's result does not depend on how many there are. Raises StageError
    where one is not finite.
    """
    out: list[F32] = []
    model.eval()
    with arithmetic(numerics), torch.inference_mode():
        for start in range(0, len(x), FORWARD_ROWS):
            batch = x[start : start + FORWARD_ROWS]
            count = len(batch)
            if count < FORWARD_ROWS:
                batch = np.concatenate([batch, np.repeat(batch[-1:], FORWARD_ROWS - count, axis=0)])
            with autocast(numerics):
                logits = model(pipeline.prepare(batch))
            out.append(torch.softmax(logits[:count].float() / temperature, dim=1).cpu().numpy())
    found = np.concatenate(out)
    broken = int((~np.isfinite(found)).any(1).sum())
    if broken:
        raise StageError(
            f"the teacher gives logits that are not finite for {broken} of {len(x)} examples; lower lr, so that its training "
            "does not diverge"
        )
    return found
