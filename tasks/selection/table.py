"""A finished selection: its rows in ascending id, streamed, and the facts of its design."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.errors import InputError
from tasks.hashing import I64
from tasks.samplers.design import F64, Design
from tasks.schemas import SELECTION
from tasks.selection.spool import EXPLORE, SIGNAL, U8, Spool
from tasks.tables import with_metadata

I32 = npt.NDArray[np.int32]

FILE_ROWS = 2**22
ARMS = ("signal", "exploration")
# As pa.array(ARMS), which would first import pandas where it is installed: 0.3 s, and 40 MB.
_ARMS = pa.StringArray.from_buffers(
    len(ARMS), pa.py_buffer(np.cumsum([0, *map(len, ARMS)], dtype=np.int32)), pa.py_buffer("".join(ARMS).encode())
)

# What a reader needs to use the weights of one design as that design's.
_METADATA = ("n", "keep", "alpha", "protocol", "gamma", "seed", "score", "direction", "score_table_key", "estimator",
             "population", "missing", "n_missing")

# Only in the files of selections that have them.
_OPTIONAL = ("by", "classes", "beta", "width", "strata", "weights", "floor", "bins", "margins", "bound", "calibration",
             "allocation", "features", "components", "inclusion")


@dataclass(frozen=True)
class Chosen:
    """Hold some rows of a selection, ascending: id, whether explored, inclusion probability and weight, (N,) each."""

    example_id: I64
    explored: npt.NDArray[np.bool_]
    probability: npt.NDArray[Any]
    weight: npt.NDArray[Any]


@dataclass(frozen=True)
class SelectionTable(ABC):
    """Hold a selection: its design, and its facts (as the select stage's `seal.meta`)."""

    design: Design
    facts: dict[str, Any]

    @property
    def num_rows(self) -> int:
        """Return m."""
        return int(self.facts["num_kept"])

    def metadata(self) -> dict[str, Any]:
        """Return the facts that go into the metadata of every file."""
        out = {name: self.facts[name] for name in _METADATA}
        return out | {name: self.facts[name] for name in _OPTIONAL if self.facts.get(name) is not None}

    def tables(self, rows: int = FILE_ROWS) -> Iterator[pa.Table]:
        """Yield tables of schemas.SELECTION with `rows` rows each (fewer in the last), ascending example_id.

        Raises InputError when an id occurs twice.
        """
        schema = with_metadata(pa.Table.from_batches([], schema=SELECTION), self.metadata()).schema
        last: int | None = None
        for chosen in self._chosen(rows):
            _refuse_repeats(chosen.example_id, last)
            last = int(chosen.example_id[-1])
            arm = pa.DictionaryArray.from_arrays(_array(chosen.explored.view(np.int8), pa.int8()), _ARMS)
            yield pa.Table.from_arrays(
                [_array(chosen.example_id, pa.int64()), arm, _array(chosen.probability, pa.float64()),
                 _array(chosen.weight.astype(np.float32, copy=False), pa.float32())], schema=schema,
            )  # fmt: skip

    def table(self) -> pa.Table:
        """Return all rows as one table."""
        return pa.concat_tables(self.tables()).combine_chunks()

    @abstractmethod
    def _chosen(self, rows: int) -> Iterator[Chosen]: ...


@dataclass(frozen=True)
class HeldTable(SelectionTable):
    """Hold the ids of either arm in memory, ascending.

    Groups are None where there is one. Where inclusion differs from row to row, `explore_prob` and `explore_weight`
    (as long as `explore_id`, float64) take the place of the design's.
    """

    signal_id: I64
    explore_id: I64
    signal_group: I32 | None = None
    explore_group: I32 | None = None
    explore_prob: F64 | None = None
    explore_weight: F64 | None = None

    @property
    def num_rows(self) -> int:
        """Return m."""
        return len(self.signal_id) + len(self.explore_id)

    def _chosen(self, rows: int) -> Iterator[Chosen]:
        done_signal = done_explore = 0
        while done_signal + done_explore < self.num_rows:
            signal = slice(done_signal, done_signal + rows)
            explore = slice(done_explore, done_explore + rows)
            ids = np.concatenate([self.signal_id[signal], self.explore_id[explore]])
            cut = len(self.signal_id[signal])
            # Two sorted runs: a stable sort merges them.
            order = np.argsort(ids, kind="stable")[:rows]
            explored = order >= cut
            if self.signal_group is None or self.explore_group is None:
                group: Any = 0
            else:
                group = np.concatenate([self.signal_group[signal], self.explore_group[explore]])[order]
            if self.explore_prob is None or self.explore_weight is None:
                explore_prob, explore_weight = self.design.explore_prob[group], self.design.explore_weight[group]
            else:
                none = np.zeros(cut)
                explore_prob = np.concatenate([none, self.explore_prob[explore]])[order]
                explore_weight = np.concatenate([none, self.explore_weight[explore]])[order]
            yield Chosen(
                ids[order], explored, np.where(explored, explore_prob, 1.0),
                np.where(explored, explore_weight, self.design.signal_weight[group]),
            )  # fmt: skip
            chosen = int(np.count_nonzero(explored))
            done_explore += chosen
            done_signal += len(order) - chosen


@dataclass(frozen=True)
class StreamedTable(SelectionTable):
    """Hold the rows of one group in a spool, with what its open rows have become."""

    spool: Spool
    decided: U8

    @property
    def signal_id(self) -> I64:
        """Return the ids of the signal, ascending, all of them in memory."""
        return self._ids(SIGNAL)

    @property
    def explore_id(self) -> I64:
        """Return the ids of the exploration, ascending, all of them in memory."""
        return self._ids(EXPLORE)

    def _ids(self, arm: int) -> I64:
        return np.concatenate([np.empty(0, dtype=np.int64), *(ids[arms == arm] for ids, arms in self.spool.chosen(self.decided))])

    def _chosen(self, rows: int) -> Iterator[Chosen]:
        probability = np.array([1.0, self.design.explore_prob[0]])
        weight = np.array([self.design.signal_weight[0], self.design.explore_weight[0]]).astype(np.float32)
        for ids, arms in in_parts(self.spool.chosen(self.decided), rows):
            yield Chosen(ids, arms == EXPLORE, probability[arms], weight[arms])


def in_parts(chunks: Iterable[tuple[I64, U8]], rows: int) -> Iterator[tuple[I64, U8]]:
    """Yield the rows of chunks of any size in parts of `rows` rows (fewer in the last)."""
    ids: list[I64] = []
    arms: list[U8] = []
    held = 0
    for more_ids, more_arms in chunks:
        start = 0
        while start < len(more_ids):
            stop = min(len(more_ids), start + rows - held)
            ids.append(more_ids[start:stop])
            arms.append(more_arms[start:stop])
            held, start = held + stop - start, stop
            if held == rows:
                yield np.concatenate(ids), np.concatenate(arms)
                ids, arms, held = [], [], 0
    if held:
        yield np.concatenate(ids), np.concatenate(arms)


def _array(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Return values as an array that shares their memory; without pa.array, for the reason above."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _refuse_repeats(ids: I64, last: int | None) -> None:
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if len(repeated) or (last is not None and int(ids[0]) == last):
        example = int(repeated[0]) if len(repeated) else last
        raise InputError(
            f"ids are not unique: {example} occurs more than once among the selected rows ({max(1, len(repeated))} "
            "repeats in this range); every example needs its own id"
        )
