"""Subsets that change: which rows an epoch shows, a function of (selection seed, epoch), for protocols that rotate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cluster.errors import CorruptError
from cluster.record import Unit
from tasks.hashing import I64, hash64
from tasks.samplers.registry import protocol_info
from tasks.seeding import derive_seed
from tasks.selection.spec import EXCLUDE

if TYPE_CHECKING:
    from cluster.record import Seal
    from cluster.storage import Store

F32 = npt.NDArray[np.float32]


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed by which exploration is drawn in an epoch: in the first, that of the selection itself."""
    return seed if epoch == 0 else derive_seed("epoch", seed, epoch)


class Rotation:
    """Give the rows of any epoch's subset: the signal, and `exploration` rows of the complement, drawn anew.

    `signal` and `complement` are disjoint rows of a training set whose ids are `example_id` (N,). Drawn are the rows of
    smallest hash64("explore", epoch_seed(seed, epoch), id): a uniform draw without replacement, independent between epochs,
    the same on every rank, for any order of the rows, and whatever was drawn before.
    """

    def __init__(self, example_id: I64, signal: I64, complement: I64, exploration: int, seed: int) -> None:
        self.signal, self.complement, self.exploration, self.seed = signal, complement, exploration, seed
        self._ids = example_id[complement]

    @property
    def size(self) -> int:
        """Return m, the examples of an epoch."""
        return len(self.signal) + self.exploration

    def explored(self, epoch: int) -> I64:
        """Return the rows of the complement that an epoch draws, ascending."""
        if self.exploration >= len(self.complement):
            return np.sort(self.complement)
        hashes = hash64("explore", epoch_seed(self.seed, epoch), self._ids)
        # The hash is a bijection of the id, so there are no ties to break.
        return np.sort(self.complement[np.argpartition(hashes, self.exploration)[: self.exploration]])

    def rows(self, epoch: int) -> I64:
        """Return the rows of an epoch's subset (m,), ascending."""
        return np.sort(np.concatenate([self.signal, self.explored(epoch)]))


def rotates(selection: Seal | None) -> bool:
    """Return whether a training with this selection draws its subset anew every epoch."""
    return selection is not None and protocol_info(str(selection.meta["protocol"])).rotates


def rotation_of(selection: Seal, example_id: I64, store: Store) -> tuple[Rotation, F32]:
    """Return the rotation over the train split (N,), and the weight (N,) of each of its rows where it is shown.

    The sealed selection is the first epoch's subset: from it come the signal and both weights. Rows that the selection left
    out of its population have weight 0 and are never drawn. Raises CorruptError where the first epoch is not the sealed one:
    the split or the score table is not what was selected from.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from tasks.selection.stage import load_selection

    table = load_selection(store, selection, ["example_id", "arm", "weight"])
    ids = table.column("example_id").to_numpy()
    weight = table.column("weight").to_numpy()
    is_signal = pc.equal(table.column("arm").cast(pa.string()), "signal").to_numpy()
    signal = _rows_of(ids[is_signal], example_id)
    population = _population(selection, example_id, store)
    complement = np.setdiff1d(population, signal, assume_unique=True)
    exploration = int(np.count_nonzero(~is_signal))
    rotation = Rotation(example_id, signal, complement, exploration, int(selection.meta["seed"]))
    if not np.array_equal(example_id[rotation.explored(0)], ids[~is_signal]):
        raise CorruptError(
            f"selection {selection.key[:12]} is not the first draw from the {len(population)} examples there are now: the data "
            "or the scores are not those it was made from; select again"
        )
    weights = np.zeros(len(example_id), dtype=np.float32)
    if len(signal):
        weights[signal] = weight[is_signal][0]
    if exploration:
        weights[complement] = weight[~is_signal][0]
    return rotation, weights


def _population(selection: Seal, example_id: I64, store: Store) -> I64:
    """Return the rows that the selection was made from, ascending: all, or those that have a score."""
    meta = selection.meta
    if meta["missing"] != EXCLUDE or not meta["n_missing"]:
        return np.arange(len(example_id), dtype=np.int64)
    from tasks.tables import load_part

    merge = Unit(store, "merge", str(meta["score_table_key"])).seal()
    if merge is None:
        raise CorruptError(f"score table {str(meta['score_table_key'])[:12]} is gone, though a selection was made from it")
    scored = [load_part(store, part, ["example_id"]).column("example_id").to_numpy() for part in merge.parts]
    return _rows_of(np.sort(np.concatenate(scored)), example_id)


def _rows_of(ids: I64, example_id: I64) -> I64:
    """Return where `ids` stand in `example_id`, both ascending. Raises CorruptError where one does not."""
    rows = np.searchsorted(example_id, ids)
    found = rows < len(example_id)
    found &= example_id[np.minimum(rows, len(example_id) - 1)] == ids
    if not found.all():
        raise CorruptError(
            f"{int((~found).sum())} of {len(ids)} examples of a selection are not in the train split: the data are not those it "
            "was made from; select again"
        )
    return rows.astype(np.int64)
