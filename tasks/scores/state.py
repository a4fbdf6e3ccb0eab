"""Run a model in eval mode and leave it, and the random state, exactly as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def scoring(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Put every submodule in eval mode and restore each one's own mode, its buffers and the random state at the end.

    Flags are set directly: a model's own `train` method may do more than that.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    buffers = [
        (module, dict(module._buffers), {name: (value._version, value.clone())
                                         for name, value in module._buffers.items() if value is not None})
        for module in modules
        if module._buffers
    ]  # fmt: skip
    # An embedding with max_norm renormalises its weight in place, in a forward pass.
    renormalised = [
        (module.weight, module.weight.detach().clone(), module.weight._version)
        for module in modules
        if isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag) and module.max_norm is not None
    ]
    with ExitStack() as stack:
        cuda = [device] if device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        try:
            for module in modules:
                module.training = False
            yield
        finally:
            for module, mode in zip(modules, modes):
                module.training = mode
            with torch.no_grad():
                for module, held, copies in buffers:
                    module._buffers.clear()
                    module._buffers.update(held)
                    for name, (version, copy) in copies.items():
                        value = held[name]
                        if value is not None and value._version != version:
                            value.copy_(copy)
                for weight, copy, version in renormalised:
                    if weight._version != version:
                        weight.copy_(copy)
