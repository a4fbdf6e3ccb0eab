"""The models and inputs of the GPU benchmark."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.gpu_timing import Bench
from tasks.models.build import build_model
from tasks.spec import Use

WORDS, CLASSES = 1000, 10


class Encoder(nn.Module):
    """Classify sequences of word numbers, or of bytes scaled to 0..255, with a transformer encoder and a mean."""

    def __init__(
        self, input_shape: tuple[int, ...], num_classes: int, width: int = 256, layers: int = 6, length: int = 128
    ) -> None:
        super().__init__()
        del input_shape
        self.length = length
        self.words = nn.Embedding(WORDS, width)
        self.places = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K) of (B, ...), of which the first `length` numbers are read."""
        words = x.flatten(1)[:, : self.length].round().long() if x.is_floating_point() else x
        hidden = self.words(words) + self.places(torch.arange(words.shape[1], device=x.device))
        logits: torch.Tensor = self.head(self.norm(self.body(hidden)).mean(1))
        return logits


Draw = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


def subjects(bench: Bench) -> dict[str, tuple[nn.Module, Draw]]:
    """Return, by name, a model in eval mode and draw(rows) -> (inputs, labels), all on the device."""
    small = bench.quick
    length = 16 if small else 128
    resnet = build_model(Use(use="resnet18", args={"width": 8 if small else 64}), (3, 32, 32), CLASSES, seed=0)
    args = {"width": 32, "layers": 2, "length": length} if small else {}
    encoder = build_model(Use(use="benchmarks.gpu_models:Encoder", args=args), (length,), CLASSES, seed=0)
    generator = torch.Generator().manual_seed(0)

    def labels(rows: int) -> torch.Tensor:
        return torch.randint(0, CLASSES, (rows,), generator=generator).to(bench.device)

    def images(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(rows, 3, 32, 32, generator=generator).to(bench.device), labels(rows)

    def words(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randint(0, WORDS, (rows, length), generator=generator).to(bench.device), labels(rows)

    name = f"encoder, {2 if small else 6} layers, {length} words"
    return {
        "ResNet-18, 32x32": (resnet.to(bench.device).eval(), images),
        name: (encoder.to(bench.device).eval(), words),
    }  # fmt: skip
