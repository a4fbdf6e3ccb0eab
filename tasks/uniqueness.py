"""Ids that must be unique over all shards of a dataset."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from cluster.errors import InputError
from tasks.sources.protocol import Shard

I64 = npt.NDArray[np.int64]


def check_ids(shards: Sequence[Shard], ids: Iterable[tuple[int, int] | I64]) -> None:
    """Raise InputError when an id occurs twice in all shards of all locations; `ids` are read once.

    Consecutive ids are compared as ranges, (first, rows), 24 bytes each; of an id column all ids are held, 8 bytes a row.
    """
    found = array("q")
    loose: dict[int, I64] = {}
    for number, one in enumerate(ids):
        if not isinstance(one, tuple):
            loose[number] = one
            continue
        first, rows = one
        inside = min(rows, 2**63 - first)
        # The last id and not the end, which may be 2^63.
        found.extend((first, first + inside - 1, number))
        if inside < rows:
            found.extend((0, rows - inside - 1, number))
    firsts, lasts, numbers = np.array(found, dtype=np.int64).reshape(-1, 3).T
    order = np.lexsort((numbers, lasts, firsts))
    firsts, lasts, numbers = firsts[order], lasts[order], numbers[order]
    hit = np.flatnonzero(firsts[1:] <= lasts[:-1])[:1]
    if len(hit):
        at = int(hit[0])
        raise _duplicate(int(firsts[at + 1]), [shards[int(numbers[at])], shards[int(numbers[at + 1])]])
    if not loose:
        return
    every = np.sort(np.concatenate(list(loose.values())))
    twice = every[1:][every[1:] == every[:-1]]
    if not len(twice):
        # ids in [first, last] of a range number searchsorted(last, right) - searchsorted(first).
        lows = np.searchsorted(every, firsts)
        highs = np.searchsorted(every, lasts, side="right")
        twice = every[lows[np.flatnonzero(highs > lows)[:1]]]
    if len(twice):
        example_id = int(twice[0])
        holders = {number for number, one in loose.items() if (one == example_id).any()}
        holders.update(numbers[(firsts <= example_id) & (example_id <= lasts)].tolist())
        raise _duplicate(example_id, [shards[number] for number in sorted(holders)])


def _duplicate(example_id: int, where: Sequence[Shard]) -> InputError:
    places = " and ".join(dict.fromkeys(str(shard) for shard in where))
    return InputError(
        f"example_id {example_id} is there more than once, in {places}; every id of data.train and data.test must be "
        "unique: "
        "mend the id column, or leave id_column out"
    )
