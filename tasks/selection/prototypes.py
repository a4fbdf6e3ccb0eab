"""The prototypes of a slice of the ranking: its members with their features, and in each group the medoids of k-means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import CorruptError, InputError
from tasks.hashing import I64
from tasks.native_threads import one_native_thread
from tasks.samplers.design import Budget
from tasks.samplers.prototype_band import prototypes
from tasks.selection.drawing import I32, Drawn
from tasks.selection.filling import Filling
from tasks.selection.ranking import Ranking
from tasks.selection.rows import over_pieces


@dataclass(frozen=True)
class Features:
    """Hold features (N, c) of N examples, finite, and what is to be said of how they were made."""

    values: npt.NDArray[Any]
    facts: dict[str, Any] = field(default_factory=dict)


FeatureReader = Callable[[I64], Features]
"""Return the features of examples whose ids (N,) are given in ascending order, a row each in that order."""


def draw_prototypes(
    ranking: Ranking, budgets: Sequence[Budget], read_features: FeatureReader
) -> tuple[Drawn, dict[str, Any]]:
    """Return the prototypes of every group, and the facts of their features and clusters.

    Members are taken in ascending id, so that nothing depends on the pieces or their order. Memory: 12 bytes a member, and
    their features. Raises InputError where features are not numbers, one row a member.
    """
    ids, code = _members(ranking)
    features = read_features(ids)
    _check(features.values, len(ids))
    groups = ranking.groups(code)
    group = np.zeros(len(ids), dtype=np.int32) if groups is None else groups
    chosen = np.zeros(len(ids), dtype=np.bool_)
    filled = batched = 0
    ordered = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group, minlength=len(budgets)))
    # Once for all groups: it looks at every library of the process, which takes tens of milliseconds.
    with one_native_thread():
        for number, (budget, at) in enumerate(zip(budgets, np.split(ordered, ends[:-1]))):
            found = prototypes(features.values[at], ids[at], budget.kept, ranking.seed, number)
            chosen[at[found.place]] = True
            filled, batched = filled + found.filled, batched + found.batched
    taken = Filling(int(np.count_nonzero(chosen)))
    taken.extend([ids[chosen]], [code[chosen]])
    full = np.bincount(code, minlength=ranking.rows.num_codes)
    return Drawn(Filling(0), taken, full, 0), {**features.facts, "filled": filled, "batched_groups": batched}


def _members(ranking: Ranking) -> tuple[I64, I32]:
    """Return the ids (N,) of all rows in ascending order, with their codes (N,)."""
    rows = ranking.rows
    found = Filling(rows.num_rows)
    for batches in over_pieces(rows.pieces(), rows.read, list, ranking.threads):
        found.extend(
            [batch.example_id for batch in batches],
            [batch.code if batch.code is not None else np.zeros(len(batch.example_id), np.int32) for batch in batches],
        )
    if found.size != rows.num_rows:
        raise CorruptError(f"{found.size} rows were read, {rows.num_rows} announced: the table changed meanwhile")
    return found.sorted_both()


def _check(values: npt.NDArray[Any], members: int) -> None:
    if values.ndim != 2 or len(values) != members or not values.shape[1]:
        raise InputError(f"features are {values.shape} for {members} members of the band: one row a member, in their order")
    bad = int(np.count_nonzero(~np.isfinite(values).all(axis=1)))
    if bad:
        raise InputError(
            f"{bad} of {members} members of the band have features that are not finite, and no distance to any other; mend the "
            "data or the proxies, or use band, which reads no features"
        )
