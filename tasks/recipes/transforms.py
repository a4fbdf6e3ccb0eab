"""Transforms of every batch, in training and in scoring: normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cluster.errors import InputError


def scale(x: torch.Tensor, by: float) -> torch.Tensor:
    """Return x * by."""
    return x * by


def standardize(x: torch.Tensor, mean: float | Sequence[float], std: float | Sequence[float]) -> torch.Tensor:
    """Return (x - mean) / std. Numbers act on everything, lists on the channels: dimension 1 of (B, C, ...)."""
    centre, spread = _like("mean", mean, x), _like("std", std, x)
    if not (spread > 0).all():
        raise InputError(f"transform standardize: std is {std}; it must be above 0")
    return (x - centre) / spread


def _like(name: str, value: float | Sequence[float], x: torch.Tensor) -> torch.Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float32, device=x.device)
    if tensor.dim() == 0:
        return tensor
    if tensor.dim() != 1 or x.dim() < 2 or tensor.numel() != x.shape[1]:
        raise InputError(
            f"transform standardize: {name} has {tensor.numel()} values for inputs of shape {tuple(x.shape[1:])}; "
            "give one number, or one for each channel (the first dimension of an example)"
        )
    return tensor.view(1, -1, *[1] * (x.dim() - 2))
