"""Models over sequences and words for the tests of GraNd, and what they are given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

Tensor = torch.Tensor
CLASSES = 5


def sequences(length: int = 4, width: int = 8) -> Callable[[int], Tensor]:
    return lambda rows: torch.randn(rows, length, width)


def tokens(length: int = 7, words: int = 11) -> Callable[[int], Tensor]:
    return lambda rows: torch.randint(0, words, (rows, length))


def texts(length: int = 7, words: int = 11) -> Callable[[int], Tensor]:
    """Return texts whose first word comes twice and most of which end in padding, 0."""

    def draw(rows: int) -> Tensor:
        out = torch.randint(1, words, (rows, length))
        out[:, 1] = out[:, 0]
        lengths = length - torch.arange(rows) % 5
        return out * (torch.arange(length) < lengths.unsqueeze(1))

    return draw


class Sequence(nn.Module):
    """Linear and LayerNorm over every position, with and without a bias, then the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.wide = nn.Linear(8, 20)
        self.bare = nn.Linear(20, 8, bias=False)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((x + self.bare(functional.gelu(self.wide(self.norm(x))))).mean(1))


class Words(nn.Module):
    """Embeddings of tokens that repeat, with a padding index, and of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8, padding_idx=0)
        self.places = nn.Embedding(7, 8)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.words(x) + self.places(torch.arange(x.shape[1], device=x.device))
        return self.out(torch.tanh(self.norm(hidden)).mean(1))


class Attention(nn.Module):
    """Self- and cross-attention, batch first or sequence first."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.own = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.cross = nn.MultiheadAttention(8, 4, batch_first=batch_first, add_bias_kv=True)
        self.other = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=batch_first)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if not self.batch_first:
            x = x.transpose(0, 1)
        x = x + self.own(x, x, x)[0]
        y = torch.tanh(x)
        x = x + self.cross(x, y, y)[0]
        x = x + self.other(x, y[..., :6], y[..., :6])[0]
        return self.out(x.mean(1 if self.batch_first else 0))


class Encoder(nn.Module):
    """A small vision transformer: class token, position parameters, two encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 3, stride=3)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 10, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.out(self.body(x)[:, 0])


class Text(nn.Module):
    """A transformer encoder of words: padding, positions of its own, and one matrix as embedding and as output layer."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8, padding_idx=0)
        self.places = nn.Parameter(torch.randn(1, 7, 8) * 0.3)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True, norm_first=norm_first)
        # With its fused path left on: padding goes through nested tensors there, where nothing asks for a gradient.
        self.body = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=not norm_first)
        self.out = nn.Linear(8, 11)
        self.out.weight = self.words.weight
        for parameter in self.body.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, 0.7, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        there = (x != 0).unsqueeze(-1).float()
        hidden = self.body(self.words(x) + self.places, src_key_padding_mask=x == 0)
        return self.out((hidden * there).sum(1) / there.sum(1))


class Tied(nn.Module):
    """One matrix as embedding and as output layer, and a second parameter shared by two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(CLASSES, 8)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.out = nn.Linear(8, CLASSES, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.two(torch.relu(self.one(self.words(x)).mean(1)))))


class Packed(nn.Module):
    """Words that are no padding, gathered over all texts, a layer over them, and their mean in each text."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8, padding_idx=0)
        self.inner, self.out = nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def gathered(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(self.words(x)[x != 0]))

    def forward(self, x: Tensor) -> Tensor:
        there = x != 0
        owner = there.nonzero()[:, 0]
        total = self.words.weight.new_zeros(len(x), 8).index_add(0, owner, self.gathered(x))
        return self.out(total / there.sum(1, keepdim=True))


class PackedBySlices(Packed):
    """The same, but that texts are cut out of the words by where they begin and end."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.stack([words.mean(0) for words in self.gathered(x).split((x != 0).sum(1).tolist())]))


class PackedByProduct(Packed):
    """The same, but that words are added up by a product with what says whose they are."""

    def forward(self, x: Tensor) -> Tensor:
        there = x != 0
        owns = functional.one_hot(there.nonzero()[:, 0], len(x)).T
        return self.out(owns.to(self.out.weight) @ self.gathered(x) / there.sum(1, keepdim=True))


class Routed(nn.Module):
    """Two experts, each given the words that choose it."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        words = x.flatten(0, 1)
        chosen = (words[:, 0] > 0).long()
        hidden = torch.zeros_like(words)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            hidden = hidden.index_copy(0, rows, torch.relu(expert(words[rows])))
        return self.out(hidden.unflatten(0, x.shape[:2]).mean(1))
