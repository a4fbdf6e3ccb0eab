"""Weights as bytes: the same bytes for the same weights, and nothing in them that is executed when they are read."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch

from cluster.errors import CorruptError, InputError, StageError
from cluster.record import Seal, read_part
from cluster.self_digest import BLANK, MARK
from cluster.storage import Store


def encode_state(state: dict[str, Any]) -> bytes:
    """Return torch.save of a state of tensors and plain values, with a place for its digest in the comment that ends the archive.

    Raises InputError where torch.load would refuse it.
    """
    sink = io.BytesIO()
    torch.save(state, sink)
    # The last field of a zip archive is the length of its comment.
    sink.seek(-2, io.SEEK_END)
    sink.write(len(MARK + BLANK).to_bytes(2, "little") + MARK + BLANK)
    data = sink.getvalue()
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        raise InputError(
            f"the state of this training cannot be kept ({str(error).splitlines()[0]}): an optimizer or schedule must "
            "keep tensors, numbers, strings, lists and dicts only in its state_dict; mend it, or use a built-in"
        ) from error
    return data


def decode_state(data: bytes, where: str) -> dict[str, Any]:
    """Return the state in bytes, on the CPU, with weights_only. Raises CorruptError naming `where`."""
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise CorruptError(f"checkpoint {where} is torn or changed: {type(error).__name__}") from error
    if not isinstance(state, dict) or "key" not in state:
        raise CorruptError(f"checkpoint {where} was not written by a stage of Secateur's")
    return state


def encode_checkpoint(key: str, step: int, model: dict[str, torch.Tensor]) -> bytes:
    """Return the bytes of a sealed checkpoint {"key", "step", "model"}.

    A function of the key, the step and the weights: tensors are written one by one as contiguous CPU tensors, under
    plain dictionaries. Raises StageError where a weight is not finite.
    """
    plain = {str(name): value.detach().to("cpu", copy=True).contiguous() for name, value in model.items()}
    broken = [name for name, value in plain.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise StageError(
            f"training diverged: {len(broken)} tensors of the model hold NaN or infinity at step {step}, first "
            f"{broken[0]}; lower lr, or check the transform and the weights"
        )
    return encode_state({"key": key, "step": step, "model": plain})


def checkpoint_check(key: str, where: str) -> Callable[[bytes], int]:
    """Return check(bytes) -> number of tensors, which raises CorruptError unless they are a checkpoint of `key`."""

    def check(data: bytes) -> int:
        state = decode_state(data, where)
        if state["key"] != key:
            raise CorruptError(f"checkpoint {where} is of key {state['key']}, not {key}: it belongs to another proxy")
        return len(state["model"])

    return check


def load_sealed(store: Store, seal: Seal, at: float) -> dict[str, Any]:
    """Return the checkpoint of a sealed proxy at a fraction of its training (see tasks.proxy.load_checkpoint)."""
    kept: dict[str, str] = seal.meta["checkpoints"]
    name = next((name for fraction, name in kept.items() if float(fraction) == at), None)
    if name is None:
        raise InputError(
            f"proxy {seal.key[:12]} kept no checkpoint at {at:g} of its training, only at {', '.join(sorted(kept))}; "
            "train proxies with that checkpoint"
        )
    part = next(part for part in seal.parts if part.name.rpartition("/")[2] == name)
    return decode_state(read_part(store, part), store.url(part.name))
