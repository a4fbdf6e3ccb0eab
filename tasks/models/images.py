"""What the image models accept: (C, H, W), or (H, W) of one channel."""

from __future__ import annotations

import torch

from cluster.errors import InputError


def image_shape(model: str, input_shape: tuple[int, ...], least: int) -> tuple[int, int, int]:
    """Return (channels, height, width). Raises InputError unless the shape is an image of at least `least` pixels."""
    shape = (1, *input_shape) if len(input_shape) == 2 else tuple(input_shape)
    if len(shape) != 3:
        raise InputError(
            f"model {model} got inputs of shape {tuple(input_shape)}; it needs images (H, W) or (C, H, W). "
            "Use the model mlp, or a transform that gives images"
        )
    channels, height, width = shape
    if min(height, width) < least:
        raise InputError(
            f"model {model} got images of {height} x {width} pixels; it needs at least {least} x {least}. "
            "Use the model mlp, or a transform that makes them larger"
        )
    return channels, height, width


def with_channels(x: torch.Tensor) -> torch.Tensor:
    """Return images as (B, C, H, W)."""
    return x.unsqueeze(1) if x.dim() == 3 else x
