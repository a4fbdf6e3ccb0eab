"""What results depend on beside their inputs: device, threads, autocast, random streams. Set, then restored."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from cluster.errors import InputError
from tasks.spec import Numerics


def device_of(numerics: Numerics) -> torch.device:
    """Return the device. Raises InputError when CUDA is asked for and this process sees no CUDA device."""
    if numerics.device == "cuda":
        if not torch.cuda.is_available():
            raise InputError(
                "numerics.device is cuda, but this worker sees no CUDA device; set device: cpu, or give the stage "
                "resources.gpus and a cluster with GPUs"
            )
        # cuBLAS reads it when it starts in this process; without it its products may differ from call to call.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


@contextlib.contextmanager
def arithmetic(numerics: Numerics) -> Iterator[None]:
    """Fix the number of threads and the choice of kernels while the block runs.

    On CUDA: deterministic kernels wherever torch has one (it warns of an operation that has none), cuDNN's chosen
    without timing them, and no TF32, so that float32 is float32.
    """
    threads = torch.get_num_threads()
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.set_num_threads(numerics.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with (
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
            _deterministic() if numerics.device == "cuda" else contextlib.nullcontext(),
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    enabled = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    # A user's model may use an operation that has no deterministic kernel: a warning, not a refusal.
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(enabled, warn_only=only_warns)


@contextlib.contextmanager
def ordered_attention(device: torch.device) -> Iterator[None]:
    """Take the plain attention kernel on CUDA while the block runs; for blocks with a backward pass.

    The backward passes of the fused kernels add up in no fixed order unless torch also refuses every operation that
    has no deterministic kernel. Their forward passes have one order.
    """
    if device.type != "cuda":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


def autocast(numerics: Numerics) -> contextlib.AbstractContextManager[Any]:
    """Return the autocast context of a forward pass: bfloat16 where asked for, else one that does nothing."""
    if numerics.autocast is None:
        return contextlib.nullcontext()
    return torch.autocast(numerics.device, dtype=torch.bfloat16)


def seed_all(seed: int) -> None:
    """Seed the global streams of torch (every device), NumPy and Python. Only inside `isolated_rng`."""
    # Not torch.manual_seed: where CUDA has not started it formats the call stack, 1 ms a training step.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextlib.contextmanager
def isolated_rng() -> Iterator[None]:
    """Put the global random streams of torch, NumPy and Python back as they were when the block ends."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    # A CUDA context is not started only to save a random state that nobody has used yet.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
