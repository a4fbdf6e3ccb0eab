"""A compact subset as a torch dataset of (x, y, weight)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset as TorchDataset

from cluster.errors import CorruptError, InputError
from cluster.fingerprint import sha256
from cluster.record import Part, Seal
from cluster.storage import read_uri
from tasks.hashing import I64
from tasks.tables import decode_table

SEAL = "seal.json"

Arrays = tuple[I64, npt.NDArray[Any], I64, npt.NDArray[np.float32]]
Sample = tuple[torch.Tensor, int, float]


class SubsetDataset(TorchDataset[Sample]):
    """Give the examples of a sealed subset folder, ascending in example_id, whatever the shards.

    `uri` is the folder that holds seal.json: STORE/stages/subset-<key12>, local or s3://; a copy of it will do. An
    item is (x: stored features, uint8 or float32 tensor of the example's shape; y: int; weight: float). The parts are
    read on first use, each checked against the sha256 in the seal, and kept in memory. Multiply losses by the weight
    and divide by the batch size, not by the sum of weights. Raises InputError where no subset is, CorruptError where a
    part is not what the seal says.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.removesuffix(SEAL).rstrip("/")
        where = f"{self.uri}/{SEAL}"
        try:
            self.seal = Seal.from_bytes(read_uri(where), where)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(
                f"{where} is not there: no subset, or one that is not complete; give the folder of a sealed subset"
            ) from error
        if self.seal.stage != "subset":
            raise InputError(f"{where} seals a {self.seal.stage}, not a subset; give the folder of a sealed subset")
        self._arrays: Arrays | None = None

    def __reduce__(self) -> tuple[type[SubsetDataset], tuple[str]]:
        # Workers of a loader read the folder themselves instead of receiving the features.
        return (SubsetDataset, (self.uri,))

    def __len__(self) -> int:
        return int(self.seal.meta["num_kept"])

    def __getitem__(self, index: int) -> Sample:
        _, x, y, weight = self.arrays()
        return torch.from_numpy(x[index]), int(y[index]), float(weight[index])

    @property
    def num_classes(self) -> int:
        """Return K."""
        return int(self.seal.meta["num_classes"])

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one example."""
        return tuple(int(size) for size in self.seal.meta["shape"])

    def indices(self) -> I64:
        """Return the positions of the examples in the train location, (m,) int64 ascending, from indices.npy."""
        import io

        for part in self.seal.parts:
            if part.name.endswith(".npy"):
                return np.asarray(np.load(io.BytesIO(self._verified(part)), allow_pickle=False), dtype=np.int64)
        raise CorruptError(f"subset {self.uri} has no indices.npy in its seal")

    def arrays(self) -> Arrays:
        """Return (example_id (m,) int64 ascending, x (m, *shape), y (m,) int64, weight (m,) float32)."""
        if self._arrays is None:
            self._arrays = self._read()
        return self._arrays

    def _verified(self, part: Part) -> bytes:
        where = f"{self.uri}/parts/{part.name.rpartition('/')[2]}"
        try:
            data = read_uri(where)
        except FileNotFoundError as error:
            raise CorruptError(f"part {where} is gone, though its seal names it") from error
        if len(data) != part.size or sha256(data) != part.sha256:
            raise CorruptError(
                f"part {where} has {len(data)} bytes, sha256 {sha256(data)[:12]}; its seal says {part.size} bytes, "
                f"{part.sha256[:12]}: it was changed after it was published"
            )
        return data

    def _read(self) -> Arrays:
        m = len(self)
        ids, y = np.empty(m, dtype=np.int64), np.empty(m, dtype=np.int64)
        weight = np.empty(m, dtype=np.float32)
        x = np.empty((m, *self.shape), dtype=np.dtype(str(self.seal.meta["dtype"])))
        at = 0
        for part in self.seal.parts:
            if not part.name.endswith(".parquet"):
                continue
            table = decode_table(self._verified(part), part.name).combine_chunks()
            rows = slice(at, at + table.num_rows)
            ids[rows] = table.column("example_id").to_numpy()
            y[rows] = table.column("label").to_numpy()
            weight[rows] = table.column("weight").to_numpy()
            flat = table.column("features").combine_chunks().flatten().to_numpy()
            x[rows] = flat.reshape(table.num_rows, *self.shape)
            at += table.num_rows
        if at != m:
            raise CorruptError(f"subset {self.uri} has {at} rows in its parts, its seal says {m}")
        order = np.argsort(ids, kind="stable")
        return ids[order], x[order], y[order], weight[order]
