"""Ids that occur more than once, found in bounded memory: divided by hash into files on disk, each sorted by itself."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np

from cluster.errors import StageError
from cluster.scratch import owned_folder
from tasks.hashing import I64, hash64
from tasks.selection.rows import over_pieces

SORTED_ROWS = 2**20
"""Ids that are sorted at once by each thread, 8 MiB, while there are no more than _MOST_BUCKETS times as many."""
FEWEST_ID = 0

# Each is an open file, of which a process may have 256 on some systems.
_MOST_BUCKETS = 200
_HALF = np.uint64(32)


def find_repeats(
    ids: Iterable[I64], num_rows: int, sorted_rows: int = SORTED_ROWS, *, threads: int = 1
) -> tuple[int, int]:
    """Return how many ids occur more than once, and the least of them (0 where there are none). Reads `ids` once.

    Up to `sorted_rows` ids are sorted in memory; more are written to the temporary folder, 8 bytes each, under the bucket of
    their hash: an id that occurs twice is twice in one bucket, however ids are spread. Raises StageError where it is full.
    """
    if num_rows <= sorted_rows:
        return _repeats(np.concatenate([np.empty(0, dtype=np.int64), *ids]))
    buckets = min(_MOST_BUCKETS, -(-num_rows // sorted_rows))
    count, least = 0, None
    with owned_folder("ids") as folder, contextlib.ExitStack() as stack:
        files = [stack.enter_context((folder / f"{bucket}").open("w+b")) for bucket in range(buckets)]
        try:
            for batch in ids:
                # The hash's top 32 bits, scaled; in 16 bits, which numpy sorts by counting: 10 times as fast.
                bucket = (((hash64("bucket", 0, batch) >> _HALF) * np.uint64(buckets)) >> _HALF).astype(np.uint16)
                order = np.argsort(bucket, kind="stable")
                ends = np.cumsum(np.bincount(bucket, minlength=buckets))
                parts = np.split(batch[order], ends[:-1])
                for file, part in zip(files, parts, strict=True):
                    file.write(part.tobytes())
            for file in files:
                file.flush()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise StageError(
                f"the temporary folder {tempfile.gettempdir()} is full: {num_rows} ids in no order take {num_rows / 1.25e5:,.0f} "
                "MB there to be compared; free some room, set TMPDIR to another place, or write the scores by ascending id"
            ) from error
        for file in files:
            file.seek(0)
        for repeats, smallest in over_pieces(files, _read, lambda bucket: _repeats(next(bucket)), threads):
            count += repeats
            if repeats:
                least = smallest if least is None else min(least, smallest)
    return count, least or FEWEST_ID


def _read(file: IO[bytes]) -> Iterator[I64]:
    yield np.fromfile(file, dtype=np.int64)


def _repeats(ids: I64) -> tuple[int, int]:
    ids.sort()
    twice = ids[1:][ids[1:] == ids[:-1]]
    if not len(twice):
        return 0, FEWEST_ID
    return 1 + int(np.count_nonzero(twice[1:] != twice[:-1])), int(twice[0])
