"""Chosen rows on their way to the files: written to disk as they are found, given back in ascending id."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cluster.errors import StageError
from tasks.hashing import I64

U8 = npt.NDArray[np.uint8]

SIGNAL, EXPLORE, OPEN, DROPPED = range(4)
"""What is known of a row when it is found; an open one is decided when all have been."""

# Rows held in memory before they go to disk, and rows sorted at once, at 9 and at some 40 bytes each.
MEMORY_ROWS = 2**20
_SORTED_ROWS = 2**18
_MOST_BUCKETS = 128
_RECORD = np.dtype([("id", "<i8"), ("arm", "u1")])


@dataclass(frozen=True)
class _Piece:
    """Hold where the rows of a piece lie, how many open ones come before them, and their ids' ends where these ascend."""

    start: int
    rows: int
    opened: int
    ends: tuple[int, int] | None


class Spool:
    """Hold rows (id, state) in the order they were found; the files have no name and end with the process."""

    def __init__(self, memory_rows: int = MEMORY_ROWS) -> None:
        # Closed, and so gone, with the last reader of the selection.
        self._ids = tempfile.SpooledTemporaryFile(max_size=8 * memory_rows)  # noqa: SIM115
        self._states = tempfile.SpooledTemporaryFile(max_size=memory_rows)  # noqa: SIM115
        self._pieces: list[_Piece] = []
        self.rows = self.opened = 0

    def add(self, ids: list[I64], states: list[U8]) -> None:
        """Take up the rows of a piece."""
        rows = opened = 0
        ascending, first, last = True, 0, 0
        with _naming(self.rows):
            for part, state in zip(ids, states, strict=True):
                if not len(part):
                    continue
                ascending = ascending and bool((part[1:] > part[:-1]).all()) and (not rows or int(part[0]) > last)
                first, last = first if rows else int(part[0]), int(part[-1])
                rows += len(part)
                opened += int(np.count_nonzero(state == OPEN))
                self._ids.write(part.tobytes())
                self._states.write(state.tobytes())
        if rows:
            self._pieces.append(_Piece(self.rows, rows, self.opened, (first, last) if ascending else None))
            self.rows, self.opened = self.rows + rows, self.opened + opened

    def chosen(self, decided: U8) -> Iterator[tuple[I64, U8]]:
        """Yield (ids, arms: SIGNAL or EXPLORE) in ascending id, repeats side by side; `decided` are states of the open rows.

        Pieces that ascend and do not overlap are put in order as they are; others are sorted, on disk where there are many.
        """
        ordered = sorted(self._pieces, key=lambda piece: piece.ends or (0, 0))
        ends = [piece.ends for piece in ordered]
        if None not in ends and all(one[1] < other[0] for one, other in pairwise(ends)):  # type: ignore[index]
            for piece in ordered:
                yield from self._read(piece, decided)
        else:
            yield from self._sorted(decided)

    def _read(self, piece: _Piece, decided: U8) -> Iterator[tuple[I64, U8]]:
        opened = piece.opened
        for start in range(piece.start, piece.start + piece.rows, _SORTED_ROWS):
            rows = min(_SORTED_ROWS, piece.start + piece.rows - start)
            self._ids.seek(8 * start)
            self._states.seek(start)
            ids = np.frombuffer(self._ids.read(8 * rows), dtype=np.int64)
            states = np.frombuffer(bytearray(self._states.read(rows)), dtype=np.uint8)
            at = np.flatnonzero(states == OPEN)
            if len(at):
                states[at] = decided[opened : opened + len(at)]
                opened += len(at)
                left = states != DROPPED
                ids, states = ids[left], states[left]
            yield ids, states

    def _sorted(self, decided: U8) -> Iterator[tuple[I64, U8]]:
        buckets = min(_MOST_BUCKETS, -(-self.rows // _SORTED_ROWS))
        edges = self._edges(buckets)
        with contextlib.ExitStack() as stack:
            # A bucket is a range of ids: all of it is less than all of the next.
            files = [stack.enter_context(tempfile.SpooledTemporaryFile(max_size=2**20)) for _ in range(buckets)]
            with _naming(self.rows):
                for piece in self._pieces:
                    for ids, arms in self._read(piece, decided):
                        # 8 bits: numpy sorts them by counting.
                        bucket = np.searchsorted(edges, ids, side="right").astype(np.uint8)
                        order = np.argsort(bucket, kind="stable")
                        records = np.empty(len(ids), dtype=_RECORD)
                        records["id"], records["arm"] = ids[order], arms[order]
                        stops = np.cumsum(np.bincount(bucket, minlength=buckets))
                        for file, part in zip(files, np.split(records, stops[:-1]), strict=True):
                            file.write(part.tobytes())
            for file in files:
                file.seek(0)
                records = np.frombuffer(file.read(), dtype=_RECORD)
                file.close()
                if len(records):
                    found = np.ascontiguousarray(records["id"])
                    order = np.argsort(found, kind="stable")
                    yield found[order], records["arm"][order]

    def _edges(self, buckets: int) -> I64:
        """Return ids (buckets - 1,) that cut all of them into like parts."""
        step = max(1, self.rows // 2**17)
        taken = []
        for start in range(0, self.rows, _SORTED_ROWS):
            self._ids.seek(8 * start)
            taken.append(np.frombuffer(self._ids.read(8 * _SORTED_ROWS), dtype=np.int64)[::step].copy())
        some = np.sort(np.concatenate([np.empty(0, dtype=np.int64), *taken]))
        return some[np.arange(1, buckets) * len(some) // buckets]


@contextlib.contextmanager
def _naming(rows: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise StageError(
            f"the temporary folder {tempfile.gettempdir()} is full: {rows} chosen rows take {rows * 9 / 1e6:,.0f} MB there; "
            "free some room, or set TMPDIR to another place"
        ) from error
