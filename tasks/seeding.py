"""Seeds by name, without NumPy: a plan derives hundreds of them, and its import takes 60 ms."""

from __future__ import annotations

import hashlib


def hash63(text: str) -> int:
    """Return a 63-bit hash of a text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def derive_seed(*words: str | int) -> int:
    """Return a 63-bit seed that is a function of the words, and unrelated for different words."""
    return hash63("/".join(str(word) for word in words))
