"""A user's source: a module of its own that meets the protocol, as a user would write it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tasks.sources.protocol import FileRef, RawExamples, Shard, shard_digest


class Ring:
    """Make `rows` points around a ring, two classes; `spoil` breaks one rule."""

    def __init__(self, uri: str, location: str, *, rows: int = 40, spoil: str = "") -> None:
        self.uri, self.location, self.rows, self.spoil = uri, location, rows, spoil

    def files(self) -> list[FileRef]:
        return [FileRef(self.uri, f"ring://{self.location}/{self.uri}", f"rows={self.rows}", 0)]

    def shards(self, shard_rows: int) -> list[Shard]:
        out = []
        for start in range(0, self.rows, shard_rows):
            rows = min(shard_rows, self.rows - start)
            digest = shard_digest(self.location, self.uri, start, rows, "ring")
            out.append(Shard(self.location, self.uri, "", start, rows, start, digest))
        return out

    def read_labels(self, shard: Shard) -> tuple[Any, Any]:
        rows = np.arange(shard.start, shard.start + shard.rows)
        offset = 1_000_000 if self.location == "test" else 0
        ids = (rows + offset).astype(np.float32 if self.spoil == "ids" else np.int64)
        return ids, rows % 2

    def read(self, shard: Shard) -> RawExamples:
        ids, labels = self.read_labels(shard)
        angle = np.arange(shard.start, shard.start + shard.rows) / 7.0
        x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return RawExamples(ids, x[1:] if self.spoil == "rows" else x, labels)


def not_a_source(uri: str, location: str) -> list[str]:
    """Return something that is no source."""
    return [uri, location]
