"""A small convolutional network for small images."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tasks.models.images import image_shape, with_channels


class CNN(nn.Module):
    """Classify images (B, C, H, W), or (B, H, W) of one channel: two convolutions with max pooling, two linear layers.

    Has no normalisation layers, so example weights act on everything it learns.
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, width: int = 32, hidden: int = 128) -> None:
        super().__init__()
        channels, height, size = image_shape("cnn", input_shape, least=4)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.hidden = nn.Linear(2 * width * (height // 4) * (size // 4), hidden)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K)."""
        x = functional.max_pool2d(functional.relu(self.first(with_channels(x))), 2)
        x = functional.max_pool2d(functional.relu(self.second(x)), 2)
        logits: torch.Tensor = self.head(functional.relu(self.hidden(x.flatten(1))))
        return logits
