"""The pieces of a recipe as callables: how stored features become inputs, and how a model is trained on them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from cluster.errors import InputError, SecateurError
from tasks.arithmetic import device_of
from tasks.imports import resolve
from tasks.recipes import AUGMENTS, COLLATES, LOSSES, OPTIMIZERS, SCHEDULES, TRANSFORMS
from tasks.seeding import derive_seed
from tasks.spec import Numerics, Recipe, Use

CAST = Use(use="cast")
CROSS_ENTROPY = Use(use="cross_entropy")
ADAMW = Use(use="adamw")
ONECYCLE = Use(use="onecycle")


def offered(target: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `values` that the signature of `target` names."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}
    return {name: value for name, value in values.items() if name in parameters}


class Pipeline:
    """Hold the resolved pieces of one recipe, bound to a device.

    Raises InputError when a piece cannot be found or has no such argument. Not picklable: build it where it is used.
    """

    def __init__(self, recipe: Recipe, numerics: Numerics | None = None) -> None:
        self.device = device_of(numerics or Numerics())
        self._collate_use = recipe.collate or CAST
        self._loss_use = recipe.loss or CROSS_ENTROPY
        self._optimizer_use = recipe.optimizer or ADAMW
        self._schedule_use = recipe.schedule or ONECYCLE
        self._transform_use, self._augment_use = recipe.transform, recipe.augment
        # Read at every step.
        self._casts = self._collate_use == CAST
        self._collate = resolve(self._collate_use, COLLATES, "collate")
        self._loss = resolve(self._loss_use, LOSSES, "loss")
        self._optimizer = resolve(self._optimizer_use, OPTIMIZERS, "optimizer")
        self._schedule = resolve(self._schedule_use, SCHEDULES, "schedule")
        self._transform = resolve(recipe.transform, TRANSFORMS, "transform") if recipe.transform else None
        self._augment = resolve(recipe.augment, AUGMENTS, "augment") if recipe.augment else None

    @property
    def augments(self) -> bool:
        """Return whether training batches are augmented."""
        return self._augment is not None

    def prepare(self, x: np.ndarray[Any, Any]) -> torch.Tensor:
        """Return stored features (B, ...) as float32 inputs (B, ...) on the device: collated, moved, transformed.

        On CUDA the copy comes from pinned memory and does not block, and 4-d inputs are channels_last.
        """
        if self._casts and x.dtype == np.uint8:
            # The default cast after the copy, with the same result: a quarter of the bytes travel.
            moved = self.move(x).float().div_(255)
        else:
            moved = self.move(_call(self._collate, self._collate_use, "collate", x))
            if moved.device.type == "cpu" and np.may_share_memory(moved.detach().numpy(), x):
                # A transform that works in place must not reach the data set.
                moved = moved.clone()
        if moved.dtype != torch.float32 or len(moved) != len(x):
            raise InputError(
                f"collate {self._collate_use.use!r} returned {moved.dtype} with {len(moved)} rows for {len(x)}; "
                "it must return one float32 row an example"
            )
        if self._transform is not None and self._transform_use is not None:
            moved = _rows(_call(self._transform, self._transform_use, "transform", moved), len(x), "transform")
        return self._laid_out(moved)

    def move(self, values: np.ndarray[Any, Any] | torch.Tensor) -> torch.Tensor:
        """Return an array or tensor on the device, through pinned memory where that is a CUDA device."""
        if isinstance(values, np.ndarray):
            values = np.ascontiguousarray(values)
            # torch must not be given memory that others think is constant.
            values = torch.from_numpy(values if values.flags.writeable else values.copy())
        if not isinstance(values, torch.Tensor):
            raise InputError(f"got a {type(values).__name__} where an array or a tensor is needed; mend the collate")
        if self.device.type == "cuda" and values.device.type == "cpu":
            return values.pin_memory().to(self.device, non_blocking=True)
        return values.to(self.device)

    def _laid_out(self, x: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda" and x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def augment(self, x: torch.Tensor, seed: int, step: int) -> torch.Tensor:
        """Return the augmented batch: a function of (x, seed, step). The generator that pieces get is on the CPU."""
        if self._augment is None or self._augment_use is None:
            return x
        generator = torch.Generator().manual_seed(derive_seed("augment", seed, step))
        out = _call(self._augment, self._augment_use, "augment", x, generator)
        return self._laid_out(_rows(out, len(x), "augment"))

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each example (B,). Raises InputError where the piece returns another shape."""
        losses = _call(self._loss, self._loss_use, "loss", logits, targets)
        if not isinstance(losses, torch.Tensor) or losses.shape != targets.shape:
            got = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
            raise InputError(
                f"loss {self._loss_use.use!r} returned {got} for {len(targets)} examples; it must return the loss of "
                f"each example ({len(targets)},), for example with reduction='none', since weights multiply it"
            )
        return losses.float()

    def optimizer(
        self, parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """Return the optimizer. lr and weight_decay are given where its signature names them and its args do not."""
        given = offered(self._optimizer, {"lr": lr, "weight_decay": weight_decay})
        out = _call(self._optimizer, self._optimizer_use, "optimizer", parameters, **given)
        if not isinstance(out, torch.optim.Optimizer):
            raise InputError(f"optimizer {self._optimizer_use.use!r} returned a {type(out).__name__}; "
                             "it must return a torch.optim.Optimizer")
        return out

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int, lr: float) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the learning rate schedule, stepped once a step."""
        given = offered(self._schedule, {"steps": steps, "lr": lr})
        out = _call(self._schedule, self._schedule_use, "schedule", optimizer, **given)
        if not isinstance(out, torch.optim.lr_scheduler.LRScheduler):
            raise InputError(f"schedule {self._schedule_use.use!r} returned a {type(out).__name__}; "
                             "it must return a scheduler of torch.optim.lr_scheduler")
        return out


def _call(target: Callable[..., Any], use: Use, what: str, *inputs: Any, **given: Any) -> Any:
    try:
        return target(*inputs, **{**given, **use.args})
    except (SecateurError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(item.shape)) for item in inputs if hasattr(item, "shape"))
        raise InputError(
            f"{what} {use.use!r} failed{f' on {shapes}' if shapes else ''} with {use.args or 'no arguments'}: "
            f"{type(error).__name__}: {error}. Mend it or its `args`"
        ) from error


def _rows(out: Any, rows: int, what: str) -> torch.Tensor:
    if not isinstance(out, torch.Tensor) or out.dtype != torch.float32 or out.dim() < 1 or len(out) != rows:
        got = f"{out.dtype} {tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
        raise InputError(f"{what} returned {got} for {rows} examples; it must return a float32 tensor ({rows}, ...)")
    return out
