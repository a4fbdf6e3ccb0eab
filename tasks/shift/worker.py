"""The work of the shift stage: the sample shard by shard, its features once, and one pool item a selection."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import CorruptError
from cluster.record import Part, Seal, Unit
from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.hashing import I64
from tasks.native_threads import one_native_thread
from tasks.pool import FunctionWorker, Pool
from tasks.schemas import TRAIN
from tasks.selection.rows import ScoreTableRows
from tasks.selection.stage import load_selection
from tasks.shift.energy import energy_coefficient, mean_between, mean_within
from tasks.shift.features import Features, first_by_hash, fit, in_plane, in_sample, load_features, looked_at, nearest
from tasks.shift.separation import separation
from tasks.shift.spec import INPUTS, ShiftSpec
from tasks.shift.total_variation import bin_edges, closed_form, partition_variation, tally, variations
from tasks.shift.units import ShiftInputs, ShiftUnit
from tasks.sources.protocol import Examples, Shard
from tasks.tables import load_part

F64 = npt.NDArray[np.float64]
Rows = tuple[I64, I64, npt.NDArray[Any]]
# Arrays of a few rows are mostly their headers, and the bytes of the message they came in.
_JOINED = 256
Numbers = Callable[[Examples, I64, Shard], npt.NDArray[Any]]

POINTS = 300
"""Kept examples of a selection that are drawn."""
DIGITS = 6


@dataclass(frozen=True)
class _Sample:
    """Hold the rows to fit on: ids and labels (N,), values (N, d), ascending id."""

    rows: Rows

    def __str__(self) -> str:
        return f"features of {len(self.rows[0])} examples"


class _Sampler:
    """Read the sampled train rows of shards."""

    def __init__(self, spec: ShiftSpec, inputs: ShiftInputs, store: Store) -> None:
        self.size = spec.sample
        self.dataset = Dataset(inputs.data, inputs.index, store)
        self.numbers = _reader(self.dataset, inputs, store)

    def load(self, item: Shard) -> Rows | None:
        """Return ids, labels and values of the sampled rows, None for none: such a shard is not read."""
        index = self.dataset.index_table(item)
        ids = index.column("example_id").to_numpy()[index.column("split").to_numpy() == TRAIN]
        if not in_sample(ids, self.size, self.dataset.num_train).any():
            return None
        examples = self.dataset.read(item, TRAIN)
        chosen = in_sample(examples.example_id, self.size, self.dataset.num_train)
        values = self.numbers(examples, np.flatnonzero(chosen), item)
        return examples.example_id[chosen], examples.y[chosen], values

    def compute(self, item: Shard, loaded: Rows | None) -> Rows | None:
        """Return what was loaded."""
        return loaded


def _reader(dataset: Dataset, inputs: ShiftInputs, store: Store) -> Numbers:
    """Return what gives rows (n, d) of the examples `at` (n,) of a shard: stored inputs, or the first proxy's features."""
    if inputs.scoring is None:
        return lambda examples, at, shard: looked_at(examples.x[at])
    # torch takes 1.7 s to import.
    from tasks.selection.proxy_features import ProxyFeatures

    spec, scoring = inputs.scoring
    proxy = ProxyFeatures(dataset, 0, spec, replace(scoring, proxies=scoring.proxies[:1]), store)
    return lambda examples, at, shard: looked_at(proxy.numbers(examples, at, shard))


def run_shift_stage(
    spec: ShiftSpec, units: Sequence[tuple[str, ShiftUnit]], inputs: ShiftInputs, store: Store, pool: Pool
) -> list[Seal]:
    """Publish what is not there yet and return the figures' seals in the order of `units` (see units.shift_stage)."""
    seals: dict[str, Seal] = {}
    left: dict[str, ShiftUnit] = {}
    for key, unit in units:
        seal = Unit(store, "shift", key).seal()
        if seal is not None:
            seals[key] = seal
        else:
            left[key] = unit
    features = _features_seal(spec, inputs, store, pool)
    worker = partial(MeasureWorker, spec, inputs, store, features)
    items = list(left.items())
    done = pool.map(worker, [unit for _, unit in items], label="shift", resources=spec.resources, done=len(seals))
    for number, meta in done:
        key = items[number][0]
        seals[key] = Unit(store, "shift", key).publish_seal([], meta)
    return [seals[key] for key, _ in units]


def _features_seal(spec: ShiftSpec, inputs: ShiftInputs, store: Store, pool: Pool) -> Seal:
    unit = Unit(store, "features", inputs.features)
    seal = unit.seal()
    if seal is not None:
        return seal
    shards = Dataset(inputs.data, inputs.index, store).shards("train")
    read = pool.map(partial(_Sampler, spec, inputs, store), shards, label="shift: sample", resources=spec.resources)
    found: list[Rows] = []
    for _, rows in read:
        if rows is not None:
            found.append(rows)
        if len(found) >= _JOINED:
            found = [_joined(found)]
    ids, labels, x = _joined(found)
    order = np.argsort(ids)
    sample = ids[order], labels[order], x[order]
    make = partial(FunctionWorker, partial(_fit, unit, spec))
    [(_, (parts, facts))] = pool.map(make, [_Sample(sample)], label="shift: features", resources=spec.resources)
    # What a proxy makes of an example is as wide as its last layer is, and is looked at whole but for a very wide one.
    width = math.prod(inputs.index.meta["shape"]) if spec.features == INPUTS else facts["values"]
    return unit.publish_seal(parts, {**facts, "features": spec.features, "of_values": width})


def _joined(found: Sequence[Rows]) -> Rows:
    return (
        np.concatenate([rows[0] for rows in found]), np.concatenate([rows[1] for rows in found]),
        np.concatenate([rows[2] for rows in found]),
    )  # fmt: skip


def _one_thread() -> AbstractContextManager[None]:
    # Loaded first: libraries that are loaded later would not be limited.
    import sklearn.cluster
    import sklearn.decomposition
    import sklearn.linear_model  # noqa: F401

    return one_native_thread()


def _fit(unit: Unit, spec: ShiftSpec, item: _Sample) -> tuple[list[Part], dict[str, Any]]:
    with _one_thread():
        return fit(unit, spec, *item.rows)


@dataclass(frozen=True)
class _Kept:
    """Hold the rows of a selection: ids (M,) ascending, which are signal, weights."""

    example_id: I64
    signal: npt.NDArray[np.bool_]
    weight: F64


class MeasureWorker:
    """Measure selections; the features, and the edges of each score's bins, stay from one to the next."""

    def __init__(self, spec: ShiftSpec, inputs: ShiftInputs, store: Store, features: Seal) -> None:
        self.spec, self.inputs, self.store, self.seal = spec, inputs, store, features
        self.features: Features = load_features(store, features)
        self.dataset = Dataset(inputs.data, inputs.index, store)
        self.numbers = _reader(self.dataset, inputs, store)
        self.shards = {shard.part_name: shard for shard in self.dataset.shards("train")}
        self.edges: dict[str, npt.NDArray[np.float32]] = {}
        few = first_by_hash(self.features.example_id, spec.pairs, "shift-pairs")
        self.few_id, self.few = self.features.example_id[few], self.features.coordinates[few]

    def load(self, item: ShiftUnit) -> _Kept:
        """Return the rows of the selection."""
        table = load_selection(self.store, item.selection, ["example_id", "arm", "weight"])
        arms = table.column("arm").combine_chunks().cast("string").to_numpy(zero_copy_only=False)
        weight = table.column("weight").to_numpy().astype(np.float64)
        return _Kept(table.column("example_id").to_numpy(), arms == "signal", weight)

    def compute(self, item: ShiftUnit, loaded: _Kept) -> dict[str, Any]:
        """Return the figures of the selection."""
        with _one_thread():
            return {**rounded(self._by_score(item, loaded)), **rounded(self._by_features(item, loaded))}

    def _by_score(self, item: ShiftUnit, kept: _Kept) -> dict[str, Any]:
        rows = ScoreTableRows(self.store, self.inputs.merge, item.score, self.inputs.index)
        if item.score not in self.edges:
            self.edges[item.score] = bin_edges(rows, self.spec.bins)
        counted = tally(rows, kept.example_id, self.edges[item.score])
        meta = item.selection.meta
        return {
            "score": item.score,
            "num_kept": len(kept.example_id),
            "bins": int(np.count_nonzero(counted.full_bin)),
            "class_tv": variations(counted.code, counted.full_class, kept.weight),
            "score_tv": variations(counted.bin, counted.full_bin, kept.weight),
            "partition_tv": partition_variation(meta, kept.signal, kept.weight),
            "closed_form": closed_form(meta),
        }

    def _by_features(self, item: ShiftUnit, kept: _Kept) -> dict[str, Any]:
        full = self.features
        uneven = bool((kept.weight != kept.weight[0]).any())
        chosen = first_by_hash(kept.example_id, self.spec.sample, "shift-kept")
        ids, signal, weight = kept.example_id[chosen], kept.signal[chosen], kept.weight[chosen]
        coordinates = full.place(self._values(item.subset, ids))
        unit = np.ones(len(ids))
        tell_apart = partial(separation, full.coordinates, full.example_id, coordinates, ids)
        auc = tell_apart(unit)
        energy = self._energy(coordinates, ids, unit)
        return {
            "num_compared": len(ids),
            "weights_differ": uneven,
            "auc": {"raw": auc, "weighted": tell_apart(weight) if uneven else auc},
            "energy": {"raw": energy, "weighted": self._energy(coordinates, ids, weight) if uneven else energy},
            **empty_cells(full.cell, nearest(coordinates, full.centres)),
            "points": _points(coordinates, ids, signal),
        }

    def _energy(self, kept: npt.NDArray[np.float32], ids: I64, weight: F64) -> float | None:
        few = first_by_hash(ids, self.spec.pairs, "shift-pairs-kept")
        kept, ids, weight = kept[few], ids[few], weight[few]
        within: float | None = self.seal.meta["mean_distance"]
        between = mean_between(self.few, self.few_id, kept, ids, weight)
        return energy_coefficient(between, within, mean_within(kept, weight))

    def _values(self, subset: Seal, ids: I64) -> npt.NDArray[Any]:
        """Return the values (M, d) of the examples with ids (M,) ascending, from the compact subset."""
        found, values = [], []
        for part in subset.parts:
            if not part.name.endswith(".parquet"):
                continue
            table = load_part(self.store, part, ["example_id", "position", "features", "label"])
            own = table.column("example_id").to_numpy()
            at = np.flatnonzero(np.isin(own, ids))
            found.append(own[at])
            flat = table.column("features").combine_chunks().flatten().to_numpy()
            x = flat.reshape(len(own), *self.dataset.shape)
            examples = Examples(own, x, table.column("label").to_numpy(), table.column("position").to_numpy())
            values.append(self.numbers(examples, at, self.shards[part.name.rpartition("/")[2]]))
        every = np.concatenate(found)
        if len(every) != len(ids):
            raise CorruptError(f"subset {subset.key[:12]} holds {len(every)} of {len(ids)} examples of its selection")
        return np.concatenate(values)[np.argsort(every)]


def empty_cells(full: I64, kept: I64) -> dict[str, Any]:
    """Return how many of the cells that hold sampled examples hold no kept one, their share, and the sample's share in them."""
    counts = np.bincount(full)
    own = np.bincount(kept, minlength=len(counts))[: len(counts)]
    empty = (counts > 0) & (own == 0)
    cells = int(np.count_nonzero(counts))
    return {
        "cells": cells,
        "empty_cells": int(np.count_nonzero(empty)),
        "empty_share": float(np.count_nonzero(empty) / cells),
        "empty_mass": float(counts[empty].sum() / counts.sum()),
    }


def _points(coordinates: npt.NDArray[np.float32], ids: I64, signal: npt.NDArray[np.bool_]) -> list[list[float]]:
    few = first_by_hash(ids, POINTS, "shift-points")
    plane = in_plane(coordinates[few])
    return [[int(not own), round(float(x), 3), round(float(y), 3)] for own, (x, y) in zip(signal[few], plane)]


def rounded(value: Any) -> Any:
    """Return plain values with DIGITS decimals."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return round(value, DIGITS) + 0.0 if isinstance(value, float) else value
