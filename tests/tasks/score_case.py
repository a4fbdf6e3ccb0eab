"""Data, proxies and specifications that the tests of the score stage share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.pool import SerialPool
from tasks.proxy import ProxyInputs, ProxySpec, proxy_stage
from tasks.score import ScoreInputs, ScoreSpec, checkpoints_needed
from tasks.shard import shard_stage
from tasks.sources.spec import DataSpec

ROWS, WIDTH, CLASSES = 230, 6, 3
PROXY = ProxySpec.model_validate(
    {
        "model": {"use": "mlp", "args": {"hidden": [16]}}, "seeds": 2, "steps": 40, "batch_size": 32, "lr": 0.02,
        "recipe": {"transform": {"use": "standardize", "args": {"mean": 3.0, "std": 2.0}}},
    }
)  # fmt: skip
ALL = ScoreSpec.model_validate(
    {
        "scores": [
            "random", "el2n", "el2n@0.25", "grand", "grand_last", "loss", "entropy", "margin", "least_confidence",
            "forgetting", "aum",
        ],
        "forward_rows": 32,
    }
)  # fmt: skip


def write_data(folder: Path, seed: int = 0) -> Path:
    """Write two files of examples whose ids are shuffled and lie beyond 2^53, one apart."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, ROWS)
    features = (generator.normal(size=(ROWS, WIDTH)) * 2 + 3 + labels[:, None]).astype(np.float32)
    ids = 2**60 + generator.permutation(ROWS)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("a.parquet", slice(0, 150)), ("b.parquet", slice(150, ROWS))):
        table = pa.table(
            {
                "key": ids[rows],
                "features": pa.FixedSizeListArray.from_arrays(pa.array(features[rows].reshape(-1)), WIDTH),
                "label": labels[rows],
            }
        )
        pq.write_table(table, folder / name, row_group_size=10)
    return folder


def data_spec(folder: Path, shard_rows: int = 50) -> DataSpec:
    return DataSpec.model_validate(
        {
            "source": {"use": "parquet", "args": {"id_column": "key"}}, "train": str(folder), "shard_rows": shard_rows,
            "test_fraction": 0.1,
        }
    )  # fmt: skip


class Base:
    """Hold a store with an index and two proxies."""

    def __init__(self, folder: Path, proxy: ProxySpec = PROXY) -> None:
        self.proxy = proxy
        self.store = Store(str(folder / "store"))
        self.data = data_spec(write_data(folder / "data"))
        self.index = shard_stage(self.data, self.store, SerialPool())
        self.proxies = proxy_stage(
            proxy, ProxyInputs(self.data, self.index, checkpoints_needed(ALL), "", 0), self.store, SerialPool()
        )
        self.inputs = ScoreInputs(self.data, self.index, proxy, self.proxies, "", 0)
        self.dataset = Dataset(self.data, self.index, self.store)

    def resharded(self, folder: Path, shard_rows: int) -> ScoreInputs:
        """Return the same inputs cut into other shards, with the same proxies."""
        data = data_spec(Path(self.data.train), shard_rows)
        index = shard_stage(data, self.store, SerialPool())
        return ScoreInputs(data, index, self.proxy, self.proxies, "", 0)
