"""The work of the merge stage: parts that match the index row for row, each read, made, checked and counted in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import CorruptError, InputError
from cluster.record import Part, Seal, Unit
from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.merge import MergeInputs, merge_key
from tasks.merge_columns import BINS, Counts, Ranges, part_ranges, ranges_of, sampled_rows, seed_columns, wider
from tasks.merge_totals import Summary, Totals, sample_share
from tasks.own_scores import OwnScores, read_own_scores
from tasks.pool import FunctionWorker, SerialPool
from tasks.quarantine import FACT, left_out, tables_of
from tasks.schemas import TRAIN, score_table_schema
from tasks.sources.protocol import Shard
from tasks.tables import encode_table, footer_of, ids_digest, load_part, with_metadata

if TYPE_CHECKING:
    from tasks.pool import Pool

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Merging:
    """Hold what a worker needs to write the part of any shard, and to count its rows: ranges and rows of the whole table."""

    inputs: MergeInputs
    store: Store
    key: str
    columns: tuple[str, ...]
    facts: dict[str, Any]
    ranges: Ranges
    rows: int
    own: OwnScores | None = field(default=None, repr=False)

    @property
    def unit(self) -> Unit:
        """Return the unit that the parts belong to."""
        return Unit(self.store, "merge", self.key)


def run_merge_stage(inputs: MergeInputs, store: Store, pool: Pool) -> Seal:
    """Publish what is not there yet of the score table and return the seal (see tasks.merge.merge_stage)."""
    key = merge_key(inputs.source_key(), inputs.index.key)
    seal = Unit(store, "merge", key).seal()
    if seal is not None:
        return seal
    shards = Dataset(inputs.data, inputs.index, store).shards("train")
    if inputs.score is not None:
        _check_parts(inputs.score, shards)
        facts = {name: value for name, value in inputs.score.meta.items() if name != FACT}
        columns = tuple(inputs.score.meta["columns"])
        ranges: Ranges = {}
        look = partial(FunctionWorker, partial(part_ranges, store, columns))
        for _, found in pool.map(look, inputs.score.parts, label="merge: ranges", resources=inputs.resources):
            ranges = wider(found, ranges)
        rows = sum(part.rows for part in inputs.score.parts)
        merging = Merging(inputs, store, key, columns, facts, ranges, rows)
    else:
        assert inputs.scores_uri is not None
        own = read_own_scores(inputs.scores_uri, inputs.id_column)
        other, ranges = check_own_scores(own, inputs, store, shards)
        facts = {
            "directions": dict.fromkeys(own.columns),
            "source": "own",
            "ignored_columns": list(own.ignored),
            "rows_of_other_splits": other,
        }
        merging = Merging(inputs, store, key, tuple(own.columns), facts, ranges, len(own.ids) - other, own)
        # In this process: the file may lie where only the driver sees it, and it is in memory once.
        pool = SerialPool()
    totals = Totals(merging.columns)
    for _, summary in pool.map(partial(MergeWorker, merging), shards, label="merge", resources=inputs.resources):
        totals.add(summary)
    meta = {
        **merging.facts,
        "columns": list(merging.columns),
        # Train examples without a score: the score stage's quarantine, whose tables stay where they are.
        FACT: left_out(inputs.score) if inputs.score is not None else {"rows": 0, "causes": {}, "parts": []},
        **totals.facts(ranges),
    }
    return merging.unit.publish_seal(totals.parts, meta)


def _check_parts(score: Seal, shards: Sequence[Shard]) -> None:
    if len(score.parts) == len(shards) and all(score.part(shard.part_name) is not None for shard in shards):
        return
    have = {part.name.rpartition("/")[2] for part in score.parts}
    want = {shard.part_name for shard in shards}
    raise CorruptError(
        f"score stage {score.key[:12]} has parts for {len(have & want)} of {len(want)} shards of the index and "
        f"{len(have - want)} others: it was made for another index. Score again"
    )


def train_rows(dataset: Dataset, shard: Shard) -> tuple[I64, I64]:
    """Return ids and labels (N,) of the train rows of a shard, in row order."""
    table = dataset.index_table(shard)
    train = table.column("split").to_numpy() == TRAIN
    return table.column("example_id").to_numpy()[train], table.column("label").to_numpy()[train]


@dataclass
class Loaded:
    """Hold ids and labels (N,) of a shard's train rows that have a score, and the score part that they must match."""

    ids: I64
    labels: I64
    source: pa.Table | None


class MergeWorker:
    """Write the score table's part of a shard and summarise it; a part that is there is checked and kept."""

    def __init__(self, merging: Merging) -> None:
        # Arrow's own allocator gives buffers back between parts: faulting their pages in again was a quarter of all time.
        pa.set_memory_pool(pa.system_memory_pool())
        self.merging = merging
        self.unit = merging.unit
        self.dataset = Dataset(merging.inputs.data, merging.inputs.index, merging.store)
        score = merging.inputs.score
        self.sources = {part.name.rpartition("/")[2]: part for part in score.parts} if score is not None else {}
        tables = tables_of(left_out(score)) if score is not None else []
        self.unscored = {part.name.rpartition("/")[2]: part for part in tables}

    def load(self, shard: Shard) -> Loaded:
        """Return what is merged, each read and verified."""
        ids, labels = train_rows(self.dataset, shard)
        source, unscored = self.sources.get(shard.part_name), self.unscored.get(shard.part_name)
        if unscored is not None:
            without = load_part(self.merging.store, unscored, ["example_id"]).column("example_id").to_numpy()
            scored = ~np.isin(ids, without)
            if int(np.count_nonzero(~scored)) != len(without):
                raise CorruptError(
                    f"quarantine {self.merging.store.url(unscored.name)} names {len(without)} examples, "
                    f"{np.count_nonzero(~scored)} of them are train rows of {shard}: it is of another index. Score again"
                )
            ids, labels = ids[scored], labels[scored]
        return Loaded(ids, labels, load_part(self.merging.store, source) if source is not None else None)

    def compute(self, shard: Shard, loaded: Loaded) -> Summary:
        """Publish the part and return its summary."""
        check = TableCheck(self.merging, shard, loaded.ids)
        part = self.unit.find_part(shard.part_name, check)
        if part is None:
            part = self.unit.publish_part(shard.part_name, self._encoded(shard, loaded, check.digest), check)
        return check.summary(part)

    def _encoded(self, shard: Shard, loaded: Loaded, digest: str) -> bytes:
        ids, source = loaded.ids, loaded.source
        columns = self._of_part(ids, source, shard) if source is not None else self._of_own(ids)
        names = list(self.merging.columns)
        arrays = [pa.array(ids), pa.array(loaded.labels), *(columns[name] for name in names)]
        table = pa.table(arrays, schema=score_table_schema(names))
        # The pool holds on to what it passes: decoded, the scores need not stay beside what is encoded of them.
        loaded.source = None
        return encode_table(with_metadata(table, self.merging.facts), self.merging.key, digest)

    def _of_part(self, ids: I64, source: pa.Table, shard: Shard) -> dict[str, pa.ChunkedArray]:
        scored = source.column("example_id").to_numpy()
        if not np.array_equal(scored, ids):
            missing, extra = np.setdiff1d(ids, scored), np.setdiff1d(scored, ids)
            repeated = len(scored) - len(np.unique(scored))
            raise CorruptError(
                f"scores of shard {shard} are not those of its {len(ids)} train rows in their order: {len(missing)} "
                f"missing, {len(extra)} extra, {repeated} repeated. Score again under a new store"
            )
        return {name: source.column(name) for name in self.merging.columns}

    def _of_own(self, ids: I64) -> dict[str, pa.Array]:
        own = self.merging.own
        assert own is not None
        at = np.searchsorted(own.ids, ids)
        return {name: pa.array(values[at]) for name, values in own.columns.items()}


class TableCheck:
    """Check the part of a shard, and count its rows in the same pass over its columns: each is decoded once, alone.

    Refuses what tasks.tables.part_check refuses. Where another writer was first, the part it checks last is the published one.
    """

    def __init__(self, merging: Merging, shard: Shard, ids: I64) -> None:
        self.merging, self.ids = merging, ids
        self.where = merging.store.url(merging.unit.part_name(shard.part_name))
        self.digest = ids_digest(ids)
        self._seeds = sorted({name for names in seed_columns(merging.columns).values() for name in names})
        self._rows = sampled_rows(ids, sample_share(merging.rows)) if self._seeds else np.zeros(0, np.int64)
        self._ranges: dict[str, tuple[float, float]] = {}
        self._sortable: dict[str, dict[int, int]] = {}
        self._counts: dict[str, I64] = {}
        self._sampled: dict[str, npt.NDArray[np.float32]] = {}

    def __call__(self, data: bytes) -> int:
        """Return the rows of the part in `data`. Raises CorruptError."""
        try:
            with pq.ParquetFile(pa.BufferReader(data)) as file:
                return self._checked(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise CorruptError(f"part {self.where} is not readable Parquet ({error})") from error

    def _checked(self, file: pq.ParquetFile) -> int:
        schema, rows, where = file.schema_arrow, int(file.metadata.num_rows), self.where
        facts = footer_of(schema.empty_table(), where)
        if facts.get("key") != self.merging.key:
            raise CorruptError(f"part {where} is of key {facts.get('key')}, not {self.merging.key}: it belongs to another stage")
        if not schema.equals(score_table_schema(list(self.merging.columns))):
            raise CorruptError(f"part {where} has the columns {', '.join(schema.names)}: it is not of this score table")
        got = _column(file, "example_id")
        if facts.get("rows") != rows or len(got) != rows:
            raise CorruptError(f"part {where} does not hold the rows its footer states: it was cut short or changed")
        if facts.get("ids") != self.digest or not np.array_equal(got, self.ids):
            raise CorruptError(f"part {where} has {len(got)} ids that are not the {len(self.ids)} of its shard")
        _column(file, "label")
        for name in self.merging.columns:
            self._take(name, _column(file, name))
        return rows

    def _take(self, name: str, values: npt.NDArray[np.float32]) -> None:
        # The least and the greatest value are finite only where all are.
        found = ranges_of({name: values})
        if not np.isfinite(list(found.values())).all():
            raise CorruptError(f"part {self.where}: column {name} holds NaN or infinity")
        self._ranges.update(found)
        counts = Counts(values)
        self._sortable[name] = counts.digits()
        # Values outside would be in no bin; the totals refuse them with all ranges at hand.
        low, high = self.merging.ranges.get(name, (0.0, 0.0))
        inside = all(low <= least and greatest <= high for least, greatest in found.values())
        self._counts[name] = counts.bins(low, high) if inside else np.zeros(BINS, np.int64)
        if name in self._seeds:
            self._sampled[name] = values[self._rows]

    def summary(self, part: Part) -> Summary:
        """Return the summary of the part checked last."""
        return Summary(part, self._ranges, self._sortable, self._counts, self.ids[self._rows], self._sampled)


def _column(file: pq.ParquetFile, name: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = file.read([name], use_threads=False).column(0).to_numpy()
    return values


def check_own_scores(
    own: OwnScores, inputs: MergeInputs, store: Store, shards: Sequence[Shard]
) -> tuple[int, Ranges]:
    """Return how many rows of the user's scores are of other splits than train, and the ranges of those that are of train.

    Raises InputError, with counts, unless each train row has a score and each score a row of the data. Rows of the
    validation and test splits may be there, since they are split off by hash; they are left out and counted.
    """
    dataset = Dataset(inputs.data, inputs.index, store)
    found = np.zeros(len(own.ids), dtype=bool)
    trained = missing = relabelled = 0
    first_missing: int | None = None
    ranges: Ranges = {}
    for shard in [*shards, *dataset.shards("test")]:
        table = dataset.index_table(shard)
        ids = table.column("example_id").to_numpy()
        at = np.minimum(np.searchsorted(own.ids, ids), max(len(own.ids) - 1, 0))
        here = own.ids[at] == ids if len(own.ids) else np.zeros(len(ids), dtype=bool)
        found[at[here]] = True
        train = table.column("split").to_numpy() == TRAIN
        trained += int(np.count_nonzero(train & here))
        ranges = wider(ranges_of({name: values[at[train & here]] for name, values in own.columns.items()}), ranges)
        absent = ids[train & ~here]
        missing += len(absent)
        if first_missing is None and len(absent):
            first_missing = int(absent[0])
        if own.labels is not None:
            labels = table.column("label").to_numpy()
            relabelled += int(np.count_nonzero(train & here & (own.labels[at] != labels)))
    extra = np.flatnonzero(~found)
    if missing or len(extra):
        named = f" (the first is {first_missing})" if first_missing is not None else ""
        unknown = f" (the first is {int(own.ids[extra[0]])})" if len(extra) else ""
        raise InputError(
            f"scores {inputs.scores_uri}: {missing} train rows have no score{named} and {len(extra)} of {len(own.ids)} "
            f"ids are not in the data{unknown}; {trained} match. Every train row needs exactly one score: check that "
            f"{inputs.id_column} holds the ids of this dataset"
        )
    if relabelled:
        raise InputError(
            f"scores {inputs.scores_uri}: the label column differs from the data's for {relabelled} of {trained} train "
            "rows; the scores are of other data, or in another order. Leave the column out if it means something else"
        )
    return len(own.ids) - trained, ranges
