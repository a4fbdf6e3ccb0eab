"""The subset stage: the selected examples themselves, compact and weighted, as Parquet and a torch dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.fingerprint import stage_key
from tasks.spec import Resources

if TYPE_CHECKING:
    from cluster.record import Seal
    from cluster.storage import Store
    from tasks.pool import Pool
    from tasks.sources.spec import DataSpec
    from tasks.subset_dataset import SubsetDataset

__all__ = ["SubsetDataset", "SubsetInputs", "subset_key", "subset_stage"]

VERSION = 2


def subset_key(selection_key: str, index_key: str) -> str:
    """Return the key of the compact subset of one selection."""
    return stage_key("subset", VERSION, {}, [selection_key, index_key])


@dataclass(frozen=True)
class SubsetInputs:
    """Hold what the subset stage reads beside the selections."""

    data: DataSpec
    index: Seal
    resources: Resources = field(default_factory=Resources)


def subset_stage(units: Sequence[tuple[str, Seal]], inputs: SubsetInputs, store: Store, pool: Pool) -> list[Seal]:
    """Publish the compact subset of every selection that has none and return all seals, in the order of `units`.

    A unit is (subset key, selection seal). One part for each data shard with selected rows (schemas.subset_schema,
    rows in shard order), and `indices.npy`: positions in the train location, int64, ascending. A shard is read once for
    all selections. `seal.meta`: n, num_kept, num_classes, class_names, shape, dtype, selection_key, index_key.
    """
    from tasks.subset_worker import run_subset_stage

    return run_subset_stage(units, inputs, store, pool)


def __getattr__(name: str) -> Any:
    # torch takes 1.7 s to import; planning a run needs only the keys.
    if name == "SubsetDataset":
        from tasks.subset_dataset import SubsetDataset

        return SubsetDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
