"""The check pass of the shard stage: what each shard holds, and whether all of them together are a dataset."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.errors import InputError
from cluster.redaction import scrub, scrub_each
from tasks.checked_shards import Checked, CheckedShards
from tasks.classes import Seen, count_classes, label_trouble, refuse_lost
from tasks.quarantine import SHOWN as SHOWN_EXAMPLES
from tasks.quarantine import allowed_rows, causes_table
from tasks.schemas import TEST, TRAIN, VALIDATION
from tasks.sources.contents import as_features, as_ids, check_raw, content_digest, encode_labels, place_of
from tasks.sources.protocol import (
    BAD_LABEL,
    TEST_LOCATION,
    TRAIN_LOCATION,
    WRONG_SHAPE,
    BadRow,
    RawExamples,
    Shard,
    Source,
)
from tasks.sources.registry import open_source
from tasks.sources.spec import DataSpec
from tasks.splitting import Splitter
from tasks.uniqueness import check_ids

I64 = npt.NDArray[np.int64]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Judged:
    """Hold the rows of a shard as they were read, and the bad ones among them by their ordinal."""

    ids: I64
    classes: I64
    shape: Shape
    dtype: str
    unknown: Counter[str]
    bad: dict[int, BadRow]

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """Return which rows are not bad, (N,)."""
        out = np.ones(len(self.ids), dtype=bool)
        out[list(self.bad)] = False
        return out


def judge(
    raw: RawExamples, shard: Shard, label_map: Mapping[str, int] | None, num_classes: int | None,
    shape: Shape | None = None,
) -> Judged:
    """Return what is in a shard, every row that cannot be used among `bad`; the first thing wrong with a row counts.

    What a source or a label says in the messages of `bad` has lost its secrets: all that is written or told comes from here.
    `shape` is that of the dataset's examples, where it is known. Raises InputError for what is wrong as a whole.
    """
    check_raw(raw, shard)
    ids = as_ids(raw.example_id, shard)
    bad = {one.row: one for one in reversed(raw.bad)}
    found_shape, dtype = raw.x.shape[1:], "uint8" if raw.x.dtype == np.uint8 else "float32"
    if len(bad) < shard.rows:
        _, broken = as_features(raw.x, shard)
        if shape is not None and found_shape != shape:
            what = f"its shape is {found_shape}, that of the dataset {shape}"
            broken = [BadRow(row, WRONG_SHAPE, what) for row in range(shard.rows)]
        for one in broken:
            bad.setdefault(one.row, one)
    labels = encode_labels(raw.labels, label_map, shard, num_classes)
    for one in labels.bad:
        bad.setdefault(one.row, one)
    plain = scrub_each(str(one.message) for one in bad.values())
    bad = {row: dataclasses.replace(one, message=plain[str(one.message)]) for row, one in bad.items()}
    return Judged(ids, labels.classes, found_shape, dtype, labels.unknown, bad)


@dataclass(frozen=True)
class Findings:
    """Say what all shards together are. `spoiled` counts the bad rows of each shard, in their order."""

    shape: Shape
    dtype: str
    num_classes: int
    counts: dict[str, int]
    limit_hash: int | None
    causes: Counter[str]
    spoiled: list[int]
    examples: dict[str, list[str]]


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
        judged = judge(loaded, item, self.label_map, self.spec.num_classes)
        usable = judged.usable
        ids, labels = judged.ids[usable], judged.classes[usable]
        splits = self.splitter.splits(ids, item.location)
        by_split = Counter(zip(splits.tolist(), labels.tolist()))
        candidates = None
        if self.spec.limit is not None and item.location == TRAIN_LOCATION:
            hashes = self.splitter.hashes(ids)
            take = np.argsort(hashes)[: self.spec.limit]
            candidates = hashes[take], splits[take], labels[take]
        named = (int(judged.classes[row]) for row, one in judged.bad.items() if one.error_class != BAD_LABEL)
        spoilt = Counter(label for label in named if label >= 0)
        examples: dict[str, list[str]] = {}
        for row in sorted(judged.bad):
            one = judged.bad[row]
            texts = examples.setdefault(one.error_class, [])
            if len(texts) < SHOWN_EXAMPLES:
                texts.append(f"{place_of(row, item)} ({one.message})")
        return Checked(
            judged.shape if len(ids) else None, judged.dtype, _as_range(judged.ids), by_split, judged.unknown, candidates,
            Counter(one.error_class for one in judged.bad.values()), examples, content_digest(loaded), spoilt,
        )  # fmt: skip


def _as_range(ids: I64) -> tuple[int, int] | I64:
    """Return (first, rows) where ids count up by one, past 2^63 - 1 on from 0; else the ids."""
    steps = (ids[1:].view(np.uint64) - ids[:-1].view(np.uint64)) & np.uint64(2**63 - 1)
    return (int(ids[0]), len(ids)) if ids[0] >= 0 and (ids >= 0).all() and (steps == 1).all() else ids


def summarize(
    spec: DataSpec,
    shards: Sequence[Shard],
    checked: CheckedShards,
    splitter: Splitter,
    label_map: Mapping[str, int] | None,
) -> Findings:
    """Return the facts of the whole dataset; `checked` then says what each shard holds of it.

    Raises InputError when it is none, or when more rows are bad than data.max_bad_fraction allows: see the messages.
    """
    shape, dtype = _expected(shards, checked)
    for number, (one, shard) in enumerate(zip(checked, shards)):
        if one.shape not in (None, shape):
            checked.put(number, _of_shape(one, shape, shard))
    check_ids(shards, checked.ids())
    num_classes = _known_classes(spec, shards, checked)
    strange = [_strange(one, shard, num_classes) for one, shard in zip(checked, shards)]
    causes: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for one in checked:
        causes.update(one.bad)
        for cause, texts in one.examples.items():
            examples.setdefault(cause, []).extend(texts[: SHOWN_EXAMPLES - len(examples.get(cause, []))])
    causes[BAD_LABEL] += sum(strange)
    seen = Seen.of((shard.location, one.classes, one.unknown, one.spoilt) for one, shard in zip(checked, shards))
    trouble = [*label_trouble(spec, seen, label_map, num_classes), *_shape_trouble(shards, checked, shape)]
    refuse_bad(spec, causes, sum(shard.rows for shard in shards), examples, trouble)
    refuse_lost(spec, seen, label_map, causes_table(causes, examples))
    num_classes = count_classes(spec, seen)
    by_split: Counter[tuple[int, int]] = Counter()
    for one in checked:
        by_split.update(one.by_split)
    limit_hash = None
    train_rows = sum(one.classes.total() for one, shard in zip(checked, shards) if shard.location == TRAIN_LOCATION)
    if spec.limit is not None and spec.limit < train_rows:
        limit_hash, limited = _limit(spec.limit, checked)
        by_split = limited
        for one, shard in zip(checked, shards):
            if shard.location == TEST_LOCATION:
                by_split.update(one.by_split)
    by_split = Counter({pair: rows for pair, rows in by_split.items() if pair[1] < num_classes})
    usable = sum(shard.rows for shard in shards) - causes.total()
    counts = _count_splits(spec, splitter, by_split, usable)
    spoiled = [one.bad.total() + more for one, more in zip(checked, strange)]
    return Findings(shape, dtype, num_classes, counts, limit_hash, +causes, spoiled, examples)


def _limit(limit: int, checked: CheckedShards) -> tuple[int, Counter[tuple[int, int]]]:
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


def _expected(shards: Sequence[Shard], checked: CheckedShards) -> tuple[Shape, str]:
    """Return shape and type of most usable rows. Raises InputError where types differ: then none of them is the odd one."""
    rows: Counter[Shape] = Counter()
    first: tuple[Shard, Checked] | None = None
    for shard, one in zip(shards, checked):
        if one.shape is None:
            continue
        if first is None:
            first = shard, one
        elif one.dtype != first[1].dtype:
            raise InputError(
                f"features differ: {first[0]} has {first[1].dtype} of shape {first[1].shape}, {shard} has {one.dtype} of "
                f"shape {one.shape}; all rows must be alike"
            )
        rows[one.shape] += one.classes.total()
    if first is None:
        return (), "float32"
    return max(rows, key=lambda shape: rows[shape]), first[1].dtype


def _of_shape(one: Checked, shape: Shape, shard: Shard) -> Checked:
    """Return what a shard holds, whose rows have another shape than the dataset's examples: nothing usable."""
    said = f"{place_of(0, shard)} (its shape is {one.shape}, that of the dataset {shape})"
    none = None
    if one.candidates is not None:
        hashes, splits, labels = one.candidates
        none = hashes[:0], splits[:0], labels[:0]
    return dataclasses.replace(
        one, shape=None, by_split=Counter(), candidates=none, spoilt=one.spoilt + one.classes,
        bad=one.bad + Counter({WRONG_SHAPE: one.classes.total()}),
        examples={**one.examples, WRONG_SHAPE: [*one.examples.get(WRONG_SHAPE, []), said]},
    )  # fmt: skip


def _shape_trouble(shards: Sequence[Shard], checked: CheckedShards, shape: Shape) -> list[str]:
    """Return what differs in shape, and how to mend it."""
    odd = [shard for shard, one in zip(shards, checked) if one.bad[WRONG_SHAPE]]
    if not odd:
        return []
    like = next((str(shard) for shard, one in zip(shards, checked) if one.shape == shape), "none")
    hint = ": set source args size: [H, W], or mode: RGB" if odd[0].files else ""
    return [f"features differ: most are of shape {shape}, as in {like}, others are not, first in {odd[0]}{hint}"]


def refuse_bad(
    spec: DataSpec, causes: Mapping[str, int], rows: int, examples: Mapping[str, Sequence[str]], trouble: Sequence[str] = ()
) -> None:
    """Raise InputError, with a table of causes, where more of `rows` are bad than data.max_bad_fraction allows."""
    bad, allowed = sum(causes.values()), allowed_rows(spec.max_bad_fraction, rows)
    if bad > allowed:
        why = "".join(f" {one};" for one in trouble)
        # What is wrong with labels shows them as they are.
        raise InputError(scrub(
            f"{bad} of {rows} rows are bad, and data.max_bad_fraction {spec.max_bad_fraction:g} allows {allowed};{why} mend "
            f"them, or raise data.max_bad_fraction to leave them out:{causes_table(causes, examples)}"
        ))  # fmt: skip


def _known_classes(spec: DataSpec, shards: Sequence[Shard], checked: CheckedShards) -> int:
    """Return K as far as it is known before the labels are checked; the labels of bad rows count too."""
    seen = [
        max(*one.classes, *one.spoilt, -1, -1) for one, shard in zip(checked, shards) if shard.location == TRAIN_LOCATION
    ]
    return spec.num_classes or max(seen, default=-1) + 1


def _strange(one: Checked, shard: Shard, num_classes: int) -> int:
    """Return how many test rows of a shard have a label that the train location has not."""
    if shard.location != TEST_LOCATION or not num_classes:
        return 0
    return sum(rows for label, rows in one.classes.items() if label >= num_classes)
