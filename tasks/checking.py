"""The check pass of the shard stage: what each shard holds, and whether all of them together are a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import InputError
from tasks.schemas import TEST, TRAIN, VALIDATION
from tasks.sources.contents import as_features, as_ids, check_raw, encode_labels
from tasks.sources.protocol import TEST_LOCATION, TRAIN_LOCATION, RawExamples, Shard, Source
from tasks.sources.registry import open_source
from tasks.sources.spec import DataSpec
from tasks.splitting import Splitter

I64 = npt.NDArray[np.int64]

# Labels that a message lists.
SHOWN = 20


@dataclass(frozen=True)
class Checked:
    """Say what one shard holds. `ids` is (first, rows) for consecutive ids, else all of them; `candidates` are limit
    hash, split and class of its rows of smallest limit hash, when there is a limit."""

    shape: tuple[int, ...]
    dtype: str
    ids: tuple[int, int] | I64
    classes: Counter[int]
    unknown: Counter[str]
    by_split: Counter[tuple[int, int]]
    candidates: tuple[npt.NDArray[np.uint64], npt.NDArray[np.int8], I64] | None


@dataclass(frozen=True)
class Findings:
    """Say what all shards together are."""

    shape: tuple[int, ...]
    dtype: str
    num_classes: int
    counts: dict[str, int]
    limit_hash: int | None


class CheckWorker:
    """Read and check shards; nothing is written."""

    def __init__(self, spec: DataSpec, label_map: Mapping[str, int] | None, splitter: Splitter) -> None:
        self.spec, self.label_map, self.splitter = spec, label_map, splitter
        self.sources: dict[str, Source] = {}

    def load(self, item: Shard) -> RawExamples:
        """Read the shard."""
        if item.location not in self.sources:
            self.sources[item.location] = open_source(self.spec, item.location)
        return self.sources[item.location].read(item)

    def compute(self, item: Shard, loaded: RawExamples) -> Checked:
        """Return what the shard holds. Raises InputError."""
        check_raw(loaded, item)
        x = as_features(loaded.x, item)
        ids = as_ids(loaded.example_id, item)
        labels, unknown = encode_labels(loaded.labels, self.label_map, item)
        splits = self.splitter.splits(ids, item.location)
        by_split = Counter(zip(splits.tolist(), labels.tolist()))
        candidates = None
        if self.spec.limit is not None and item.location == TRAIN_LOCATION:
            hashes = self.splitter.hashes(ids)
            take = np.argsort(hashes)[: self.spec.limit]
            candidates = hashes[take], splits[take], labels[take]
        return Checked(
            x.shape[1:], str(x.dtype), _as_range(ids), Counter(labels.tolist()), unknown, by_split, candidates
        )


def _as_range(ids: I64) -> tuple[int, int] | I64:
    """Return (first, rows) where ids count up by one, past 2^63 - 1 on from 0; else the ids."""
    steps = (ids[1:].view(np.uint64) - ids[:-1].view(np.uint64)) & np.uint64(2**63 - 1)
    return (int(ids[0]), len(ids)) if ids[0] >= 0 and (ids >= 0).all() and (steps == 1).all() else ids


def summarize(
    spec: DataSpec,
    shards: Sequence[Shard],
    checked: Sequence[Checked],
    splitter: Splitter,
    label_map: Mapping[str, int] | None,
) -> Findings:
    """Return the facts of the whole dataset. Raises InputError when it is none: see the messages."""
    first = checked[0]
    for shard, one in zip(shards, checked):
        if (one.shape, one.dtype) != (first.shape, first.dtype):
            raise InputError(
                f"features differ: {shards[0]} has {first.dtype} of shape {first.shape}, {shard} has {one.dtype} of "
                "shape "
                f"{one.shape}; all rows must be alike"
            )
    num_classes = _count_classes(spec, shards, checked, label_map)
    check_ids(shards, [one.ids for one in checked])
    by_split: Counter[tuple[int, int]] = Counter()
    for one in checked:
        by_split.update(one.by_split)
    limit_hash = None
    train_rows = sum(shard.rows for shard in shards if shard.location == TRAIN_LOCATION)
    if spec.limit is not None and spec.limit < train_rows:
        limit_hash, limited = _limit(spec.limit, checked)
        by_split = limited
        for one, shard in zip(checked, shards):
            if shard.location == TEST_LOCATION:
                by_split.update(one.by_split)
    counts = _count_splits(spec, splitter, by_split, sum(shard.rows for shard in shards))
    return Findings(first.shape, first.dtype, num_classes, counts, limit_hash)


def _limit(limit: int, checked: Sequence[Checked]) -> tuple[int, Counter[tuple[int, int]]]:
    found = [one.candidates for one in checked if one.candidates is not None]
    hashes = np.concatenate([one[0] for one in found])
    splits = np.concatenate([one[1] for one in found])
    labels = np.concatenate([one[2] for one in found])
    # hash64 is a bijection of the id, and ids are unique: the limit-th smallest hash cuts off exactly.
    last = np.partition(hashes, limit - 1)[limit - 1]
    inside = hashes <= last
    return int(last), Counter(zip(splits[inside].tolist(), labels[inside].tolist()))


def _count_splits(
    spec: DataSpec, splitter: Splitter, by_split: Counter[tuple[int, int]], num_rows: int
) -> dict[str, int]:
    names = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    counts = {name: sum(n for (split, _), n in by_split.items() if split == value) for name, value in names.items()}
    cause = f"data.limit {spec.limit} leaves too few rows: raise it" if spec.limit is not None else "give more rows"
    for name, count in counts.items():
        if count == 0:
            share = {"train": "", "validation": f" (validation {spec.validation})",
                     "test": f" (test_fraction {splitter.test_share})"}[name]
            raise InputError(
                f"the {name} split is empty{share}, the others have "
                f"{', '.join(f'{other} {n}' for other, n in counts.items() if other != name)} rows; {cause}, or "
                "change the "
                "shares or split_seed"
            )
    classes = sorted(label for (split, label), n in by_split.items() if split == TRAIN and n)
    if len(classes) < 2:
        raise InputError(f"the train split holds only class {classes[0]}; at least 2 classes are needed: {cause}")
    return {**counts, "unused": num_rows - sum(counts.values())}


def _show(labels: Sequence[Any]) -> str:
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    return ", ".join(repr(label) for label in labels[:SHOWN]) + more


def _in_order(labels: Counter[str]) -> list[str]:
    try:
        return sorted(labels, key=int)
    except ValueError:
        return sorted(labels)


def _suggestion(labels: Sequence[str]) -> str:
    more = ", ..." if len(labels) > SHOWN else ""
    return "data.label_map: {" + ", ".join(f"{label!r}: {i}" for i, label in enumerate(labels[:SHOWN])) + more + "}"


def _count_classes(
    spec: DataSpec, shards: Sequence[Shard], checked: Sequence[Checked], label_map: Mapping[str, int] | None
) -> int:
    """Return K, after checking every label of every location against the rule 0..K-1."""
    known: dict[str, Counter[int]] = {TRAIN_LOCATION: Counter(), TEST_LOCATION: Counter()}
    unknown: dict[str, Counter[str]] = {TRAIN_LOCATION: Counter(), TEST_LOCATION: Counter()}
    for shard, one in zip(shards, checked):
        known[shard.location].update({label: n for label, n in one.classes.items() if label >= 0})
        unknown[shard.location].update(one.unknown)
    for location, labels in unknown.items():
        if not labels:
            continue
        seen = _in_order(labels)
        if label_map is not None:
            raise InputError(
                f"data.{location} has labels that label_map does not name: {_show(seen)} ({sum(labels.values())} "
                "rows); "
                f"it names {_show(sorted(label_map))}. Add them to data.label_map"
            )
        every = _in_order(Counter({**unknown[TRAIN_LOCATION], **{str(label): 1 for label in known[TRAIN_LOCATION]}}))
        raise InputError(
            f"data.{location} has labels that are not 0..K-1: {_show(seen)}; give each label a class, for example "
            f"{_suggestion(every or seen)}"
        )
    seen_classes = sorted(known[TRAIN_LOCATION])
    num_classes = spec.num_classes or seen_classes[-1] + 1
    if len(seen_classes) < 2:
        raise InputError(f"data.train holds only the label {seen_classes[0]}; at least 2 classes are needed")
    outside = [label for label in seen_classes if label >= num_classes]
    if outside:
        raise InputError(f"data.train has labels {_show(outside)} but num_classes is {num_classes}: labels are 0 to "
                         f"{num_classes - 1}; raise num_classes or give data.label_map")
    if spec.num_classes is None and len(seen_classes) < num_classes:
        texts = [str(label) for label in seen_classes]
        raise InputError(
            f"data.train has the labels {_show(seen_classes)}, which are not all of 0..{num_classes - 1}; set "
            f"data.num_classes if the others may be missing, or number the labels, for example {_suggestion(texts)}"
        )
    strange = sorted(label for label in known[TEST_LOCATION] if label >= num_classes)
    if strange:
        raise InputError(f"data.test has labels {_show(strange)} that data.train has not: there are {num_classes} "
                         "classes, "
                         f"0 to {num_classes - 1}")
    return num_classes


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
