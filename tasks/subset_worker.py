"""The work of the subset stage: a shard is read once and cut for every selection that has rows in it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.errors import CorruptError, InputError
from cluster.record import Part, Parts, Seal, Unit
from cluster.self_digest import BLANK, MARK
from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.hashing import I64
from tasks.pool import Pool
from tasks.schemas import TRAIN, subset_schema
from tasks.selection.stage import load_selection
from tasks.tables import encode_table, load_part, part_check, with_metadata

if TYPE_CHECKING:
    from tasks.sources.protocol import Examples, Shard
    from tasks.subset import SubsetInputs

INDICES = "indices.npy"

# Selected rows that a worker holds at once, over all selections it cuts for: 12 bytes each.
_GROUP_ROWS = 2**23
# Arrays of positions that are kept apart: one of a few rows is mostly its header.
_JOINED = 256

Cut = tuple[Part | None, I64]


@dataclass
class _Work:
    """Hold what a worker is made from; it opens the data and loads the selections in its own process."""

    inputs: SubsetInputs
    store: Store
    units: list[tuple[str, Seal]]


@dataclass
class _Chosen:
    """Hold one selection: ids (M,) ascending and weights (M,)."""

    unit: Unit
    example_id: I64
    weight: npt.NDArray[np.float32]
    facts: dict[str, Any] = field(default_factory=dict)


class _Worker:
    """Cut shards: for each selection, the part of its rows in a shard, and their positions."""

    def __init__(self, work: _Work) -> None:
        inputs = work.inputs
        self.store = work.store
        self.dataset = Dataset(inputs.data, inputs.index, work.store)
        self.chosen = []
        for key, selection in work.units:
            table = load_selection(work.store, selection, ["example_id", "weight"])
            self.chosen.append(
                _Chosen(
                    Unit(work.store, "subset", key),
                    table.column("example_id").to_numpy(),
                    table.column("weight").to_numpy(),
                    {"selection_key": selection.key, "index_key": inputs.index.key},
                )
            )

    def load(self, item: Shard) -> tuple[list[tuple[I64, Part | None, I64]], Examples | None]:
        """Return, for each selection, the ids it has here, with its part and positions where that is published
        already; and the shard's examples where anything is left to do."""
        index = self.dataset.index_table(item)
        split = index.column("split").to_numpy()
        ids = index.column("example_id").to_numpy()[split == TRAIN]
        found = []
        missing = False
        for chosen in self.chosen:
            here = ids[_rows_of(ids, chosen.example_id) >= 0]
            part, positions = self._published(chosen, item, here) if len(here) else (None, np.empty(0, dtype=np.int64))
            missing = missing or (len(here) > 0 and part is None)
            found.append((here, part, positions))
        return found, self.dataset.read(item, TRAIN) if missing else None

    def _published(self, chosen: _Chosen, item: Shard, here: I64) -> Cut:
        name = item.part_name
        check = part_check(chosen.unit.key, self.store.url(chosen.unit.part_name(name)), here)
        part = chosen.unit.find_part(name, check)
        if part is None:
            return None, np.empty(0, dtype=np.int64)
        return part, load_part(self.store, part, ["position"]).column("position").to_numpy()

    def compute(
        self, item: Shard, loaded: tuple[list[tuple[I64, Part | None, I64]], Examples | None]
    ) -> list[Cut]:
        """Publish what is missing and return (part or None, positions) for each selection."""
        found, examples = loaded
        out: list[Cut] = []
        for chosen, (here, published, positions) in zip(self.chosen, found):
            if published is not None or not len(here) or examples is None:
                out.append((published, positions))
                continue
            row = _rows_of(examples.example_id, chosen.example_id)
            table = _subset_table(examples, row >= 0, chosen.weight[row[row >= 0]], chosen.facts)
            name = item.part_name
            check = part_check(chosen.unit.key, self.store.url(chosen.unit.part_name(name)), here)
            part = chosen.unit.publish_part(name, encode_table(table, chosen.unit.key), check)
            out.append((part, examples.position[row >= 0]))
        return out


def _rows_of(ids: I64, chosen: I64) -> npt.NDArray[np.int64]:
    """Return where each of ids (N,) is among chosen (M,) ascending, -1 where it is not."""
    at = np.searchsorted(chosen, ids)
    at[at == len(chosen)] = 0
    return np.where(chosen[at] == ids, at, -1) if len(chosen) else np.full(len(ids), -1)


def _subset_table(
    examples: Examples, kept: npt.NDArray[np.bool_], weight: npt.NDArray[np.float32], facts: dict[str, Any]
) -> pa.Table:
    features = examples.x[kept]
    shape = tuple(int(size) for size in features.shape[1:])
    dtype = pa.from_numpy_dtype(features.dtype)
    schema = subset_schema(shape, dtype)
    width = int(np.prod(shape, dtype=np.int64))
    flat = pa.array(np.ascontiguousarray(features).reshape(-1))
    table = pa.Table.from_arrays(
        [
            pa.array(examples.example_id[kept]),
            pa.array(examples.position[kept]),
            pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(dtype, width)),
            pa.array(examples.y[kept]),
            pa.array(weight),
        ],
        schema=schema,
    )
    return with_metadata(table, {"shape": list(shape), "dtype": str(features.dtype), **facts})


def _groups(units: list[tuple[str, Seal]]) -> Iterator[list[tuple[str, Seal]]]:
    """Yield runs of units whose selected rows fit into a worker's memory together."""
    group: list[tuple[str, Seal]] = []
    rows = 0
    for unit in units:
        size = sum(part.rows for part in unit[1].parts)
        if group and rows + size > _GROUP_ROWS:
            yield group
            group, rows = [], 0
        group.append(unit)
        rows += size
    if group:
        yield group


def indices_bytes(positions: I64) -> bytes:
    """Return the bytes of indices.npy: positions int64, then a place for their digest, which NumPy does not read."""
    file = io.BytesIO()
    np.save(file, positions, allow_pickle=False)
    return file.getvalue() + MARK + BLANK


def _indices_check(positions: I64, where: str) -> Callable[[bytes], int]:
    def check(data: bytes) -> int:
        try:
            got = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise CorruptError(f"part {where} is not a readable .npy file ({error})") from error
        if not np.array_equal(got, positions):
            raise CorruptError(f"part {where} does not hold the positions of its subset")
        return len(got)

    return check


def run_subset_stage(units: Sequence[tuple[str, Seal]], inputs: SubsetInputs, store: Store, pool: Pool) -> list[Seal]:
    """Publish every subset without a seal, and return all seals in the order of `units`."""
    seals: dict[str, Seal] = {}
    left: dict[str, tuple[str, Seal]] = {}
    for key, selection in units:
        seal = Unit(store, "subset", key).seal()
        if seal is not None:
            seals[key] = seal
        else:
            left[key] = (key, selection)
    if left:
        shards = Dataset(inputs.data, inputs.index, store).shards("train")
        for group in _groups(list(left.values())):
            seals.update(_cut_group(group, shards, inputs, store, pool))
    return [seals[key] for key, _ in units]


def _cut_group(
    group: list[tuple[str, Seal]], shards: Sequence[Shard], inputs: SubsetInputs, store: Store, pool: Pool
) -> Iterator[tuple[str, Seal]]:
    parts = {key: Parts() for key, _ in group}
    positions: dict[str, list[I64]] = {key: [] for key, _ in group}
    make = partial(_Worker, _Work(inputs, store, group))
    for _, cuts in pool.map(make, shards, label="subset", resources=inputs.resources):
        for (key, _), (part, where) in zip(group, cuts):
            if part is not None:
                parts[key].append(part)
                positions[key].append(where)
                if len(positions[key]) >= _JOINED:
                    positions[key] = [np.concatenate(positions[key])]
    meta = inputs.index.meta
    for key, selection in group:
        unit = Unit(store, "subset", key)
        ordered = np.sort(np.concatenate(positions[key])) if positions[key] else np.empty(0, dtype=np.int64)
        kept = int(selection.meta["num_kept"])
        if len(ordered) != kept:
            raise InputError(
                f"selection {selection.key[:12]} keeps {kept} examples, of which the data hold {len(ordered)}: it was "
                "made from other data; select again from this index"
            )
        check = _indices_check(ordered, store.url(unit.part_name(INDICES)))
        parts[key].append(unit.publish_part(INDICES, indices_bytes(ordered), check))
        facts = {
            "n": int(selection.meta["n"]),
            "num_kept": kept,
            "num_classes": meta["num_classes"],
            "class_names": meta["class_names"],
            "shape": meta["shape"],
            "dtype": meta["dtype"],
            "selection_key": selection.key,
            "index_key": inputs.index.key,
        }
        yield key, unit.publish_seal(parts[key], facts)
