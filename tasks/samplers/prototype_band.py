"""Protocol `prototype_band`: the band of `band`, and in each class the prototypes of it: medoids of k-means, all weights 1.

The first round(beta n) of the ranking are dropped (ties by hash), the next round(width n) are the band, and its classes have
the budgets of `band` (samplers/band.py), equal where nothing is said. In a class k-means (Lloyd 1982, first centres by
k-means++, Arthur & Vassilvitskii 2007) cuts the members into m_k clusters of their features, and each gives its medoid, the
member nearest to its mean, equally near ones by hash. Prototypes of clusters for a budget are those of Sorscher et al. (2022),
there at the ends of the distances and not in a band of a score.

Given the seed nothing is drawn, so there is no design: the inclusion probability pi = m_k / n_k is that of `band` and nominal,
and no estimate follows from the weights. Selections of growing `keep` are not nested.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.hashing import hash64
from tasks.samplers.design import Budget, Design, make_design
from tasks.seeding import derive_seed

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

BATCHED_ABOVE = 2**26
"""Members times clusters of a class above which k-means goes by batches: a pass of Lloyd's takes a second at that."""

_PASSES = 100
_BATCH_ROWS = 4096


@dataclass(frozen=True)
class Prototypes:
    """Hold the places (m,) of the prototypes among the members, ascending; how many of them no cluster gave; and whether
    k-means went by batches."""

    place: I64
    filled: int
    batched: bool


def design(budgets: Sequence[Budget]) -> Design:
    """Return pi = m_k / n_k in each class of the band, nominal, and weight 1."""
    ones = [1.0] * len(budgets)
    return make_design(budgets, ones, ones)


def prototypes(features: npt.NDArray[Any], ids: I64, budget: int, seed: int, group: int) -> Prototypes:
    """Return `budget` prototypes of members with features (N, c) and ids (N,) ascending; needs budget <= N.

    Clusters that hold no member, as where there are fewer distinct ones, give none: what the budget lacks are the members
    of least hash among those left. `group` only tells the random streams of classes apart.
    """
    n = len(ids)
    if budget >= n:
        return Prototypes(np.arange(n), 0, False)
    if budget == 0:
        return Prototypes(np.empty(0, dtype=np.int64), 0, False)
    wide = np.ascontiguousarray(features, dtype=np.float64)
    batched = n * budget > BATCHED_ABOVE
    labels = clusters(wide, budget, derive_seed("prototypes", seed, group) % 2**32, batched)
    found = medoids(wide, ids, labels, seed)
    rest = np.setdiff1d(np.arange(n), found, assume_unique=True)
    more = rest[np.argsort(hash64("explore", seed, ids[rest]))][: budget - len(found)]
    return Prototypes(np.sort(np.concatenate([found, more])), len(more), batched)


def clusters(features: F64, k: int, random_state: int, batched: bool) -> I64:
    """Return the cluster (N,) of each row of features (N, c) by k-means; fewer than k where fewer rows differ.

    The same bits every time only with one native thread (tasks/native_threads.py), which is the caller's to see to.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    settings: dict[str, Any] = {"n_clusters": k, "n_init": 1, "max_iter": _PASSES, "random_state": random_state}
    model = MiniBatchKMeans(batch_size=_BATCH_ROWS, **settings) if batched else KMeans(**settings)
    with warnings.catch_warnings():
        # Of rows that are equal: what clusters lack is filled and counted.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(model.fit(features).labels_, dtype=np.int64)


def medoids(features: F64, ids: I64, labels: I64, seed: int) -> I64:
    """Return the places of the medoids, one for each cluster that occurs among labels (N,), in the order of the clusters.

    The medoid has the least |k x - S|, k and S being number and sum of the cluster's members: k times the distance to the
    mean with no division, so that both members of a pair are equally near to the bit. Equally near ones go by hash.
    """
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    count = np.diff(np.r_[first, len(ordered)])
    away = features[order] * np.repeat(count, count)[:, None]
    away -= np.repeat(np.add.reduceat(features[order], first, axis=0), count, axis=0)
    distance = np.square(away).sum(axis=1)
    cluster = np.repeat(np.arange(len(first)), count)
    nearest = np.lexsort((hash64("tie", seed, ids[order]), distance, cluster))
    return np.asarray(order[nearest[first]], dtype=np.int64)
