"""Learning rates over the steps of a training; each takes the optimizer, the number of steps and the lr."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR


def onecycle(optimizer: Optimizer, steps: int, lr: float, pct_start: float = 0.3) -> LRScheduler:
    """Return the one-cycle policy (Smith 2018) with peak `lr`; momentum, or beta 1, cycles the other way."""
    # With fewer steps than phases the policy divides by zero; 4 steps always have a rise and a fall.
    return OneCycleLR(optimizer, max_lr=lr, total_steps=max(steps, 4), pct_start=pct_start)


def constant(optimizer: Optimizer, steps: int, lr: float, warmup: int = 0) -> LRScheduler:
    """Return a rate that stays at `lr` after `warmup` steps of linear rise."""
    del steps, lr
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1)))


def cosine(optimizer: Optimizer, steps: int, lr: float, warmup: int = 0) -> LRScheduler:
    """Return a rate that rises over `warmup` steps and then falls to zero along a half cosine."""
    del lr

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return LambdaLR(optimizer, factor)
