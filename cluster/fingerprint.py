"""Canonical bytes, stage keys and digests: what makes two computations the same one."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cluster.errors import InputError

KEY_CHARS = 12


def _stable(value: Any, where: str) -> Any:
    """Return `value` with only JSON types that have one byte form, or refuse it."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where} is text that UTF-8 cannot hold ({error}); correct it") from error
        return value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{where} is {value}: a key needs finite numbers; give a finite value")
        # 1.0 and 1 are one setting to a person; one byte form keeps them one key.
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, Mapping):
        out: dict[str, Any] = {}
        for name, item in value.items():
            text = name if isinstance(name, str) else json.dumps(_stable(name, where))
            if text in out:
                raise InputError(f"{where} has two entries that are written {text!r}: a key could hold one only")
            out[text] = _stable(item, f"{where}.{text}")
        return out
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_stable(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise InputError(
        f"{where} is a {type(value).__name__}: a value with no stable bytes cannot be part of a key; "
        "use numbers, strings, booleans, lists and mappings"
    )


def canonical_json(value: Any, where: str = "value") -> bytes:
    """Return the one UTF-8 JSON form of `value`: keys sorted, no spaces, integral floats as integers.

    Raises InputError on NaN, infinities, and any type without stable bytes.
    """
    return json.dumps(_stable(value, where), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(data: bytes) -> str:
    """Return the hexadecimal sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def stage_key(
    stage: str,
    version: int,
    identity: Mapping[str, Any],
    inputs: Iterable[str] = (),
    digests: Mapping[str, Any] | None = None,
) -> str:
    """Return the 64-character key of a stage or unit.

    `identity` holds the identity fields of its spec, `inputs` the keys of what it reads (in order), `digests` those of
    user code, data and numeric platform. Equal keys mean equal results.
    """
    body = {
        "stage": stage,
        "version": version,
        "identity": identity,
        "inputs": list(inputs),
        "digests": dict(digests or {}),
    }
    return sha256(canonical_json(body, stage))
