"""Optimizers by name; each takes parameters, lr, weight_decay and its own arguments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch


def adamw(
    parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float, betas: Sequence[float] = (0.9, 0.999)
) -> torch.optim.Optimizer:
    """Return AdamW."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=(betas[0], betas[1]))


def sgd(
    parameters: Iterable[torch.nn.Parameter],
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    nesterov: bool = True,
) -> torch.optim.Optimizer:
    """Return SGD with momentum."""
    return torch.optim.SGD(
        parameters, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov and momentum > 0
    )
