"""Squared norms of per-example gradients of a convolution's weight, in the cheaper of two exact forms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from tasks.scores.layout import Layout, by_example
from tasks.scores.operations import Tensor, chunks, square_sum, wide


@dataclass(frozen=True)
class Geometry:
    """Hold a convolution's settings, one number a spatial dim."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    output_padding: tuple[int, ...]


class Convolution:
    """Take y = conv(x, W): `x` (rows, channels, ...) and the gradient (rows, channels, ...) make W's gradient."""

    def __init__(self, x: Tensor, weight: Tensor, geometry: Geometry) -> None:
        self.x, self.weight, self.geometry = x, weight, geometry
        self.rows = len(x)

    def cells(self, grad: Tensor) -> Tensor:
        return grad

    def squares(self, grad: Tensor, layout: Layout) -> Tensor:
        x, g = by_example(wide(self.x), layout), by_example(wide(grad), layout)
        if x.shape[1] == 1 and not self.geometry.transposed:
            if self._gram_is_cheaper(x, g):
                return self._gram(x[:, 0], g[:, 0])
            if x.device.type != "cpu":
                return self._unfolded(x[:, 0], g[:, 0])
        out = x.new_empty(len(x))
        for number in range(len(x)):
            gradient = self._gradient(x[number], g[number])
            out[number] = torch.linalg.vecdot(gradient.flatten(), gradient.flatten())
        return out

    def gradients(self, grad: Tensor, layout: Layout, start: int, stop: int) -> Tensor:
        x, g = by_example(wide(self.x), layout), by_example(wide(grad), layout)
        return torch.stack([self._gradient(x[number], g[number]) for number in range(start, stop)])

    def _gradient(self, x: Tensor, g: Tensor) -> Tensor:
        """Return one example's gradient from x and g (its rows, channels, ...) by the library's own kernel."""
        at = self.geometry
        out = torch.ops.aten.convolution_backward(
            g, x, self.weight.to(x.dtype), None, list(at.stride), list(at.padding), list(at.dilation), at.transposed,
            list(at.output_padding), at.groups, [False, True, False],
        )  # fmt: skip
        return out[1]  # type: ignore[no-any-return]

    def _gram_is_cheaper(self, x: Tensor, g: Tensor) -> bool:
        """Compare multiplications; an element written and read back costs about as much as 8 of them (measured)."""
        pixels, positions = math.prod(x.shape[3:]), math.prod(g.shape[3:])
        taps = math.prod(self.weight.shape[2:])
        direct = self.weight.numel() * (positions + 8)
        groups = self.geometry.groups
        padded = math.prod(n + 2 * p for n, p in zip(x.shape[3:], self.geometry.padding))
        gram = pixels**2 * x.shape[2] + positions**2 * (g.shape[2] + (4 * taps + 8) * groups) + 8 * padded**2 * groups
        return gram < direct

    def _gram(self, x: Tensor, g: Tensor) -> Tensor:
        """Sum the product of the patches' Gram matrix and the gradients' one over all pairs of output positions.

        The patches' Gram matrix is a sum over kernel taps of shifted views of the pixels' Gram matrix, so no patches
        are made. x (examples, channels, ...), g (examples, channels, ...). What all pixels share enters squared: where a
        norm after the layer takes it out of the gradient, the error grows with it, to 5e-4 for inputs of mean 100 and spread 1.
        """
        at, examples = self.geometry, len(x)
        spatial, outputs = x.shape[2:], g.shape[2:]
        pads = [side for width in reversed(at.padding) for side in (width, width)]
        padded = [n + 2 * width for n, width in zip(spatial, at.padding)]
        out = x.new_empty(examples)
        each = at.groups * (2 * math.prod(padded) ** 2 + 2 * math.prod(outputs) ** 2)
        for start, stop in chunks(examples, each, x.device):
            size = (stop - start) * at.groups
            a = x[start:stop].reshape(size, x.shape[1] // at.groups, -1)
            b = g[start:stop].reshape(size, g.shape[1] // at.groups, -1)
            pixels = (a.mT @ a).reshape(size, *spatial, *spatial)
            if any(at.padding):
                pixels = pad(pixels, pads + pads)
            patches = x.new_zeros(size, *outputs, *outputs)
            for tap in _taps(self.weight.shape[2:]):
                cut = self._reached(tap, outputs)
                patches += pixels[:, *cut, *cut]
            per_group = torch.linalg.vecdot(patches.reshape(size, -1), (b.mT @ b).reshape(size, -1))
            out[start:stop] = per_group.reshape(stop - start, at.groups).sum(1).clamp_(min=0)
        return out

    def _reached(self, tap: tuple[int, ...], outputs: torch.Size) -> tuple[slice, ...]:
        """Return the padded pixels that a kernel tap meets at each output position."""
        at = self.geometry
        return tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in zip(tap, at.dilation, outputs, at.stride)
        )

    def _unfolded(self, x: Tensor, g: Tensor) -> Tensor:
        """Make the gradients of a chunk of examples by one batched product of patches and output gradients."""
        at, examples = self.geometry, len(x)
        kernel, outputs = self.weight.shape[2:], g.shape[2:]
        pads = [side for width in reversed(at.padding) for side in (width, width)]
        out = x.new_empty(examples)
        positions = math.prod(outputs)
        each = x.shape[1] * math.prod(kernel) * positions + self.weight.numel()
        for start, stop in chunks(examples, each, x.device):
            size = (stop - start) * at.groups
            padded = pad(x[start:stop], pads)
            every = (slice(None), slice(None))
            cuts = [padded[every + self._reached(tap, outputs)].reshape(size, -1, positions) for tap in _taps(kernel)]
            patches = torch.cat(cuts, 1)
            b = g[start:stop].reshape(size, g.shape[1] // at.groups, positions)
            out[start:stop] = square_sum((b @ patches.mT).reshape(stop - start, -1))
        return out


def _taps(kernel: tuple[int, ...] | torch.Size) -> list[tuple[int, ...]]:
    out: list[tuple[int, ...]] = [()]
    for size in kernel:
        out = [(*tap, number) for tap in out for number in range(size)]
    return out
