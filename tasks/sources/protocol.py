"""What a source of examples must do, and the words it is spoken to in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from cluster.fingerprint import KEY_CHARS, canonical_json, sha256

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    I64 = npt.NDArray[np.int64]

TRAIN_LOCATION, TEST_LOCATION = "train", "test"

MAX_SHARD_BYTES = 2**28
"""Decoded features a shard has at most: a worker holds one shard while it loads the next."""


@dataclass(frozen=True)
class FileRef:
    """Name one file of a location: `relative` is what ids and digests know it by, `digest` is sha256 or etag:size."""

    relative: str
    uri: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Shard:
    """Address `rows` contiguous rows from `start` of one file, or of the sorted file list of an image folder.

    `position` is the ordinal of its first row in its location; `files` holds the relative names of an image shard.
    `digest` names the rows by content, file name, location and range; it does not depend on other files.
    """

    location: str
    relative: str
    uri: str
    start: int
    rows: int
    position: int
    digest: str
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.location} {self.relative or self.uri} rows {self.start}-{self.start + self.rows - 1}"

    @property
    def part_name(self) -> str:
        """Return the name of every part that a stage publishes for this shard."""
        return f"{self.digest[:KEY_CHARS]}.parquet"


UNDECODABLE, WRONG_SHAPE = "undecodable", "wrong_shape"
NON_FINITE_FEATURE, BAD_LABEL = "non_finite_feature", "bad_label"
"""What can be wrong with one row of the data: the error classes of its quarantine."""


@dataclass(frozen=True)
class BadRow:
    """Say what is wrong with one row: its ordinal in the shard, an error class, a message without absolute paths."""

    row: int
    error_class: str
    message: str


@dataclass
class RawExamples:
    """Hold the rows of a shard as they were read: ids (N,) int64, features (N, ...), labels (N,) of any plain type.

    `bad` names rows that could not be read: their features are any filler, and they go to the quarantine.
    """

    example_id: I64
    x: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    bad: list[BadRow] = field(default_factory=list)


@dataclass
class Examples:
    """Hold examples for use: example_id (N,) int64, x (N, *shape) uint8 or float32, y (N,) int64 in 0..K-1, position
    (N,) int64, the row's ordinal in its location."""

    example_id: I64
    x: npt.NDArray[Any]
    y: I64
    position: I64

    def __len__(self) -> int:
        return len(self.example_id)


@runtime_checkable
class Source(Protocol):
    """Read one location. Made as make(uri, location, **args); must be cheap to make, in every worker.

    It may also have `label_map() -> dict[str, int] | None` and `class_names() -> list[str] | None`.
    """

    def files(self) -> list[FileRef]:
        """Return every file of the location in a fixed order, digested. Called to plan: imports nothing heavy."""
        ...

    def shards(self, shard_rows: int) -> list[Shard]:
        """Return the shards in order: every row once, `position` counted on. Called in the driver."""
        ...

    def read(self, shard: Shard) -> RawExamples:
        """Return the shard's rows, bad ones named. Raises InputError when the shard as a whole cannot be read."""
        ...

    def read_labels(self, shard: Shard) -> tuple[I64, npt.NDArray[Any]]:
        """Return ids and labels of the shard as `read` would, without reading features where that is cheaper."""
        ...


def shard_digest(location: str, relative: str, start: int, rows: int, content: str) -> str:
    """Return the digest of a range of rows of a file whose content has the digest `content`."""
    return sha256(canonical_json([location, relative, start, rows, content]))


def cut_rows(total: int, shard_rows: int, row_bytes: int = 1) -> list[tuple[int, int]]:
    """Return (start, rows) ranges that cover `total` rows, none above `shard_rows` rows or MAX_SHARD_BYTES."""
    step = max(1, min(shard_rows, MAX_SHARD_BYTES // max(1, row_bytes)))
    return [(start, min(step, total - start)) for start in range(0, total, step)]


def range_shards(
    location: str, file: FileRef, ranges: Sequence[tuple[int, int]], position: int, content: str = ""
) -> list[Shard]:
    """Return the shards of one file, with positions counted on from `position`."""
    content = content or file.digest
    out = []
    for start, rows in ranges:
        digest = shard_digest(location, file.relative, start, rows, content)
        out.append(Shard(location, file.relative, file.uri, start, rows, position, digest))
        position += rows
    return out


def first_id(location: str, relative: str) -> int:
    """Return the id of row 0 of a file. The test location has ids of its own, so equal file names do not collide."""
    from tasks.seeding import hash63

    # NUL cannot be part of a path, so no train file has the name of a test file.
    return hash63(relative if location == TRAIN_LOCATION else f"{location}\0{relative}")


def row_ids(location: str, relative: str, start: int, rows: int) -> I64:
    """Return (hash63(relative) + row) mod 2^63 for each row: stable when other files, or rows, are appended."""
    import numpy as np

    first = (first_id(location, relative) + start) % 2**63
    return ((np.uint64(first) + np.arange(rows, dtype=np.uint64)) & np.uint64(2**63 - 1)).astype(np.int64)
