"""Keyed 64-bit hashes of example ids: every random choice of Secateur is a function of (domain, seed, id)."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_M3, _M4 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)


def _keys(domain: str, seed: int) -> tuple[np.uint64, np.uint64, np.uint64]:
    digest = hashlib.blake2b(f"{domain}:{seed}".encode(), digest_size=24).digest()
    words = np.frombuffer(digest, dtype="<u8")
    return words[0], words[1], words[2]


def hash64(domain: str, seed: int, ids: npt.NDArray[np.signedinteger] | I64) -> U64:
    """Return a keyed hash of each id, shape (N,) uint64, uniform over 2^64.

    Two rounds of a 64-bit mixer with three independent 64-bit keys between them, drawn by BLAKE2b from (domain, seed):
    a bijection of the id for each key, so no two ids collide, and unrelated between seeds and domains (one round with a
    key added or xored before it would give relabelled copies between seeds).
    """
    if ids.dtype != np.int64:
        raise TypeError(f"ids are {ids.dtype}: hash64 takes int64 only, since narrower or float ids lose rows")
    key_0, key_1, key_2 = _keys(domain, seed)
    x = ids.view(np.uint64) ^ key_0
    x ^= x >> np.uint64(30)
    x *= _M1
    x ^= x >> np.uint64(27)
    x *= _M2
    x ^= x >> np.uint64(31)
    x += key_1
    x ^= x >> np.uint64(33)
    x *= _M3
    x ^= x >> np.uint64(33)
    x *= _M4
    x ^= x >> np.uint64(33)
    x ^= key_2
    return x


def hash_unit(domain: str, seed: int, ids: I64) -> npt.NDArray[np.float64]:
    """Return hash64 as float64 in [0, 1): the top 53 bits."""
    return (hash64(domain, seed, ids) >> np.uint64(11)).astype(np.float64) * 2.0**-53
