"""From the name of a model to a module with seeded weights, and the check that it fits the data."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from cluster.errors import InputError, SecateurError
from tasks.arithmetic import isolated_rng, seed_all
from tasks.imports import resolve
from tasks.models import BUILTIN_MODELS
from tasks.recipe import Pipeline, offered
from tasks.seeding import derive_seed
from tasks.spec import Recipe, Use


def build_model(use: Use, shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
    """Return the model on the CPU in float32 and train mode, with weights that are a function of `seed` alone.

    A user's callable is given input_shape (tuple) and num_classes where its signature names them. The weights come from
    a stream of their own, unrelated to the order of the batches under the same seed; global random state is left
    as it was. Raises InputError when the callable cannot be found, fails, or returns something else than a module.
    """
    target = resolve(use, BUILTIN_MODELS, "model")
    arguments: dict[str, Any] = {
        **offered(target, {"input_shape": tuple(shape), "num_classes": num_classes}),
        **use.args,
    }
    try:
        with isolated_rng():
            seed_all(derive_seed("init", seed))
            model = target(**arguments)
    except SecateurError:
        raise
    except Exception as error:
        raise InputError(
            f"model {use.use!r} could not be built with {sorted(arguments)} for inputs {tuple(shape)} and "
            f"{num_classes} classes: {type(error).__name__}: {error}. Mend the model or its `args`"
        ) from error
    if not isinstance(model, nn.Module):
        kind = "a class" if inspect.isclass(model) else f"a {type(model).__name__}"
        raise InputError(f"model {use.use!r} returned {kind}; it must return a torch.nn.Module")
    return model.float()


def place_model(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model on the device; on CUDA with convolutions in channels_last, as the inputs are."""
    model = model.to(device)
    # 4-d weights only; with 5-d ones (Conv3d) the call fails. On an H200, ResNet-18 on 32 x 32 images forwards 1.3
    # times (float32) and 1.4 times (bfloat16) as many rows a second.
    if device.type == "cuda" and not any(weight.dim() == 5 for weight in model.parameters()):
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def check_model(
    use: Use, shape: tuple[int, ...], num_classes: int, recipe: Recipe, *, dtype: str = "float32", seed: int = 0
) -> None:
    """Raise InputError unless the model turns two stored rows of zeros into finite logits (2, K) under the recipe.

    `dtype` is that of the stored features, uint8 or float32. Every piece of the recipe is built and tried too. Runs on
    the CPU, in eval mode; changes no global state.
    """
    import numpy as np

    if num_classes < 2:
        raise InputError(f"the data has {num_classes} class; classification needs at least 2. Check the labels")
    pipeline = Pipeline(recipe)
    model = build_model(use, shape, num_classes, seed).eval()
    inputs = pipeline.prepare(np.zeros((2, *shape), dtype=dtype))
    augmented = pipeline.augment(inputs, seed, 0)
    try:
        with isolated_rng(), torch.no_grad():
            logits = model(augmented)
    except SecateurError:
        raise
    except Exception as error:
        raise InputError(
            f"model {use.use!r} does not accept inputs {tuple(augmented.shape)} (two rows of {tuple(shape)} after the "
            f"recipe): {type(error).__name__}: {error}. Choose a model for this shape, or give a `transform`"
        ) from error
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (2, num_classes):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError(
            f"model {use.use!r} returned {got} for 2 rows; it must return logits (2, {num_classes}). "
            f"Check its number of outputs: the data has {num_classes} classes"
        )
    if not logits.isfinite().all():
        raise InputError(f"model {use.use!r} returned NaN or infinity for rows of zeros; check its initialisation")
    with torch.no_grad():
        pipeline.loss(logits.float(), torch.tensor([0, num_classes - 1]))
    optimizer = pipeline.optimizer(model.parameters(), lr=1e-3, weight_decay=0.0)
    pipeline.schedule(optimizer, steps=10, lr=1e-3)
