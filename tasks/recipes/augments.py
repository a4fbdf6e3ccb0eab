"""Augmentations of training batches of images (B, H, W) or (B, C, H, W); each draws from a CPU generator."""

from __future__ import annotations

import torch

from cluster.errors import InputError


def _need_images(name: str, x: torch.Tensor) -> None:
    if x.dim() not in (3, 4):
        raise InputError(f"augment {name} got a batch of shape {tuple(x.shape)}; it needs (B, H, W) or (B, C, H, W)")


def flip(x: torch.Tensor, generator: torch.Generator, p: float = 0.5) -> torch.Tensor:
    """Mirror each image left to right with probability `p`."""
    _need_images("flip", x)
    chosen = torch.rand(len(x), generator=generator) < p
    return torch.where(chosen.to(x.device).view(-1, *[1] * (x.dim() - 1)), x.flip(-1), x)


def crop(x: torch.Tensor, generator: torch.Generator, padding: int = 4, flip_p: float = 0.0) -> torch.Tensor:
    """Pad each image by `padding` zeros on every side and cut its size out of it at random.

    With `flip_p` above 0 it is mirrored with that probability too: crop with flip_p 0.5 is the usual recipe of CIFAR.
    """
    _need_images("crop", x)
    if padding < 1:
        raise InputError(f"augment crop: padding is {padding}; give at least 1 pixel")
    height, width = x.shape[-2:]
    shifts = torch.randint(0, 2 * padding + 1, (2, len(x)), generator=generator)
    lines = torch.arange(height) + shifts[0][:, None]
    columns = torch.arange(width) + shifts[1][:, None]
    padded = torch.nn.functional.pad(x, (padding, padding, padding, padding))
    if x.dim() == 4:
        lines, columns = lines[:, None], columns[:, None]
    lines = lines.to(x.device)[..., :, None].expand(*x.shape[:-1], width + 2 * padding)
    columns = columns.to(x.device)[..., None, :].expand(x.shape)
    out = padded.gather(-2, lines).gather(-1, columns)
    return flip(out, generator, flip_p) if flip_p else out
