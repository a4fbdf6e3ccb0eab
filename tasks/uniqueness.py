"""Ids that must be unique over all shards of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cluster.errors import InputError
from tasks.sources.protocol import Shard

I64 = npt.NDArray[np.int64]


def check_ids(shards: Sequence[Shard], ids: Sequence[tuple[int, int] | I64]) -> None:
    """Raise InputError when an id occurs twice in all shards of all locations.

    Consecutive ids are compared as ranges, so only ids of an id column are held: 8 bytes a row.
    """
    starts: list[tuple[int, int, int]] = []
    loose: list[I64] = []
    for number, one in enumerate(ids):
        if not isinstance(one, tuple):
            loose.append(one)
            continue
        first, rows = one
        inside = min(rows, 2**63 - first)
        starts.append((first, first + inside, number))
        if inside < rows:
            starts.append((0, rows - inside, number))
    starts.sort()
    for (_, end, a), (start, _, b) in pairwise(starts):
        if start < end:
            raise _duplicate(start, [shards[a], shards[b]])
    if not loose:
        return
    every = np.sort(np.concatenate(loose))
    twice = every[1:][every[1:] == every[:-1]]
    if starts and not len(twice):
        # ids in [first, end) of a range number searchsorted(end) - searchsorted(first).
        lows = np.searchsorted(every, np.array([start for start, _, _ in starts], dtype=np.int64))
        highs = np.searchsorted(every, np.array([end - 1 for _, end, _ in starts], dtype=np.int64), side="right")
        hit = np.flatnonzero(highs > lows)
        twice = every[lows[hit[:1]]]
    if len(twice):
        raise _duplicate(int(twice[0]), [shard for shard, one in zip(shards, ids) if _holds(one, int(twice[0]))])


def _holds(ids: tuple[int, int] | I64, example_id: int) -> bool:
    if isinstance(ids, tuple):
        return (example_id - ids[0]) % 2**63 < ids[1] and example_id >= 0
    return bool((ids == example_id).any())


def _duplicate(example_id: int, where: Sequence[Shard]) -> InputError:
    places = " and ".join(dict.fromkeys(str(shard) for shard in where))
    return InputError(
        f"example_id {example_id} is there more than once, in {places}; every id of data.train and data.test must be "
        "unique: "
        "mend the id column, or leave id_column out"
    )
