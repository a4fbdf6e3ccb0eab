"""A small convolutional network for signals in one dimension."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from cluster.errors import InputError

LEAST = 4


class CNN1d(nn.Module):
    """Classify signals (B, L), or (B, C, L) of several channels: two convolutions with max pooling, two linear layers.

    Has no normalisation layers, so example weights act on everything it learns.
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, width: int = 16, hidden: int = 64) -> None:
        super().__init__()
        shape = (1, *input_shape) if len(input_shape) == 1 else tuple(input_shape)
        if len(shape) != 2 or shape[1] < LEAST:
            raise InputError(
                f"model cnn1d got inputs of shape {tuple(input_shape)}; it needs signals (L,) or (C, L) of at least {LEAST} "
                "points. Use the model cnn for images, mlp for anything else, or a transform that gives signals"
            )
        channels, length = shape
        self.first = nn.Conv1d(channels, width, 5, padding=2)
        self.second = nn.Conv1d(width, 2 * width, 5, padding=2)
        self.hidden = nn.Linear(2 * width * (length // 4), hidden)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K)."""
        x = x.unsqueeze(1) if x.dim() == 2 else x
        x = functional.max_pool1d(functional.relu(self.first(x)), 2)
        x = functional.max_pool1d(functional.relu(self.second(x)), 2)
        logits: torch.Tensor = self.head(functional.relu(self.hidden(x.flatten(1))))
        return logits
