"""A finished selection: its rows in ascending id, streamed, and the facts of its design."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.errors import InputError
from tasks.hashing import I64
from tasks.samplers.design import F64, Design
from tasks.schemas import SELECTION
from tasks.tables import with_metadata

I32 = npt.NDArray[np.int32]

FILE_ROWS = 2**22
ARMS = ("signal", "exploration")

# What a reader needs to use the weights of one design as that design's.
_METADATA = ("n", "keep", "alpha", "protocol", "gamma", "seed", "score", "direction", "score_table_key", "estimator",
             "population", "missing", "n_missing")

# Only in the files of selections that have them.
_OPTIONAL = ("by", "classes", "beta", "width", "strata", "weights", "floor", "bins", "margins", "bound", "calibration",
             "allocation", "features", "components", "inclusion")


@dataclass(frozen=True)
class SelectionTable:
    """Hold a selection: ids of either arm, ascending; the design; facts (as the select stage's `seal.meta`).

    Groups are None where there is one. Where inclusion differs from row to row, `explore_prob` and `explore_weight`
    (as long as `explore_id`, float64) take the place of the design's.
    """

    signal_id: I64
    explore_id: I64
    design: Design
    facts: dict[str, Any] = field(default_factory=dict)
    signal_group: I32 | None = None
    explore_group: I32 | None = None
    explore_prob: F64 | None = None
    explore_weight: F64 | None = None

    @property
    def num_rows(self) -> int:
        """Return m."""
        return len(self.signal_id) + len(self.explore_id)

    def metadata(self) -> dict[str, Any]:
        """Return the facts that go into the metadata of every file."""
        out = {name: self.facts[name] for name in _METADATA}
        return out | {name: self.facts[name] for name in _OPTIONAL if self.facts.get(name) is not None}

    def tables(self, rows: int = FILE_ROWS) -> Iterator[pa.Table]:
        """Yield tables of schemas.SELECTION with `rows` rows each (fewer in the last), ascending example_id.

        Raises InputError when an id occurs twice.
        """
        schema = with_metadata(SELECTION.empty_table(), self.metadata()).schema
        done_signal = done_explore = 0
        last: int | None = None
        while done_signal + done_explore < self.num_rows:
            signal = slice(done_signal, done_signal + rows)
            explore = slice(done_explore, done_explore + rows)
            ids = np.concatenate([self.signal_id[signal], self.explore_id[explore]])
            cut = len(self.signal_id[signal])
            # Two sorted runs: a stable sort merges them.
            order = np.argsort(ids, kind="stable")[:rows]
            ids = ids[order]
            is_explore = order >= cut
            _refuse_repeats(ids, last)
            last = int(ids[-1])
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
            probability = np.where(is_explore, explore_prob, 1.0)
            weight = np.where(is_explore, explore_weight, self.design.signal_weight[group])
            arm = pa.DictionaryArray.from_arrays(is_explore.astype(np.int8), pa.array(ARMS))
            yield pa.Table.from_arrays(
                [pa.array(ids), arm, pa.array(probability), pa.array(weight.astype(np.float32))], schema=schema
            )
            chosen = int(np.count_nonzero(is_explore))
            done_explore += chosen
            done_signal += len(ids) - chosen

    def table(self) -> pa.Table:
        """Return all rows as one table."""
        return pa.concat_tables(self.tables()).combine_chunks()


def _refuse_repeats(ids: I64, last: int | None) -> None:
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if len(repeated) or (last is not None and int(ids[0]) == last):
        example = int(repeated[0]) if len(repeated) else last
        raise InputError(
            f"ids are not unique: {example} occurs more than once among the selected rows ({max(1, len(repeated))} "
            "repeats in this range); every example needs its own id"
        )
