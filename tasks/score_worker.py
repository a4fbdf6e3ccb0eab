"""The work of the score stage: a warm worker that holds every proxy, and the driver that maps shards over it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.errors import CorruptError, InputError, ItemsError
from cluster.record import Seal, Unit
from cluster.storage import Store
from tasks.bisection import OverBudgetError
from tasks.dataset import Dataset
from tasks.quarantine import (
    NON_FINITE_SCORE,
    BadExample,
    Made,
    PartCheck,
    Tally,
    allowed_rows,
    publish_quarantine,
    read_examples,
)
from tasks.schemas import TRAIN, scores_schema
from tasks.score import (
    NEVER_LEARNED,
    VERSION,
    ScoreInputs,
    ScoreSpec,
    check_budget,
    column_name,
    needs_proxies,
    over_budget,
    score_columns,
    score_key,
    scorer_key,
)
from tasks.score_passes import ScorePasses, checkpoint_at
from tasks.scores.aum import READS as AUM_READS
from tasks.scores.aum import aum
from tasks.scores.forgetting import READS as FORGETTING_READS
from tasks.scores.forgetting import forgetting
from tasks.scores.registry import score_info
from tasks.scores.uniform import uniform
from tasks.shard_records import Shards
from tasks.sources.protocol import Examples, Shard
from tasks.tables import encode_table, load_part, with_metadata

if TYPE_CHECKING:
    from tasks.pool import Pool

READ_AHEAD = 256
"""Parts that are there already which wait to be read at once: each that waits takes 2 KB of the driver."""

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def score_unit(spec: ScoreSpec, inputs: ScoreInputs, store: Store) -> tuple[Unit, str]:
    """Return the unit of a score stage and its scorer key, which its parts carry."""
    index = inputs.index.key
    scorer = scorer_key(
        spec, inputs.proxy, [seal.key for seal in inputs.proxies], code=inputs.code, seed=inputs.seed, data=inputs.data,
        index_key=index,
    )  # fmt: skip
    key = score_key(scorer, index)
    return Unit(store, "score", key, seal_name=f"seal-{index[:12]}.json", folder_key=scorer), scorer


def run_score_stage(spec: ScoreSpec, inputs: ScoreInputs, store: Store, pool: Pool) -> Seal:
    """Score what is not scored yet and return the seal (see tasks.score.score_stage)."""
    unit, scorer = score_unit(spec, inputs, store)
    seal = unit.seal()
    num_train = int(inputs.index.meta["num_train"])
    allowed = allowed_rows(spec.max_bad_fraction, num_train)
    if seal is not None:
        check_budget(spec, num_train, seal, store)
        return seal
    if needs_proxies(spec) and not inputs.proxies:
        raise InputError("the scores asked for read proxies, and there are none; set proxy.seeds to at least 1")
    dataset = Dataset(inputs.data, inputs.index, store)
    shards = dataset.shards("train")
    there = set(store.list(f"{unit.folder}/parts"))
    tally = Tally()
    found = Shards(shard for shard in shards if unit.part_name(shard.part_name) in there)
    left = Shards(shard for shard in shards if unit.part_name(shard.part_name) not in there)

    def count(made: Made) -> None:
        tally.add(made)
        if tally.rows > allowed:
            raise over_budget(spec, num_train, tally.causes, read_examples(store, tally.tables))

    with ThreadPoolExecutor(8) as readers:
        for at in range(0, len(found), READ_AHEAD):
            for made in readers.map(partial(_part_that_is_there, unit, scorer, dataset), found[at : at + READ_AHEAD]):
                count(made)
    if left:
        make = partial(ScoreWorker, spec, inputs, store)
        for _, made in pool.map(make, left, label="score", resources=spec.resources, done=len(found)):
            count(made)
    rows = sum(part.rows for part in tally.parts)
    if rows + tally.rows != num_train:
        raise CorruptError(
            f"score parts in {unit.folder} hold {rows} rows and their quarantine {tally.rows}, the index has {num_train} train "
            "examples: something else writes into this store"
        )
    return unit.publish_seal(tally.parts, {**facts_of(spec, inputs), "num_rows": rows, **tally.meta()})


def facts_of(spec: ScoreSpec, inputs: ScoreInputs) -> dict[str, Any]:
    """Return what a score table says of itself: scores, versions, directions, mode, seeds, checkpoints and models."""
    directions = score_columns(spec, len(inputs.proxies))
    proxied = needs_proxies(spec)
    return {
        "version": VERSION,
        "columns": list(directions),
        "directions": directions,
        "scores": [
            {
                "score": use.name,
                "column": column_name(use),
                "definition_version": score_info(use.name).version,
                "direction": score_info(use.name).direction,
                "checkpoint": use.at if score_info(use.name).by_batch else None,
            }
            for use in spec.scores
        ],
        "mode": "eval",
        "augmentation": "none",
        "loss": "cross_entropy",
        "forward_rows": spec.forward_rows,
        "seeds": [seal.meta["seed"] for seal in inputs.proxies] if proxied else [],
        "random_seed": inputs.seed if any(use.name == "random" for use in spec.scores) else None,
        "proxies": [seal.key for seal in inputs.proxies] if proxied else [],
        "models": {
            f"{at:g}": [checkpoint_at(seal, at).sha256 for seal in inputs.proxies] for at in _checkpoints_read(spec)
        },
    }


def _checkpoints_read(spec: ScoreSpec) -> list[float]:
    return sorted({use.at for use in spec.scores if score_info(use.name).by_batch})


def _train_ids(dataset: Dataset, shard: Shard) -> I64:
    table = dataset.index_table(shard)
    ids: I64 = table.column("example_id").to_numpy()[table.column("split").to_numpy() == TRAIN]
    return ids


def _part_that_is_there(unit: Unit, scorer: str, dataset: Dataset, shard: Shard) -> Made:
    check = PartCheck(unit, scorer, shard.part_name, _train_ids(dataset, shard))
    part = unit.find_part(shard.part_name, check)
    if part is None:
        where = unit.store.url(unit.part_name(shard.part_name))
        raise CorruptError(f"part {where} was there and is gone: something else removes from this store")
    return check.made(part)


class Dynamics:
    """Hold the dynamics of one proxy's training by example id."""

    def __init__(self, store: Store, seal: Seal, columns: Sequence[str]) -> None:
        part = next((part for part in seal.parts if part.name.endswith("/dynamics.parquet")), None)
        if part is None:
            raise CorruptError(f"proxy {seal.key[:12]} has no dynamics among its parts")
        table = load_part(store, part, ["example_id", *columns])
        ids = table.column("example_id").to_numpy()
        order = np.argsort(ids, kind="stable")
        self.name = seal.key[:12]
        self.ids: I64 = ids[order]
        self.columns = {name: table.column(name).to_numpy(zero_copy_only=False)[order] for name in columns}

    def of(self, ids: I64) -> dict[str, npt.NDArray[Any]]:
        """Return the columns for `ids`, in their order. Raises CorruptError when the proxy never met one of them."""
        at = np.searchsorted(self.ids, ids)
        at[at == len(self.ids)] = 0
        missing = np.count_nonzero(self.ids[at] != ids) if len(self.ids) else len(ids)
        if missing:
            raise CorruptError(f"proxy {self.name} has no dynamics for {missing} of {len(ids)} train examples")
        return {name: values[at] for name, values in self.columns.items()}


class ScoreWorker:
    """Score shards: proxies and dynamics are loaded once, features of the next shard while this one is scored."""

    def __init__(self, spec: ScoreSpec, inputs: ScoreInputs, store: Store) -> None:
        self.spec, self.inputs = spec, inputs
        self.unit, self.scorer = score_unit(spec, inputs, store)
        self.dataset = Dataset(inputs.data, inputs.index, store)
        self.facts = facts_of(spec, inputs)
        self.num_train = int(inputs.index.meta["num_train"])
        self.allowed = allowed_rows(spec.max_bad_fraction, self.num_train)
        names = {use.name for use in spec.scores}
        reads = ([*FORGETTING_READS] if "forgetting" in names else []) + ([*AUM_READS] if "aum" in names else [])
        self.dynamics = [Dynamics(store, seal, reads) for seal in inputs.proxies] if reads else []
        by_batch = any(score_info(use.name).by_batch for use in spec.scores)
        self.passes = ScorePasses(spec, inputs, self.dataset, store, self.allowed) if by_batch else None

    def load(self, shard: Shard) -> Examples | I64:
        """Return the train rows of the shard; only their ids where no score reads features."""
        return self.dataset.read(shard, TRAIN) if self.passes else _train_ids(self.dataset, shard)

    def compute(self, shard: Shard, loaded: Examples | I64) -> Made:
        """Score the rows, publish the shard's quarantine, if there is one, and its part, and return their records."""
        ids = loaded.example_id if isinstance(loaded, Examples) else loaded
        values: dict[str, F32] = {}
        bad: dict[int, tuple[str, str]] = {}
        if self.passes and isinstance(loaded, Examples):
            try:
                values, bad = self.passes.scores(loaded, shard)
            except OverBudgetError as error:
                raise self._over_budget(error.found, shard) from error.__cause__
        for name, function in (("forgetting", forgetting), ("aum", aum)):
            if any(use.name == name for use in self.spec.scores):
                values[name] = np.stack([function(proxy.of(ids)) for proxy in self.dynamics])
        columns = self._columns(ids, values)
        for name, column in columns.items():
            for row in np.flatnonzero(~np.isfinite(column)).tolist():
                bad.setdefault(int(ids[row]), (NON_FINITE_SCORE, f"{name} is not finite"))
        if len(bad) > self.allowed:
            raise self._over_budget(bad, shard)
        good = ~np.isin(ids, np.array(list(bad), dtype=np.int64)) if bad else slice(None)
        expected = list(score_columns(self.spec, len(self.inputs.proxies)))
        arrays = [pa.array(ids[good]), *(pa.array(columns[name][good]) for name in expected)]
        table = with_metadata(pa.table(arrays, schema=scores_schema(expected)), self.facts)
        found = [BadExample(example, cause, said) for example, (cause, said) in bad.items()]
        quarantine, fact = publish_quarantine(self.unit, self.scorer, shard.part_name, found)
        data = encode_table(table, self.scorer, **fact)
        part = self.unit.publish_part(shard.part_name, data, PartCheck(self.unit, self.scorer, shard.part_name, ids))
        return Made(part, quarantine, dict(Counter(one.error_class for one in found)))

    def _over_budget(self, bad: dict[int, tuple[str, str]], shard: Shard) -> ItemsError:
        examples: dict[str, list[str]] = {}
        for example, (cause, said) in bad.items():
            examples.setdefault(cause, []).append(f"example_id {example}{f' ({said})' if said else ''}")
        causes = Counter(cause for cause, _ in bad.values())
        return over_budget(self.spec, self.num_train, causes, examples, f"shard {shard}")

    def _columns(self, ids: I64, values: dict[str, F32]) -> dict[str, F32]:
        """Return every column of the score table for all rows, those of bad examples with NaN."""
        columns: dict[str, npt.NDArray[Any]] = {}
        for use in self.spec.scores:
            column = column_name(use)
            if use.name == "random":
                columns[column] = uniform(self.inputs.seed, ids)
                continue
            each = values[column]
            with np.errstate(invalid="ignore"):
                wide = each.astype(np.float64)
                columns[column] = wide.mean(0)
                columns[f"{column}_std"] = wide.std(0, ddof=1) if len(each) > 1 else np.zeros(len(ids))
            columns.update({f"{column}_s{number}": row for number, row in enumerate(each)})
            if use.name == "forgetting":
                flags = [proxy.of(ids)["never_learned"] for proxy in self.dynamics]
                columns[NEVER_LEARNED] = np.mean(flags, axis=0)
        with np.errstate(over="ignore"):
            return {name: column.astype(np.float32) for name, column in columns.items()}
