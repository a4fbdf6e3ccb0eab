"""The reader that every stage after sharding uses: rows of a split, checked against the index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cluster.errors import CorruptError, InputError, ItemsError
from cluster.record import Seal
from tasks.shard_records import Shards, unpack_shards
from tasks.sources.protocol import TEST_LOCATION, TRAIN_LOCATION, Examples, Shard, Source

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from cluster.storage import Store
    from tasks.sources.spec import DataSpec


def _changed(shard: Shard, what: str) -> ItemsError:
    return ItemsError(
        f"{shard}: {what}: the data changed under the run. Nothing of it is kept; put the data back and resume, or run the "
        "configuration again, which makes a new run of what is there now"
    )


class Dataset:
    """Read a sharded dataset. Pickles as its specification, the index's seal and the store's URI."""

    def __init__(self, spec: DataSpec, index: Seal, store: Store) -> None:
        self.spec, self.index, self.store = spec, index, store
        self._sources: dict[str, Source] = {}

    def __reduce__(self) -> tuple[type[Dataset], tuple[DataSpec, Seal, Store]]:
        return (Dataset, (self.spec, self.index, self.store))

    @property
    def meta(self) -> Mapping[str, Any]:
        """Return the facts in the index's seal."""
        return self.index.meta

    @property
    def num_classes(self) -> int:
        """Return K."""
        return int(self.meta["num_classes"])

    @property
    def class_names(self) -> list[str]:
        """Return the K names of the classes."""
        return list(self.meta["class_names"])

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one example's features."""
        return tuple(self.meta["shape"])

    @property
    def dtype(self) -> str:
        """Return "uint8" or "float32"."""
        return str(self.meta["dtype"])

    @property
    def num_train(self) -> int:
        """Return the rows of the train split, validation taken out."""
        return int(self.meta["num_train"])

    @property
    def num_validation(self) -> int:
        """Return the rows of the validation split."""
        return int(self.meta["num_validation"])

    @property
    def num_test(self) -> int:
        """Return the rows of the test split."""
        return int(self.meta["num_test"])

    def shards(self, location: str = TRAIN_LOCATION) -> Shards:
        """Return the shards of a location in order, none where it is not there. Addresses come from the
        specification."""
        return Shards(unpack_shards(run for run in self.meta["shards"] if run["location"] == location))

    def _locations(self, split: int) -> Sequence[str]:
        """Return where rows of a split can be: test rows have a location of their own, or are part of train."""
        from tasks.schemas import TEST

        own_test = any(run["location"] == TEST_LOCATION for run in self.meta["shards"])
        return (TEST_LOCATION,) if split == TEST and own_test else (TRAIN_LOCATION,)

    def index_table(self, shard: Shard) -> pa.Table:
        """Return the index rows of a shard in row order, verified against the seal. Raises CorruptError."""
        from tasks.tables import footer_of, load_part

        part = self.index.part(shard.part_name)
        if part is None:
            raise CorruptError(f"index {self.index.key[:12]} has no part for {shard}; it was made for other data")
        table = load_part(self.store, part)
        where = self.store.url(part.name)
        if footer_of(table, where).get("key") != self.index.key or table.num_rows != shard.rows:
            raise CorruptError(f"part {where} is not the index of {shard}; remove it with its seal and run again")
        return table

    def _source(self, location: str) -> Source:
        from tasks.sources.registry import open_source

        if location not in self._sources:
            self._sources[location] = open_source(self.spec, location)
        return self._sources[location]

    def read(self, shard: Shard, split: int) -> Examples:
        """Return the rows of a split in a shard, in row order, labels 0..K-1.

        Raises ItemsError when features, ids or labels are not those that were checked, bit for bit.
        """
        import dataclasses

        import numpy as np

        from tasks.schemas import QUARANTINED
        from tasks.sources.contents import as_features, as_ids, check_raw, content_digest, encode_labels
        from tasks.tables import footer_of

        table = self.index_table(shard)
        splits = table.column("split").to_numpy()
        mask = splits == split
        positions = table.column("position").to_numpy()[mask]
        if not mask.any():
            none = np.empty(0, dtype=np.int64)
            return Examples(none, np.empty((0, *self.shape), dtype=self.dtype), none.copy(), none.copy())
        footer = footer_of(table, str(shard))
        full = dataclasses.replace(shard, files=tuple(footer.get("files", ())))
        try:
            raw = self._source(shard.location).read(full)
            check_raw(raw, full)
        except InputError as error:
            raise _changed(shard, f"it cannot be read as it was when it was checked ({error})") from error
        if content_digest(raw) != footer["content"]:
            raise _changed(shard, "its features are not those that were checked")
        ids = as_ids(raw.example_id, full)
        labels = encode_labels(raw.labels, self.meta["label_map"], full, self.num_classes).classes
        indexed, usable = table.column("label").to_numpy(), splits != QUARANTINED
        same = np.array_equal(ids, table.column("example_id").to_numpy()) and (labels[usable] >= 0).all()
        if not same or ((indexed >= 0) & (indexed != labels)).any():
            raise _changed(shard, "its ids or labels are not those that were checked")
        x, _ = as_features(raw.x[mask], dataclasses.replace(full, files=()))
        return Examples(ids[mask], x, labels[mask], positions)

    def load(self, split: int) -> Examples:
        """Return all rows of a split in memory, in ascending example_id: the same for any sharding."""
        import numpy as np

        read = [self.read(shard, split) for location in self._locations(split) for shard in self.shards(location)]
        ids = np.concatenate([one.example_id for one in read])
        order = np.argsort(ids)
        return Examples(
            ids[order],
            np.concatenate([one.x for one in read])[order],
            np.concatenate([one.y for one in read])[order],
            np.concatenate([one.position for one in read])[order],
        )

    def ids(self, split: int) -> npt.NDArray[np.int64]:
        """Return all ids of a split, (N,) int64 ascending; reads the index only."""
        import numpy as np

        found = []
        for location in self._locations(split):
            for shard in self.shards(location):
                table = self.index_table(shard)
                found.append(table.column("example_id").to_numpy()[table.column("split").to_numpy() == split])
        return np.sort(np.concatenate(found))
