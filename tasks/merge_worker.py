"""The work of the merge stage: parts that match the index row for row, and what is known of each column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.errors import CorruptError, InputError
from cluster.record import Part, Seal, Unit
from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.hashing import hash64
from tasks.merge import MergeInputs, merge_key
from tasks.merge_totals import Detail, Details, Summary, Totals
from tasks.own_scores import OwnScores, read_own_scores
from tasks.pool import FunctionWorker, SerialPool
from tasks.quarantine import FACT, left_out, tables_of
from tasks.schemas import TRAIN, score_table_schema
from tasks.selection.order import DIGIT_BITS, sortable_bits
from tasks.sources.protocol import Shard
from tasks.tables import decode_table, encode_table, load_part, part_check, with_metadata

if TYPE_CHECKING:
    from tasks.pool import Pool

I64 = npt.NDArray[np.int64]

BINS = 64
EXACT_ROWS = 1_000_000
"""Train rows up to which rank correlations use every row; beyond, a hash sample of about as many."""


@dataclass(frozen=True)
class Merging:
    """Hold what a worker needs to write the part of any shard."""

    inputs: MergeInputs
    store: Store
    key: str
    columns: tuple[str, ...]
    facts: dict[str, Any]
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
        merging = Merging(inputs, store, key, tuple(inputs.score.meta["columns"]), facts)
        done = pool.map(partial(MergeWorker, merging), shards, label="merge", resources=inputs.resources)
    else:
        assert inputs.scores_uri is not None
        own = read_own_scores(inputs.scores_uri, inputs.id_column)
        other = check_own_scores(own, inputs, store, shards)
        facts = {
            "directions": dict.fromkeys(own.columns),
            "source": "own",
            "ignored_columns": list(own.ignored),
            "rows_of_other_splits": other,
        }
        merging = Merging(inputs, store, key, tuple(own.columns), facts, own)
        # In this process: the file may lie where only the driver sees it, and it is in memory once.
        done = SerialPool().map(partial(MergeWorker, merging), shards, label="merge", resources=inputs.resources)
    totals = Totals(merging.columns)
    for _, summary in done:
        totals.add(summary)
    ranges = {name: totals.bounds(name) for name in merging.columns}
    rows = sum(part.rows for part in totals.parts)
    unscored = left_out(inputs.score) if inputs.score is not None else {"rows": 0, "causes": {}, "parts": []}
    seeds = _seed_columns(merging.columns)
    look = partial(FunctionWorker, partial(detail, store, ranges, seeds, min(1.0, EXACT_ROWS / max(rows, 1))))
    details = Details(merging.columns, BINS)
    for _, one in pool.map(look, totals.parts, label="merge: histograms", resources=inputs.resources):
        details.add(one)
    meta = {
        **merging.facts,
        "columns": list(merging.columns),
        "num_rows": rows,
        # Train examples without a score: the score stage's quarantine, whose tables stay where they are.
        FACT: unscored,
        "histograms": {
            name: {"low": ranges[name][0], "high": ranges[name][1], "counts": details.counts[name].tolist()}
            for name in merging.columns
        },
        "sortable": {name: totals.sortable(name) for name in merging.columns},
        **rank_correlations(details, seeds, rows),
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


class MergeWorker:
    """Write the score table's part of a shard and summarise it; a part that is there is checked and kept."""

    def __init__(self, merging: Merging) -> None:
        self.merging = merging
        self.unit = merging.unit
        self.dataset = Dataset(merging.inputs.data, merging.inputs.index, merging.store)
        score = merging.inputs.score
        self.sources = {part.name.rpartition("/")[2]: part for part in score.parts} if score is not None else {}
        tables = tables_of(left_out(score)) if score is not None else []
        self.unscored = {part.name.rpartition("/")[2]: part for part in tables}

    def load(self, shard: Shard) -> tuple[I64, I64, pa.Table | None]:
        """Return ids and labels of the train rows that have a score, and the score part they must match."""
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
        return ids, labels, load_part(self.merging.store, source) if source is not None else None

    def compute(self, shard: Shard, loaded: tuple[I64, I64, pa.Table | None]) -> Summary:
        """Publish the part and return its summary."""
        ids, labels, source = loaded
        where = self.unit.store.url(self.unit.part_name(shard.part_name))
        check = part_check(self.merging.key, where, ids)
        part = self.unit.find_part(shard.part_name, check)
        if part is None:
            columns = self._of_part(ids, source, shard) if source is not None else self._of_own(ids)
            names = list(self.merging.columns)
            arrays = [pa.array(ids), pa.array(labels), *(pa.array(columns[name]) for name in names)]
            table = pa.table(arrays, schema=score_table_schema(names))
            data = encode_table(with_metadata(table, self.merging.facts), self.merging.key)
            part = self.unit.publish_part(shard.part_name, data, check)
        # What is published is summarised, whoever wrote it.
        return summarise(part, decode_table(self.unit.store.read(part.name), where), self.merging.columns)

    def _of_part(self, ids: I64, source: pa.Table, shard: Shard) -> dict[str, npt.NDArray[np.float32]]:
        scored = source.column("example_id").to_numpy()
        if not np.array_equal(scored, ids):
            missing, extra = np.setdiff1d(ids, scored), np.setdiff1d(scored, ids)
            repeated = len(scored) - len(np.unique(scored))
            raise CorruptError(
                f"scores of shard {shard} are not those of its {len(ids)} train rows in their order: {len(missing)} "
                f"missing, {len(extra)} extra, {repeated} repeated. Score again under a new store"
            )
        return {name: source.column(name).to_numpy() for name in self.merging.columns}

    def _of_own(self, ids: I64) -> dict[str, npt.NDArray[np.float32]]:
        own = self.merging.own
        assert own is not None
        at = np.searchsorted(own.ids, ids)
        return {name: values[at] for name, values in own.columns.items()}


def check_own_scores(own: OwnScores, inputs: MergeInputs, store: Store, shards: Sequence[Shard]) -> int:
    """Return how many rows of the user's scores are of other splits than train.

    Raises InputError, with counts, unless each train row has a score and each score a row of the data. Rows of the
    validation and test splits may be there, since they are split off by hash; they are left out and counted.
    """
    dataset = Dataset(inputs.data, inputs.index, store)
    found = np.zeros(len(own.ids), dtype=bool)
    trained = missing = relabelled = 0
    first_missing: int | None = None
    for shard in [*shards, *dataset.shards("test")]:
        table = dataset.index_table(shard)
        ids = table.column("example_id").to_numpy()
        at = np.minimum(np.searchsorted(own.ids, ids), max(len(own.ids) - 1, 0))
        here = own.ids[at] == ids if len(own.ids) else np.zeros(len(ids), dtype=bool)
        found[at[here]] = True
        train = table.column("split").to_numpy() == TRAIN
        trained += int(np.count_nonzero(train & here))
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
    return len(own.ids) - trained


def summarise(part: Part, table: pa.Table, columns: tuple[str, ...]) -> Summary:
    """Return the summary of a published part of the score table."""
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    sortable: dict[str, dict[int, int]] = {}
    for name in columns:
        values = table.column(name).to_numpy()
        if len(values):
            low[name], high[name] = float(values.min()), float(values.max())
        digits, counts = np.unique(sortable_bits(values) >> np.uint64(64 - DIGIT_BITS), return_counts=True)
        sortable[name] = dict(zip(digits.tolist(), counts.tolist()))
    return Summary(part, low, high, sortable)


def _seed_columns(columns: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the columns of single proxies by score, for scores of two proxies or more."""
    out: dict[str, list[str]] = {}
    for name in columns:
        of_seeds = [f"{name}_s{number}" for number in range(len(columns)) if f"{name}_s{number}" in columns]
        if len(of_seeds) > 1:
            out[name] = of_seeds
    return out


def detail(
    store: Store, ranges: dict[str, tuple[float, float]], seeds: dict[str, list[str]], share: float, part: Part
) -> Detail:
    """Return a part's counts in BINS equal bins of each column's range, and its share of the rank sample."""
    table = load_part(store, part)
    counts = {
        name: np.histogram(table.column(name).to_numpy().astype(np.float64), BINS, bounds)[0].tolist()
        for name, bounds in ranges.items()
    }
    ids = table.column("example_id").to_numpy()
    rows = np.arange(len(ids))
    if share < 1:
        rows = np.flatnonzero(hash64("rank-sample", 0, ids) < np.uint64(int(share * 2.0**64)))
    columns = sorted({name for names in seeds.values() for name in names})
    return Detail(counts, ids[rows], {name: table.column(name).to_numpy()[rows] for name in columns})


def rank_correlations(details: Details, seeds: dict[str, list[str]], rows: int) -> dict[str, Any]:
    """Return the Spearman correlations between the proxies' columns of each score, and on which rows they were taken.

    A matrix of numbers to 6 decimals; null where a column is constant.
    """
    # By id, so that the last bits of the sums do not depend on the shards.
    ids, values = details.sample()
    none = np.zeros(0, np.float32)
    out = {score: spearman([values.get(name, none) for name in names]) for score, names in seeds.items()}
    how = "all rows" if rows <= EXACT_ROWS else "hash sample"
    return {"rank_correlations": out, "rank_correlation_rows": {"how": how, "rows": len(ids)}}


def spearman(columns: list[npt.NDArray[Any]]) -> list[list[float | None]]:
    """Return the matrix of Spearman correlations, ties at their mean rank; null where a column is constant."""
    from scipy.stats import rankdata

    ranks = []
    for column in columns:
        centred = rankdata(column).astype(np.float64)
        centred -= centred.mean() if len(centred) else 0.0
        length = float(np.sqrt(centred @ centred))
        ranks.append(centred / length if length > 0 else None)
    return [
        [None if one is None or other is None else round(float(one @ other), 6) for other in ranks] for one in ranks
    ]
