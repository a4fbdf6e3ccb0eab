"""Squared norms of gradients taken one example after the other: for what has no form of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cluster.errors import InputError
from tasks.scores.operations import wide

Tensor = torch.Tensor

# Logits of an example alone and in its batch differ by less than this share of the largest, unless the model mixes examples.
_ALONE, _ALONE_HALF = 1e-3, 5e-2


def squares_one_by_one(
    model: torch.nn.Module,
    inputs: Tensor,
    logits: Tensor,
    parameters: list[torch.nn.Parameter],
    root: Callable[[Tensor, slice], Tensor],
) -> Tensor:
    """Return the squared norms over `parameters` by a forward and a backward pass for each example.

    Raises InputError where an example's logits alone are not those (B, K) that it has in its batch.
    """
    out = torch.zeros(len(inputs), dtype=torch.float64, device=inputs.device)
    alone = []
    for number in range(len(inputs)):
        rows = slice(number, number + 1)
        single = model(inputs[rows])
        alone.append(single.detach())
        gradients = torch.autograd.grad(single, parameters, root(single.detach(), rows), allow_unused=True)
        for gradient in gradients:
            if gradient is not None:
                dense = gradient.to_dense() if gradient.is_sparse else gradient
                flat = wide(torch.view_as_real(dense) if dense.is_complex() else dense).flatten()
                out[number] += torch.linalg.vecdot(flat, flat)
    half = (torch.float16, torch.bfloat16)
    rough = torch.is_autocast_enabled(inputs.device.type) or any(one.dtype in half for one in (logits, *model.parameters()))
    _check_apart(logits, torch.cat(alone), _ALONE_HALF if rough else _ALONE)
    return out


def _check_apart(logits: Tensor, alone: Tensor, share: float) -> None:
    """Raise InputError where logits (B, K) of examples alone and in company differ by more than that share of the largest."""
    difference, size = (logits - alone).abs().amax(1).nan_to_num(0.0, 0.0), logits.abs().nan_to_num(0.0, 0.0).max()
    mixed = int(torch.count_nonzero(difference > share * size))
    if mixed:
        raise InputError(
            f"the model mixes the examples of a batch: the logits of {mixed} of {len(logits)} are others alone, "
            f"by up to {float(difference.max()):.2g} of {float(size):.2g}, so no gradient is an example's own. Keep them apart"
        )
