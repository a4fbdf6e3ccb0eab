"""Ids that occur more than once, found in bounded memory: divided by hash into files on disk, each sorted by itself."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Iterable

import numpy as np

from cluster.errors import StageError
from cluster.scratch import owned_folder
from tasks.hashing import I64, hash64

SORTED_ROWS = 2**23
"""Ids that are sorted at once: 64 MiB, and as much again for the sort."""
FEWEST_ID = 0


def find_repeats(ids: Iterable[I64], num_rows: int, sorted_rows: int = SORTED_ROWS) -> tuple[int, int]:
    """Return how many ids occur more than once, and the least of them (0 where there are none). Reads `ids` once.

    Up to `sorted_rows` ids are sorted in memory; more are written to the temporary folder, 8 bytes each, under the bucket of
    their hash: an id that occurs twice is twice in one bucket, however ids are spread. Raises StageError where it is full.
    """
    if num_rows <= sorted_rows:
        return _repeats(np.concatenate([np.empty(0, dtype=np.int64), *ids]))
    buckets = -(-num_rows // sorted_rows)
    count, least = 0, None
    with owned_folder("ids") as folder, contextlib.ExitStack() as stack:
        files = [stack.enter_context((folder / f"{bucket}").open("w+b")) for bucket in range(buckets)]
        try:
            for batch in ids:
                bucket = hash64("bucket", 0, batch) % np.uint64(buckets)
                order = np.argsort(bucket, kind="stable")
                ends = np.cumsum(np.bincount(bucket.astype(np.int64), minlength=buckets))
                parts = np.split(batch[order], ends[:-1])
                for file, part in zip(files, parts, strict=True):
                    file.write(part.tobytes())
            for file in files:
                file.flush()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise StageError(
                f"the temporary folder {tempfile.gettempdir()} is full: {num_rows} ids in no order take {num_rows / 1.25e8:.1f} "
                "GB there to be compared; free some room, set TMPDIR to another place, or write the scores by ascending id"
            ) from error
        for file in files:
            file.seek(0)
            repeats, smallest = _repeats(np.frombuffer(bytearray(file.read()), dtype=np.int64))
            count += repeats
            if repeats:
                least = smallest if least is None else min(least, smallest)
    return count, least or FEWEST_ID


def _repeats(ids: I64) -> tuple[int, int]:
    ids.sort()
    twice = ids[1:][ids[1:] == ids[:-1]]
    if not len(twice):
        return 0, FEWEST_ID
    return 1 + int(np.count_nonzero(twice[1:] != twice[:-1])), int(twice[0])
