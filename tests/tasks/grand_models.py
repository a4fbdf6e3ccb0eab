"""Models of every kind of layer, and of every way to use a parameter, that GraNd must get right."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from tests.tasks.grand_sequences import CLASSES, Attention, Encoder, Sequence, Text, Tied, Words, sequences, texts, tokens
from tests.tasks.grand_uses import USES

Tensor = torch.Tensor
Case = tuple[Callable[[], nn.Module], Callable[[int], Tensor]]


def images(channels: int = 3, size: int = 9) -> Callable[[int], Tensor]:
    return lambda rows: torch.randn(rows, channels, size, size)


def vectors(width: int = 6) -> Callable[[int], Tensor]:
    return lambda rows: torch.randn(rows, width)


def live_batch_norms(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights that are not the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model


def head(width: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(width, CLASSES)]


class Residual(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.short = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out += self.short(x)
        return self.relu(out)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16, bias=False), nn.GELU(), nn.Linear(16, CLASSES))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3), nn.Tanh(),
        *head(12 * 2 * 2),
    )  # fmt: skip


def resnet() -> nn.Module:
    return live_batch_norms(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), Residual(8, 8, 1),
            Residual(8, 16, 2), nn.AdaptiveAvgPool2d(1), *head(16),
        )
    )  # fmt: skip


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, padding=2, bias=False), nn.ReLU(),
        nn.Conv2d(8, 16, 1, groups=4), nn.ReLU(), nn.Conv2d(16, 16, 5, groups=16, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), *head(64),
    )  # fmt: skip


def spread() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), nn.Tanh(),
        nn.Conv2d(6, 6, 3, stride=2, dilation=2, padding=3), nn.Tanh(),
        nn.Conv2d(6, 7, 4, padding="same"), nn.Tanh(),
        nn.Conv2d(7, 7, 3, padding=1, padding_mode="circular"), nn.Tanh(), nn.AdaptiveAvgPool2d(1), *head(7),
    )  # fmt: skip


def lines() -> nn.Module:
    return live_batch_norms(
        nn.Sequential(
            nn.Conv1d(4, 8, 3, padding=1, stride=2), nn.BatchNorm1d(8), nn.ReLU(),
            nn.Conv1d(8, 8, 3, groups=4, dilation=2), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(),
            nn.LazyLinear(12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, CLASSES),
        )
    )  # fmt: skip


def volume() -> nn.Module:
    return nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), *head(4))


def upwards() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, stride=2, output_padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), *head(16),
    )  # fmt: skip


def norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.LayerNorm([8, 7, 7]), nn.InstanceNorm2d(8, affine=True),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.RMSNorm(32), nn.Linear(32, CLASSES),
    )  # fmt: skip


class Twice(nn.Module):
    """Modules that are called more than once: a linear layer, a convolution and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = live_batch_norms(nn.BatchNorm2d(3))
        self.line = nn.Linear(12, 12)
        self.out = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.relu(self.norm(self.conv(x)))
        x = functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.out(torch.relu(self.line(torch.relu(self.line(x)))))


class Raw(nn.Module):
    """Parameters of its own in sums, products, powers and matrix products, on either side."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 8) * 0.3)
        self.left = nn.Parameter(torch.randn(8, 8) * 0.3)
        self.shift, self.scale = nn.Parameter(torch.randn(8)), nn.Parameter(torch.rand(8) + 0.5)
        self.power = nn.Parameter(torch.rand(()) + 1)
        self.slope = nn.Parameter(torch.randn(()))
        self.unused = nn.Parameter(torch.randn(3))
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = (x @ self.matrix - self.shift) * self.scale
        x = torch.sigmoid(x) ** self.power + self.slope * x
        return self.out((self.left @ x.T).T)


class Functional(nn.Module):
    """A layer that is called, and whose weight is used behind its back as well."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(6, 6)
        self.idle = nn.Linear(6, 6)
        self.out = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.line(x) + functional.linear(x, self.line.weight * 0.5))
        self.idle(x)  # Called, but its output is dropped: the use below is the only one.
        return self.out(functional.linear(x, self.idle.weight, self.idle.bias))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.GRU(8, 6, batch_first=True)
        self.out = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x)[0][:, -1])


class Shuffled(nn.Module):
    """Layers that meet the examples folded into other dims, or in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.frame = nn.Conv2d(1, 4, 3)
        self.line = nn.Linear(4, 6)
        self.turned = nn.Linear(6, 6)
        self.out = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows, channels = x.shape[:2]
        frames = self.frame(x.reshape(rows * channels, 1, *x.shape[2:])).mean((2, 3))
        frames = torch.relu(self.line(frames)).reshape(rows, channels, -1)
        # Channels first, then the examples the other way round: row r no longer is example r.
        turned = torch.relu(self.turned(frames.permute(1, 0, 2).flip(1))).flip(1)
        return self.out(turned.mean(0))


class Square(nn.Module):
    """Sequence first, where the sequence is as long as the batch may be: shapes alone cannot tell them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(8, 8)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.line(x.transpose(0, 1))).mean(0))


class Parametrized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
        self.out = nn.Linear(8, CLASSES)
        self.slope = nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.slope(self.line(x)))


class Zeroed(nn.Module):
    """A residual branch that starts at zero, so that nothing flows into its inner layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 6)
        nn.init.zeros_(self.outer.weight)
        self.out = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.outer(torch.relu(self.inner(x))))


def frozen() -> nn.Module:
    model = cnn()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    model[3].bias.requires_grad_(False)
    return model


CASES: dict[str, Case] = {
    "mlp": (mlp, vectors()),
    "cnn": (cnn, images()),
    "resnet with batch norm": (resnet, images()),
    "grouped and depthwise": (grouped, images(4)),
    "stride, dilation and padding modes": (spread, images(3, 12)),
    "conv1d, batch norm 1d, group norm": (lines, lambda rows: torch.randn(rows, 4, 16)),
    "conv3d": (volume, lambda rows: torch.randn(rows, 2, 4, 4, 4)),
    "transposed convolution": (upwards, images()),
    "norms": (norms, images()),
    "linear over a sequence": (Sequence, sequences()),
    "linear over a long sequence": (Sequence, sequences(40)),
    "embedding": (Words, tokens()),
    "attention, batch first": (lambda: Attention(True), sequences()),
    "attention, sequence first": (lambda: Attention(False), sequences()),
    "transformer encoder": (Encoder, images()),
    "text encoder, norms after": (lambda: Text(False), texts()),
    "text encoder, norms first": (lambda: Text(True), texts()),
    "tied weights": (Tied, tokens(6, CLASSES)),
    "module called twice": (Twice, images(3, 6)),
    "raw parameters": (Raw, vectors()),
    "functional use": (Functional, vectors()),
    "recurrent": (Recurrent, sequences()),
    "folded and shuffled examples": (Shuffled, images(3, 6)),
    "sequence as long as the batch": (Square, sequences(12)),
    "parametrized": (Parametrized, vectors()),
    "zero branch": (Zeroed, vectors()),
    "frozen parameters": (frozen, images()),
    **USES,
}


def make(name: str, rows: int, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a model of the catalogue, inputs and labels, all functions of the seed."""
    build, draw = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, inputs = build(), draw(rows)
        with torch.no_grad():
            model.eval()(inputs)  # Lazy layers take their shape.
        return model, inputs, torch.randint(0, CLASSES, (rows,))
