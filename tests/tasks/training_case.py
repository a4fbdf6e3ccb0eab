"""A small classification problem and the pieces to train on it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tasks.models.build import build_model
from tasks.recipe import Pipeline
from tasks.spec import Recipe, Use
from tasks.training import Settings, TrainingArrays

MLP = Use(use="mlp", args={"hidden": [16], "dropout": 0.25})
CNN = Use(use="cnn", args={"width": 4, "hidden": 16})
RESNET = Use(use="resnet18", args={"width": 4})
FLIP = Recipe(augment=Use(use="crop", args={"padding": 1, "flip_p": 0.5}))


def arrays(n: int = 50, shape: tuple[int, ...] = (8, 8), classes: int = 3, seed: int = 0) -> TrainingArrays:
    """Return uint8 examples of Gaussian classes, with uneven weights and ids beyond 2^53."""
    rng = np.random.default_rng(seed)
    y = np.arange(n, dtype=np.int64) % classes
    centres = rng.integers(60, 190, (classes, *shape))
    x = np.clip(centres[y] + rng.normal(0, 40, (n, *shape)), 0, 255).astype(np.uint8)
    ids = np.sort(rng.choice(2**20, n, replace=False)).astype(np.int64) + 2**60
    return TrainingArrays(x, y, rng.uniform(0.2, 2, n).astype(np.float32), ids)


def settings(**changes: Any) -> Settings:
    """Return settings of 12 steps of 16, that write a checkpoint every epoch."""
    values: dict[str, Any] = {
        "steps": 12, "seed": 5, "batch_size": 16, "lr": 3e-3, "weight_decay": 0.01, "checkpoint_every_s": 0.0, **changes
    }
    return Settings(**values)


def model_of(use: Use = MLP, shape: tuple[int, ...] = (8, 8), classes: int = 3, seed: int = 5) -> torch.nn.Module:
    """Return a fresh model."""
    return build_model(use, shape, classes, seed)


def pipeline_of(recipe: Recipe | None = None) -> Pipeline:
    """Return the pipeline of a recipe on the CPU."""
    return Pipeline(recipe or Recipe())


def same_state(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Return whether two model states are equal bit for bit."""
    return a.keys() == b.keys() and all(a[k].numpy().tobytes() == b[k].numpy().tobytes() for k in a)


def global_numpy() -> bytes:
    """Return the state of NumPy's global stream."""
    state: Any = np.random.get_state()
    return bytes(state[1].tobytes()) + str(state[2:]).encode()


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(function: Callable[..., None], args: tuple[Any, ...], processes: int) -> None:
    """Call function(rank, *args) in fresh processes; raise what one of them raised."""
    multiprocessing: Any = torch.multiprocessing
    multiprocessing.spawn(function, args=args, nprocs=processes)
