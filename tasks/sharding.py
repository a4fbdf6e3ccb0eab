"""The work of the shard stage: one pass over the data that only checks, then one over labels that publishes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.errors import CorruptError, InputError, LoosePartError
from cluster.fingerprint import KEY_CHARS, canonical_json, sha256
from cluster.record import Seal, Unit
from cluster.redaction import find_secret
from cluster.self_digest import decode_json, encode_json
from tasks.checked_shards import CheckedShards
from tasks.checking import CheckWorker, Findings, judge, refuse_bad, summarize
from tasks.pool import Pool
from tasks.quarantine import FACT, MESSAGE_CHARS, BadExample, Made, PartCheck, Tally, publish_quarantine
from tasks.schemas import INDEX, QUARANTINED, TEST
from tasks.shard_records import Shards, pack_shards
from tasks.sources.contents import CONTENT_CHARS, as_ids, encode_labels, place_of
from tasks.sources.digest import sources_digest
from tasks.sources.protocol import TRAIN_LOCATION, BadRow, RawExamples, Shard, Source
from tasks.sources.registry import open_source, open_sources, test_share
from tasks.sources.spec import DataSpec
from tasks.splitting import Splitter
from tasks.tables import encode_table

I64 = npt.NDArray[np.int64]


def make_index(
    spec: DataSpec,
    sources: Mapping[str, Source],
    unit: Unit,
    pool: Pool,
    digest: str,
    accept: Callable[[dict[str, Any]], None] | None = None,
) -> Seal:
    """Check all data, then publish the index parts that are missing and the seal; InputError comes before any write.

    `digest` is that of the data in the unit's key.
    """
    shards = Shards()
    for location, source in sources.items():
        before = len(shards)
        for shard in source.shards(spec.shard_rows):
            shards.append(shard)
        if len(shards) == before:
            raise InputError(f"data.{location} holds no rows; at least one row of each of two classes is needed")
    known = _known_plan(unit)
    plan = _check(spec, sources, shards, pool) if known is None else known
    if known is None and sources_digest(open_sources(spec)) != digest:
        raise InputError("the data changed while they were checked; run again on data that stay as they are")
    refuse_bad(spec, plan.meta[FACT]["causes"], plan.meta["num_rows"], plan.examples)
    spoiled = {plan.part_digest(spec, shard): plan.spoiled[shard.digest] for shard in shards if shard.digest in plan.spoiled}
    shards = shards.renamed(plan.part_digest(spec, shard) for shard in shards)
    # What parts are named by, as numbers: names take 130 bytes each in a set.
    names = np.fromiter((int(shard.digest[:KEY_CHARS], 16) for shard in shards), np.uint64, len(shards))
    if len(np.unique(names)) < len(shards):
        raise InputError("two shards of data.train and data.test hold the same rows of the same file; name each file "
                         "once")
    if accept is not None:
        accept(plan.meta)
    if known is None:
        unit.store.create(_plan_name(unit), plan.to_bytes(_plan_name(unit)))
    tally = _publish(spec, plan, shards, spoiled, unit, pool)
    if tally.rows != plan.meta[FACT]["rows"]:
        raise CorruptError(
            f"the parts of {unit.folder} leave out {tally.rows} bad rows, the check pass found {plan.meta[FACT]['rows']}: the "
            "data changed meanwhile. Run again on data that stay as they are"
        )
    return unit.publish_seal(tally.parts, {**plan.meta, **tally.meta(), "shards": pack_shards(shards)})


@dataclass(frozen=True)
class Plan:
    """Keep what the check pass found out: how rows are split, and the facts of the seal.

    `spoiled` counts the bad rows of each shard that has any, by its digest; `examples` shows some of each cause; `contents`
    are the `content_digest`s of the shards in order, one after the other.
    """

    splitter: Splitter
    meta: dict[str, Any]
    spoiled: dict[str, int]
    examples: dict[str, list[str]]
    contents: str

    def content(self, number: int) -> str:
        """Return the content of the shard `number`."""
        return self.contents[CONTENT_CHARS * number : CONTENT_CHARS * (number + 1)]

    def to_bytes(self, name: str) -> bytes:
        """Return the bytes of the object `name`, a function of the key. Hashes are text: JSON numbers above 2^53 lose digits."""
        splitter = dataclasses.asdict(self.splitter)
        if self.splitter.limit_hash is not None:
            splitter["limit_hash"] = str(self.splitter.limit_hash)
        rest = {"spoiled": self.spoiled, "examples": self.examples, "contents": self.contents}
        body = {"splitter": splitter, "meta": self.meta, **rest}
        return encode_json(body, name)

    @classmethod
    def from_bytes(cls, data: bytes, name: str, where: str) -> Plan:
        """Return the plan in the bytes of the object `name`. Raises LoosePartError naming `where`."""
        try:
            body = decode_json(data, name)
            splitter = body["splitter"]
            if splitter["limit_hash"] is not None:
                splitter["limit_hash"] = int(splitter["limit_hash"])
            return cls(Splitter(**splitter), body["meta"], body["spoiled"], body["examples"], body["contents"])
        except (ValueError, KeyError, TypeError, RecursionError, InputError) as error:
            raise LoosePartError(f"{where} cannot be read ({error}); remove it, and run again to check anew") from error

    def part_digest(self, spec: DataSpec, shard: Shard) -> str:
        """Return the digest of the shard as it is split and read: a part made under another split has another name."""
        reading = {"source": spec.source.identity(), **{name: self.meta[name] for name in ("label_map", "shape")}}
        splitter = {**dataclasses.asdict(self.splitter), "limit_hash": str(self.splitter.limit_hash)}
        return sha256(canonical_json([shard.digest, reading, splitter], "shard"))


def _plan_name(unit: Unit) -> str:
    return f"{unit.folder}/work/{unit.key[:KEY_CHARS]}/checked.json"


def _known_plan(unit: Unit) -> Plan | None:
    """Return the plan of an earlier attempt: its check pass found nothing wrong with the same bytes."""
    name = _plan_name(unit)
    try:
        return Plan.from_bytes(unit.store.read(name), name, unit.store.url(name))
    except FileNotFoundError:
        return None
    except IsADirectoryError as error:
        raise LoosePartError(f"{unit.store.url(name)} is a folder; remove it, and run again to check anew") from error


def _check(spec: DataSpec, sources: Mapping[str, Source], shards: Sequence[Shard], pool: Pool) -> Plan:
    names = getattr(sources[TRAIN_LOCATION], "label_map", lambda: None)()
    label_map: dict[str, int] | None = spec.label_map if spec.label_map is not None else names
    splitter = Splitter.of(spec, test_share(spec))
    make = partial(CheckWorker, spec, label_map, splitter)
    checked = CheckedShards(len(shards))
    for index, result in pool.map(make, shards, label="shard: check", resources=spec.resources):
        checked.put(index, result)
    found: Findings = summarize(spec, shards, checked, splitter, label_map)
    class_names = _class_names(spec, sources[TRAIN_LOCATION], label_map, found.num_classes)
    _refuse_secrets([*class_names, *(label_map or {})])
    meta = {
        "num_classes": found.num_classes,
        "class_names": class_names,
        "label_map": label_map,
        "shape": list(found.shape),
        "dtype": found.dtype,
        **{f"num_{name}": count for name, count in found.counts.items()},
        "num_rows": sum(shard.rows for shard in shards),
        "limit": spec.limit,
        "num_quarantined": found.causes.total(),
        FACT: {"rows": found.causes.total(), "causes": dict(found.causes)},
    }
    spoiled = {shard.digest: rows for shard, rows in zip(shards, found.spoiled) if rows}
    return Plan(dataclasses.replace(splitter, limit_hash=found.limit_hash), meta, spoiled, found.examples, checked.contents())


def _class_names(spec: DataSpec, source: Source, label_map: Mapping[str, int] | None, num_classes: int) -> list[str]:
    named: list[str] | None = None
    if spec.label_map is None:
        named = getattr(source, "class_names", lambda: None)()
    if named is None and label_map is not None:
        # Several labels may be one class.
        by_class: dict[int, list[str]] = {}
        for label, number in label_map.items():
            by_class.setdefault(number, []).append(label)
        named = ["|".join(sorted(by_class.get(number, [str(number)]))) for number in range(num_classes)]
    named = named or []
    return [str(named[number]) if number < len(named) else str(number) for number in range(num_classes)]


def _refuse_secrets(names: Sequence[str]) -> None:
    """Raise InputError where a name of a class or a label holds a secret: names go into records and reports."""
    if find_secret("\n".join(names)) is None:
        return
    for number, name in enumerate(names):
        if what := find_secret(name):
            raise InputError(
                f"data: name {number + 1} of {len(names)} names of classes and labels holds {what}; names are kept in records: "
                "give the class another one"
            )


def _publish(
    spec: DataSpec, plan: Plan, shards: Sequence[Shard], spoiled: dict[str, int], unit: Unit, pool: Pool
) -> Tally:
    tally = Tally()
    missing = IndexItems(Shards(), [])
    for number, shard in enumerate(shards):
        item = IndexItem(shard, plan.content(number))
        check = PartCheck(unit, unit.key, shard.part_name, marked=True, facts=item.facts)
        part = unit.find_part(shard.part_name, check)
        if part is None:
            missing.append(item)
        else:
            tally.add(check.made(part))
    make = partial(IndexWorker, spec, dataclasses.replace(plan, contents=""), spoiled, unit)
    for _, made in pool.map(make, missing, label="shard", resources=spec.resources, done=len(tally.parts)):
        tally.add(made)
    return tally


@dataclass(frozen=True)
class IndexItem:
    """Name one shard to publish the index of, and its content."""

    shard: Shard
    content: str

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the part's footer says: a part of another shard, or of other data, is not this one."""
        return {"shard": self.shard.digest, "content": self.content}

    def __str__(self) -> str:
        return str(self.shard)


class IndexItems(Sequence[IndexItem]):
    """Hold many items in some 120 bytes each."""

    def __init__(self, shards: Shards, contents: list[bytes]) -> None:
        self.shards, self.contents = shards, contents

    def append(self, item: IndexItem) -> None:
        """Add an item."""
        self.shards.append(item.shard)
        self.contents.append(bytes.fromhex(item.content))

    @overload
    def __getitem__(self, index: int) -> IndexItem: ...
    @overload
    def __getitem__(self, index: slice) -> IndexItems: ...
    def __getitem__(self, index: int | slice) -> IndexItem | IndexItems:
        if isinstance(index, slice):
            return IndexItems(self.shards[index], self.contents[index])
        return IndexItem(self.shards[index], self.contents[index].hex())

    def __len__(self) -> int:
        return len(self.shards)


class IndexWorker:
    """Publish the index part of each shard, and before it the quarantine of the `spoiled` ones."""

    def __init__(self, spec: DataSpec, plan: Plan, spoiled: dict[str, int], unit: Unit) -> None:
        self.spec, self.plan, self.spoiled, self.unit = spec, plan, spoiled, unit
        self.sources: dict[str, Source] = {}

    def load(self, asked: IndexItem) -> RawExamples | tuple[I64, npt.NDArray[Any]]:
        """Read ids and labels; the features too where the check pass found bad rows."""
        item = asked.shard
        if item.location not in self.sources:
            self.sources[item.location] = open_source(self.spec, item.location)
        source = self.sources[item.location]
        return source.read(item) if item.digest in self.spoiled else source.read_labels(item)

    def _judged(self, item: Shard, loaded: RawExamples | tuple[I64, npt.NDArray[Any]]) -> tuple[I64, I64, dict[int, BadRow]]:
        meta = self.plan.meta
        label_map, num_classes = meta["label_map"], int(meta["num_classes"])
        if isinstance(loaded, RawExamples):
            judged = judge(loaded, item, label_map, num_classes, tuple(meta["shape"]))
            return judged.ids, judged.classes, judged.bad
        labels = encode_labels(loaded[1], label_map, item, num_classes)
        return as_ids(loaded[0], item), labels.classes, {one.row: one for one in labels.bad}

    def compute(self, asked: IndexItem, loaded: RawExamples | tuple[I64, npt.NDArray[Any]]) -> Made:
        """Return the records of what was published."""
        item = asked.shard
        ids, labels, bad = self._judged(item, loaded)
        if len(bad) != self.spoiled.get(item.digest, 0):
            raise InputError(
                f"{item}: {len(bad)} rows are bad, {self.spoiled.get(item.digest, 0)} were when they were checked: the data "
                "changed; run again on data that stay as they are"
            )
        splits = self.plan.splitter.splits(ids, item.location)
        splits[list(bad)] = QUARANTINED
        labels[(splits == TEST) | (splits == QUARANTINED)] = -1
        positions = np.arange(item.position, item.position + item.rows, dtype=np.int64)
        table = pa.table({"example_id": ids, "position": positions, "split": splits, "label": labels}, schema=INDEX)
        found = [
            BadExample(int(ids[row]), one.error_class, f"{place_of(row, item)}: {one.message}"[:MESSAGE_CHARS])
            for row, one in bad.items()
        ]
        quarantine, fact = publish_quarantine(self.unit, self.unit.key, item.part_name, found)
        facts = {**({"files": list(item.files)} if item.files else {}), **fact, **asked.facts}
        check = PartCheck(self.unit, self.unit.key, item.part_name, ids, marked=True, facts=asked.facts)
        part = self.unit.publish_part(item.part_name, encode_table(table, self.unit.key, **facts), check)
        return Made(part, quarantine, dict(Counter(one.error_class for one in found)))
