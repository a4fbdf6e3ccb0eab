"""A multilayer perceptron on flattened inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from cluster.errors import InputError


class MLP(nn.Module):
    """Classify inputs (B, *input_shape), flattened, through hidden ReLU layers of the widths `hidden`."""

    def __init__(
        self, input_shape: tuple[int, ...], num_classes: int, hidden: Sequence[int] = (256,), dropout: float = 0.0
    ) -> None:
        super().__init__()
        if any(width < 1 for width in hidden):
            raise InputError(f"mlp: hidden is {list(hidden)}; give one width of at least 1 a layer")
        if not 0 <= dropout < 1:
            raise InputError(f"mlp: dropout is {dropout}; give a probability from 0 up to, not including, 1")
        layers: list[nn.Module] = []
        width = math.prod(input_shape)
        for following in hidden:
            layers += [nn.Linear(width, following), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = following
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K)."""
        logits: torch.Tensor = self.head(self.body(x.flatten(1)))
        return logits
