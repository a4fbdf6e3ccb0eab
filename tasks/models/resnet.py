"""ResNet-18 for images of about 32 x 32 pixels."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from cluster.errors import InputError
from tasks.models.images import image_shape, with_channels


class Block(nn.Module):
    """Add two normalised 3 x 3 convolutions to their input, projected by 1 x 1 where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activations of the block."""
        out = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class ResNet18(nn.Module):
    """Classify images (B, C, H, W), or (B, H, W) of one channel, with the 18-layer residual network of He et al. 2016.

    The stem is the 3 x 3 convolution, without pooling, that is usual for 32 x 32 images. `width` is the number of
    channels of the first stage (64 gives 11.2 million parameters).
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, width: int = 64) -> None:
        super().__init__()
        if width < 1:
            raise InputError(f"resnet18: width is {width}; give at least 1 channel")
        channels, _, _ = image_shape("resnet18", input_shape, least=8)
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        inner = width
        for stage, stride in enumerate((1, 2, 2, 2)):
            outer = width * 2**stage
            blocks += [Block(inner, outer, stride), Block(outer, outer, 1)]
            inner = outer
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inner, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K)."""
        x = functional.relu(self.norm(self.stem(with_channels(x))))
        logits: torch.Tensor = self.head(self.blocks(x).mean((2, 3)))
        return logits
