"""Which split a row belongs to: a function of its id alone, and of the limit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.hashing import hash64, hash_unit
from tasks.schemas import TEST, TRAIN, UNUSED, VALIDATION
from tasks.sources.protocol import TEST_LOCATION
from tasks.sources.spec import DataSpec

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Splitter:
    """Assign splits by thresholds of a keyed hash, so that a row keeps its split when files are appended.

    `test_share` of the train location is test (0 where test rows have their own location); `validation` of the rest is
    validation; rows of the train location whose limit hash is above `limit_hash` are unused.
    """

    seed: int
    test_share: float
    validation: float
    limit_hash: int | None = None

    @classmethod
    def of(cls, spec: DataSpec, test_share: float) -> Splitter:
        """Return the splitter of a spec, with no limit yet."""
        return cls(spec.split_seed, test_share, spec.validation)

    def hashes(self, ids: I64) -> npt.NDArray[np.uint64]:
        """Return the hashes (N,) by which rows are taken under a limit, smallest first."""
        return hash64("limit", self.seed, ids)

    def splits(self, ids: I64, location: str) -> npt.NDArray[np.int8]:
        """Return the split of each id, (N,) int8."""
        if location == TEST_LOCATION:
            return np.full(len(ids), TEST, dtype=np.int8)
        unit = hash_unit("split", self.seed, ids)
        held_out = self.test_share + (1 - self.test_share) * self.validation
        out = np.where(unit < self.test_share, TEST, np.where(unit < held_out, VALIDATION, TRAIN)).astype(np.int8)
        if self.limit_hash is not None:
            out[self.hashes(ids) > np.uint64(self.limit_hash)] = UNUSED
        return out
