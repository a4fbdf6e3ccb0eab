"""Memory that gathers the selected rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tasks.hashing import I64

I32 = npt.NDArray[np.int32]


class Filling:
    """Gather ids, and codes where given, into memory set aside once: no second copy of 10^7 rows at the end."""

    def __init__(self, capacity: int) -> None:
        self.size = 0
        self._ids: I64 = np.empty(capacity, dtype=np.int64)
        self._codes: I32 | None = None

    def extend(self, ids: list[I64], codes: list[I32]) -> None:
        """Take up arrays of ids, with an array of codes for each, or none at all."""
        more = sum(map(len, ids))
        if self.size + more > len(self._ids):
            self._ids = np.resize(self._ids, self.size + more)
            if self._codes is not None:
                self._codes = np.resize(self._codes, self.size + more)
        if codes and self._codes is None:
            self._codes = np.empty(len(self._ids), dtype=np.int32)
        at = self.size
        for number, part in enumerate(ids):
            self._ids[at : at + len(part)] = part
            if self._codes is not None:
                self._codes[at : at + len(part)] = codes[number]
            at += len(part)
        self.size = at

    def ids(self) -> I64:
        """Return the ids gathered, sharing their memory."""
        return self._ids[: self.size]

    def codes(self) -> I32:
        """Return the codes gathered, zeros where none came."""
        return np.zeros(self.size, dtype=np.int32) if self._codes is None else self._codes[: self.size]

    def compress(self, keep: npt.NDArray[np.bool_]) -> None:
        """Keep only the rows where `keep` (size,) is true, in place."""
        at = 0
        for start in range(0, self.size, 2**20):
            chosen = keep[start : start + 2**20]
            kept = self._ids[start : start + len(chosen)][chosen]
            if self._codes is not None:
                self._codes[at : at + len(kept)] = self._codes[start : start + len(chosen)][chosen]
            self._ids[at : at + len(kept)] = kept
            at += len(kept)
        self.size = at

    def sorted_ids(self) -> I64:
        """Return the ids ascending, sorted in place."""
        ids = self.ids()
        ids.sort()
        return ids

    def sorted_both(self) -> tuple[I64, I32]:
        """Return ids ascending, with their codes."""
        order = np.argsort(self.ids(), kind="stable")
        return self.ids()[order], self.codes()[order]
