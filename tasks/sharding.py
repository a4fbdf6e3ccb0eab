"""The work of the shard stage: one pass over the data that only checks, then one over labels that publishes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.errors import CorruptError, InputError
from cluster.fingerprint import KEY_CHARS, canonical_json, sha256
from cluster.record import Part, Seal, Unit
from tasks.checking import Checked, CheckWorker, Findings, summarize
from tasks.pool import Pool
from tasks.schemas import INDEX, TEST
from tasks.sources.contents import as_ids, encode_labels
from tasks.sources.protocol import TRAIN_LOCATION, Shard, Source
from tasks.sources.registry import open_source, test_share
from tasks.sources.spec import DataSpec
from tasks.splitting import Splitter
from tasks.tables import encode_table, part_check

I64 = npt.NDArray[np.int64]


def make_index(
    spec: DataSpec,
    sources: Mapping[str, Source],
    unit: Unit,
    pool: Pool,
    accept: Callable[[dict[str, Any]], None] | None = None,
) -> Seal:
    """Check all data, then publish the index parts that are missing and the seal; InputError comes before any write."""
    listed = {location: source.shards(spec.shard_rows) for location, source in sources.items()}
    for location, shards in listed.items():
        if not shards:
            raise InputError(f"data.{location} holds no rows; at least one row of each of two classes is needed")
    shards = [shard for location in listed for shard in listed[location]]
    known = _known_plan(unit)
    plan = _check(spec, sources, shards, pool) if known is None else known
    if accept is not None:
        accept(plan.meta)
    shards = [dataclasses.replace(shard, digest=plan.part_digest(spec, shard)) for shard in shards]
    if len({shard.part_name for shard in shards}) < len(shards):
        raise InputError("two shards of data.train and data.test hold the same rows of the same file; name each file "
                         "once")
    if known is None:
        unit.store.create(_plan_name(unit), plan.to_bytes())
    parts = _publish(spec, plan, shards, unit, pool)
    return unit.publish_seal(parts, {**plan.meta, "shards": [_shard_record(shard) for shard in shards]})


@dataclass(frozen=True)
class Plan:
    """Keep what the check pass found out: how rows are split, and the facts of the seal."""

    splitter: Splitter
    meta: dict[str, Any]

    def to_bytes(self) -> bytes:
        """Return the plan's bytes, a function of the key. Hashes are text: JSON numbers above 2^53 lose digits."""
        splitter = dataclasses.asdict(self.splitter)
        if self.splitter.limit_hash is not None:
            splitter["limit_hash"] = str(self.splitter.limit_hash)
        return canonical_json({"splitter": splitter, "meta": self.meta}, "plan")

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Plan:
        """Return the plan in `data`. Raises CorruptError naming `where`."""
        try:
            body = json.loads(data)
            splitter = body["splitter"]
            if splitter["limit_hash"] is not None:
                splitter["limit_hash"] = int(splitter["limit_hash"])
            return cls(Splitter(**splitter), body["meta"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(f"{where} cannot be read ({error}); remove it, and run again to check anew") from error

    def part_digest(self, spec: DataSpec, shard: Shard) -> str:
        """Return the digest of the shard as it is split and read: a part made under another split has another name."""
        reading = {"source": spec.source.identity(), "label_map": self.meta["label_map"]}
        splitter = {**dataclasses.asdict(self.splitter), "limit_hash": str(self.splitter.limit_hash)}
        return sha256(canonical_json([shard.digest, reading, splitter], "shard"))


def _plan_name(unit: Unit) -> str:
    return f"{unit.folder}/work/{unit.key[:KEY_CHARS]}/checked.json"


def _known_plan(unit: Unit) -> Plan | None:
    """Return the plan of an earlier attempt: its check pass found nothing wrong with the same bytes."""
    name = _plan_name(unit)
    try:
        return Plan.from_bytes(unit.store.read(name), unit.store.url(name))
    except FileNotFoundError:
        return None


def _check(spec: DataSpec, sources: Mapping[str, Source], shards: Sequence[Shard], pool: Pool) -> Plan:
    names = getattr(sources[TRAIN_LOCATION], "label_map", lambda: None)()
    label_map: dict[str, int] | None = spec.label_map if spec.label_map is not None else names
    splitter = Splitter.of(spec, test_share(spec))
    make = partial(CheckWorker, spec, label_map, splitter)
    results: list[Checked | None] = [None] * len(shards)
    for index, result in pool.map(make, shards, label="shard: check", resources=spec.resources):
        results[index] = result
    checked = [result for result in results if result is not None]
    found: Findings = summarize(spec, shards, checked, splitter, label_map)
    meta = {
        "num_classes": found.num_classes,
        "class_names": _class_names(spec, sources[TRAIN_LOCATION], label_map, found.num_classes),
        "label_map": label_map,
        "shape": list(found.shape),
        "dtype": found.dtype,
        **{f"num_{name}": count for name, count in found.counts.items()},
        "num_rows": sum(shard.rows for shard in shards),
        "limit": spec.limit,
    }
    return Plan(dataclasses.replace(splitter, limit_hash=found.limit_hash), meta)


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


def _shard_record(shard: Shard) -> dict[str, Any]:
    return {
        "digest": shard.digest,
        "location": shard.location,
        "relative": shard.relative,
        "start": shard.start,
        "rows": shard.rows,
        "position": shard.position,
    }


def _publish(spec: DataSpec, plan: Plan, shards: Sequence[Shard], unit: Unit, pool: Pool) -> list[Part]:
    parts: list[Part] = []
    missing: list[Shard] = []
    for shard in shards:
        part = unit.find_part(shard.part_name, part_check(unit.key, unit.store.url(unit.part_name(shard.part_name))))
        if part is None:
            missing.append(shard)
        else:
            parts.append(part)
    make = partial(IndexWorker, spec, plan, unit)
    for _, part in pool.map(make, missing, label="shard", resources=spec.resources, done=len(parts)):
        parts.append(part)
    return parts


class IndexWorker:
    """Publish the index part of each shard."""

    def __init__(self, spec: DataSpec, plan: Plan, unit: Unit) -> None:
        self.spec, self.plan, self.unit = spec, plan, unit
        self.sources: dict[str, Source] = {}

    def load(self, item: Shard) -> tuple[I64, npt.NDArray[Any]]:
        """Read ids and labels."""
        if item.location not in self.sources:
            self.sources[item.location] = open_source(self.spec, item.location)
        return self.sources[item.location].read_labels(item)

    def compute(self, item: Shard, loaded: tuple[I64, npt.NDArray[Any]]) -> Part:
        """Return the record of the published part."""
        ids = as_ids(loaded[0], item)
        labels, unknown = encode_labels(loaded[1], self.plan.meta["label_map"], item)
        if unknown:
            raise InputError(f"{item}: labels changed since they were checked; run again on data that stay as they are")
        splits = self.plan.splitter.splits(ids, item.location)
        labels[splits == TEST] = -1
        positions = np.arange(item.position, item.position + item.rows, dtype=np.int64)
        table = pa.table({"example_id": ids, "position": positions, "split": splits, "label": labels}, schema=INDEX)
        data = encode_table(table, self.unit.key, **({"files": list(item.files)} if item.files else {}))
        where = self.unit.store.url(self.unit.part_name(item.part_name))
        return self.unit.publish_part(item.part_name, data, part_check(self.unit.key, where, ids))
