"""Uses of parameters in which a factor, a padding or an overlap that is overlooked gives another gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tests.tasks.grand_sequences import CLASSES, tokens

Tensor = torch.Tensor


class Use(nn.Module):
    """Holds modules and parameters by name, and a forward pass that uses them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **held: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = run
        for name, one in held.items():
            setattr(self, name, one)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, dtype=dtype) / 2)


def words(**settings: Any) -> Callable[[], nn.Module]:
    return lambda: Use(
        lambda m, x: m.out(torch.tanh(m.words(x).sum(1))), words=nn.Embedding(9, 6, **settings), out=nn.Linear(6, CLASSES)
    )


def sparse_words() -> nn.Module:
    model = words(sparse=True)()
    # With a hook, which leaves it as it is, the gradient itself is asked for.
    model.words.weight.register_hook(lambda gradient: gradient)
    return model


def places(at: Callable[[], Tensor], **settings: Any) -> Callable[[], nn.Module]:
    return lambda: Use(
        lambda m, x: m.out(torch.tanh(m.words(x) + m.places(at())).mean(1)),
        words=nn.Embedding(9, 6), places=nn.Embedding(7, 6, **settings), out=nn.Linear(6, CLASSES),
    )  # fmt: skip


def scaled_product() -> nn.Module:
    return Use(lambda m, x: torch.addmm(m.b, x, m.w, beta=0.5, alpha=2.0), b=drawn(CLASSES), w=drawn(6, CLASSES))


def scaled_bias() -> nn.Module:
    return Use(lambda m, x: torch.addmm(m.b, x, m.w, beta=0.5), b=drawn(CLASSES), w=drawn(6, CLASSES))


def scaled_sum() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.out(torch.tanh(torch.add(x, m.p, alpha=3)) - torch.add(m.p, x, alpha=2))

    return Use(run, p=drawn(6), out=nn.Linear(6, CLASSES))


def cut_twice() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        third = [functional.linear(x, w) for w in m.w.chunk(3)]
        return m.out(torch.tanh(torch.cat([*third, functional.linear(x, m.w.chunk(2)[1])], 1)))

    return Use(run, w=drawn(12, 6), out=nn.Linear(18, CLASSES))


def other_shapes() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.out(torch.tanh(functional.linear(x, m.w) + x @ m.w.view(3, 12).view(6, 6)))

    return Use(run, w=drawn(6, 6), out=nn.Linear(6, CLASSES))


def narrow_norm() -> nn.Module:
    # It learns alone, or its share of the length would hide the small number that is added to its variance.
    norm, head = nn.BatchNorm1d(8), nn.Linear(8, CLASSES).requires_grad_(False)
    norm.running_var.fill_(1e-4)
    with torch.no_grad():
        head.weight.mul_(0.01)
    return nn.Sequential(nn.Linear(6, 8).requires_grad_(False), norm, nn.LeakyReLU(), head)


def wide_transposed() -> nn.Module:
    parts = [nn.ConvTranspose2d(64, 64, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES)]
    return nn.Sequential(*parts)


def spectral() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.out(torch.fft.irfft(torch.fft.rfft(x.float()) * m.w * m.gain, n=6).to(x.dtype))

    return Use(run, w=drawn(4, dtype=torch.cfloat), gain=drawn(4), out=nn.Linear(6, CLASSES))


USES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "scaled product": (scaled_product, lambda rows: torch.randn(rows, 6)),
    "scaled bias": (scaled_bias, lambda rows: torch.randn(rows, 6)),
    "scaled sum": (scaled_sum, lambda rows: torch.randn(rows, 6)),
    "words by frequency": (words(scale_grad_by_freq=True), tokens(7, 9)),
    "sparse words": (sparse_words, tokens(7, 9)),
    "places with padding": (places(lambda: torch.arange(7), padding_idx=0), tokens(7, 9)),
    "places that repeat": (places(lambda: torch.arange(7) // 2), tokens(7, 9)),
    "cut twice": (cut_twice, lambda rows: torch.randn(rows, 6)),
    "one parameter in two shapes": (other_shapes, lambda rows: torch.randn(rows, 6)),
    "batch norm of a small variance": (narrow_norm, lambda rows: torch.randn(rows, 6)),
    "wide transposed convolution": (wide_transposed, lambda rows: torch.randn(rows, 64, 4, 4)),
    "complex parameter": (spectral, lambda rows: torch.randn(rows, 6)),
}

# Of these, how many parameters take the loop.
USES_LOOPED = {
    "scaled product": 2,
    "scaled bias": 1,
    "words by frequency": 1,
    "sparse words": 1,
    "places with padding": 1,
    "places that repeat": 1,
    "cut twice": 1,
    "one parameter in two shapes": 1,
    "complex parameter": 2,
}
