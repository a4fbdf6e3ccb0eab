"""The score `grand_last`: GraNd of the last linear layer, in closed form."""

from __future__ import annotations

import torch

from cluster.errors import InputError

Tensor = torch.Tensor


def grand_last(length: Tensor, squares: Tensor) -> Tensor:
    """Return ||p - onehot(y)||_2 sqrt(||h||^2 + 1), (B,), for the first factor (B,), which is EL2N, and `feature_squares`."""
    return length * squares.sqrt()


def feature_squares(features: Tensor, bias: bool) -> Tensor:
    """Return ||h||^2 + 1, (B,), for features h (B, d). The 1 only where there is a bias."""
    # torch.linalg.vecdot makes a matrix product of each row: 48 µs for 256 rows of 256 on one core, this 8.
    squares: Tensor = torch.linalg.vector_norm(features, dim=1).square()
    return squares + 1 if bias else squares


class LastLinear:
    """Catch the input of the last nn.Linear that a forward pass calls. A context manager: its hooks go with it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.calls: list[tuple[torch.nn.Linear, torch.Tensor, torch.Tensor, int]] = []

    def __enter__(self) -> LastLinear:
        self.handles = [
            module.register_forward_hook(self._keep, with_kwargs=True)
            for module in self.model.modules()
            if isinstance(module, torch.nn.Linear)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _keep(
        self, module: torch.nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
    ) -> None:
        assert isinstance(module, torch.nn.Linear)
        x = args[0] if args else named["input"]
        self.calls.append((module, x.detach(), output, output._version))

    def features(self, logits: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """Return h (B, d) float32 and whether the layer has a bias.

        Raises InputError where the model calls no nn.Linear, or where its output is not the logits: the closed form
        would be wrong there.
        """
        if not self.calls:
            raise InputError(
                "grand_last needs the input of the model's last nn.Linear; the model calls none. Use grand or el2n"
            )
        layer, x, output, version = self.calls[-1]
        if getattr(layer.forward, "__func__", None) is not torch.nn.Linear.forward:
            raise InputError(
                f"grand_last is exact only where the last layer is x W + b; {type(layer).__name__} has a forward of its own. "
                "Use grand or el2n"
            )
        again = sum(1 for call in self.calls if call[0] is layer)
        whole = output.shape == logits.shape and output._version == version and _same(output, logits)
        if again > 1 or not whole:
            raise InputError(
                "grand_last is exact only where the logits are the output of the last nn.Linear, called once; here the "
                f"layer {tuple(layer.weight.shape)} is called {again} times and its output is "
                f"{'' if whole else 'not '}the logits {tuple(logits.shape)}. Use grand or el2n"
            )
        self.calls.clear()
        return x.float(), layer.bias is not None


def _same(output: Tensor, logits: Tensor) -> bool:
    """Return whether two tensors hold the same values; of one and the same memory, without waiting for a GPU."""
    if output.data_ptr() == logits.data_ptr() and output.stride() == logits.stride() and output.dtype == logits.dtype:
        return True
    return torch.equal(output, logits)
