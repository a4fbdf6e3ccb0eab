"""Squared norms of per-example gradients at one use of a parameter, from what the operation saved and its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch

from tasks.scores.layout import Layout, by_example

Tensor = torch.Tensor


class Operation(Protocol):
    """Know how a parameter enters an operation. `grad` is the gradient at its output, rows of examples as `layout`."""

    rows: int

    def cells(self, grad: Tensor) -> Tensor:
        """Return the gradient with its rows first: (rows, ...)."""
        ...

    def squares(self, grad: Tensor, layout: Layout) -> Tensor:
        """Return the squared norm of each example's gradient, (examples,)."""
        ...

    def gradients(self, grad: Tensor, layout: Layout, start: int, stop: int) -> Tensor:
        """Return the gradients themselves of examples start..stop, (stop - start, *shape at the operation)."""
        ...


def wide(values: Tensor) -> Tensor:
    """Return the values in float32, or in float64 where they are that."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def chunks(examples: int, floats_each: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Yield equal (start, stop) that keep the working memory of a chunk near 16 MB, 512 MB on an accelerator.

    Equal sizes keep one kernel for all chunks, so that no example's last bits depend on where it stands in the batch.
    """
    budget = 2**22 if device.type == "cpu" else 2**27
    size = max(1, min(examples, budget // max(1, floats_each)))
    while examples % size:
        size -= 1
    for start in range(0, examples, size):
        yield start, start + size


def square_sum(values: Tensor) -> Tensor:
    """Return the sum of squares over all dims but the first."""
    flat = values.flatten(1)
    out: Tensor = torch.linalg.vecdot(flat, flat)
    return out


class Matmul:
    """Take y = x @ W: `x` (rows, in), gradient (rows, out), each example's gradient a sum over its rows."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.rows = len(x)

    def cells(self, grad: Tensor) -> Tensor:
        return grad

    def squares(self, grad: Tensor, layout: Layout) -> Tensor:
        x, g = by_example(wide(self.x), layout), by_example(wide(grad), layout)
        examples, rows, n_in = x.shape
        n_out = g.shape[2]
        if rows == 1:
            return square_sum(x) * square_sum(g)
        out = x.new_empty(examples)
        # Multiplications of each form; an element written and read back costs about as much as 8 of them.
        gram = rows * rows * (n_in + n_out + 16) < n_in * n_out * (rows + 8)
        for start, stop in chunks(examples, 2 * rows * rows if gram else n_in * n_out, x.device):
            a, b = x[start:stop], g[start:stop]
            if gram:
                out[start:stop] = torch.linalg.vecdot((a @ a.mT).flatten(1), (b @ b.mT).flatten(1)).clamp_(min=0)
            else:
                out[start:stop] = square_sum(a.mT @ b)
        return out

    def gradients(self, grad: Tensor, layout: Layout, start: int, stop: int) -> Tensor:
        x, g = by_example(wide(self.x), layout), by_example(wide(grad), layout)
        return x[start:stop].mT @ g[start:stop]


class Broadcast:
    """Take y = p * factor, or p plus something: p spread over the rows, and over those dims of a row where it is 1.

    `lead` is the number of leading dims of the gradient that make the rows; `shape` is p's, aligned to the rest.
    """

    def __init__(
        self, rows: int, lead: int, shape: tuple[int, ...], view: tuple[int, ...], *, factor: Tensor | None = None,
        sign: float = 1.0, centre: Tensor | None = None, scale: Tensor | None = None, fold: bool = False,
    ) -> None:
        self.rows, self.lead, self.shape, self.view = rows, lead, shape, view
        self.factor, self.sign = factor, sign
        # Copies of p stand one after the other along the first dim, instead of in dims of their own.
        self.fold = fold
        # The factor is (factor - centre) * scale where those are given; each is broadcast against the gradient.
        self.centre, self.scale = centre, scale

    def cells(self, grad: Tensor) -> Tensor:
        if self.fold:
            return grad.reshape(self.rows, *self.shape)
        return grad.reshape(self.rows, *grad.shape[self.lead :])

    def _example(self, grad: Tensor, layout: Layout, start: int, stop: int) -> Tensor:
        g = by_example(self.cells(wide(grad)), layout)[start:stop]
        if self.factor is not None:
            # Where p and the factor were both smaller than the output, the factor is spread to it first.
            factor = self._rows_of(self.factor, grad, layout, start, stop)
            if self.centre is not None:
                factor = factor - self._rows_of(self.centre, grad, layout, start, stop)
            g = g * factor
            if self.scale is not None:
                g = g * self._rows_of(self.scale, grad, layout, start, stop)
        dims = [1, *(2 + dim for dim, size in enumerate(self.shape) if size == 1)]
        return g.sum(dims) * self.sign

    def _rows_of(self, values: Tensor, grad: Tensor, layout: Layout, start: int, stop: int) -> Tensor:
        spread = wide(values).expand(grad.shape).reshape(self.rows, *grad.shape[self.lead :])
        return by_example(spread, layout)[start:stop]

    def squares(self, grad: Tensor, layout: Layout) -> Tensor:
        examples = layout.examples
        out = wide(grad).new_empty(examples)
        for start, stop in chunks(examples, 4 * grad.numel() // examples, grad.device):
            out[start:stop] = square_sum(self._example(grad, layout, start, stop).reshape(stop - start, -1))
        return out

    def gradients(self, grad: Tensor, layout: Layout, start: int, stop: int) -> Tensor:
        return self._example(grad, layout, start, stop).reshape(stop - start, *self.view)


class Embedding:
    """Take y = W[indices]: gradients of equal indices add up before the norm."""

    def __init__(self, indices: Tensor, shape: tuple[int, ...], padding: int) -> None:
        self.indices, self.shape, self.padding = indices.flatten(), shape, padding
        self.rows = self.indices.numel()

    def cells(self, grad: Tensor) -> Tensor:
        return grad.reshape(self.rows, -1)

    def _arranged(self, grad: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        g = by_example(self.cells(wide(grad)), layout)
        indices = by_example(self.indices, layout)
        return g * (indices != self.padding).unsqueeze(-1), indices

    def squares(self, grad: Tensor, layout: Layout) -> Tensor:
        g, indices = self._arranged(grad, layout)
        examples, each, width = g.shape
        if each == 1:
            return square_sum(g)
        # One group for each (example, index) that occurs; sorted, so that the sums have one order.
        owner = torch.arange(examples, device=g.device).unsqueeze(1).expand(examples, each)
        key, inverse, counts = torch.unique(
            (owner * self.shape[0] + indices).flatten(), return_inverse=True, return_counts=True
        )
        order = torch.argsort(inverse, stable=True)
        summed = torch.segment_reduce(g.reshape(-1, width)[order], "sum", lengths=counts, axis=0)
        per_key = square_sum(summed)
        lengths = torch.bincount(key // self.shape[0], minlength=examples)
        return torch.segment_reduce(per_key, "sum", lengths=lengths, axis=0)

    def gradients(self, grad: Tensor, layout: Layout, start: int, stop: int) -> Tensor:
        g, indices = self._arranged(grad, layout)
        out = g.new_zeros(stop - start, *self.shape)
        owner = torch.arange(stop - start, device=g.device).unsqueeze(1).expand(-1, indices.shape[1])
        return out.index_put((owner, indices[start:stop]), g[start:stop], accumulate=True)


def rows_of(shape: tuple[int, ...] | torch.Size, lead: int) -> int:
    """Return the number of rows that the first `lead` dims make."""
    return math.prod(shape[:lead])
