"""What benchmarks.scoring scores, and bare torch loops over the same files: in one process, and in several of one thread."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional

from cluster.record import Seal
from cluster.storage import Store
from tasks.models.build import build_model
from tasks.pool import Pool, SerialPool
from tasks.proxy import ProxyInputs, ProxySpec, load_checkpoint, proxy_stage
from tasks.score import ScoreInputs, ScoreSpec, score_stage
from tasks.shard import shard_stage
from tasks.sources.spec import DataSpec

SIDE, CLASSES = 16, 10
SHARD_ROWS = 2**15
MODELS: dict[str, dict[str, Any]] = {"mlp": {"use": "mlp", "args": {"hidden": [256]}}, "cnn": {"use": "cnn", "args": {}}}


def write_data(folder: Path, rows: int) -> None:
    """Write images (1, SIDE, SIDE) uint8 with labels, and a small test file."""
    generator = np.random.default_rng(0)
    kind = pa.list_(pa.uint8(), SIDE * SIDE)
    for name, count in (("train", rows), ("test", 1000)):
        with pq.ParquetWriter(folder / f"{name}.parquet", pa.schema({"features": kind, "label": pa.int64()})) as writer:
            for start in range(0, count, SHARD_ROWS):
                size = min(SHARD_ROWS, count - start)
                x = generator.integers(0, 256, size * SIDE * SIDE, dtype=np.uint8)
                y = generator.integers(0, CLASSES, size)
                columns = [pa.FixedSizeListArray.from_arrays(pa.array(x), SIDE * SIDE), pa.array(y)]
                writer.write_table(pa.table(columns, schema=writer.schema), row_group_size=SHARD_ROWS)


class Case:
    """Hold data with their index and the proxies of one model in a store."""

    def __init__(self, folder: Path, rows: int, model: str, proxies: int) -> None:
        data = folder / "data"
        if not data.exists():
            data.mkdir(parents=True)
            write_data(data, rows)
        self.rows, self.folder = rows, folder
        self.store = Store(str(folder / f"store-{model}-{proxies}"))
        self.data = DataSpec.model_validate(
            {"source": {"use": "parquet", "args": {"shape": [1, SIDE, SIDE]}}, "train": str(data / "train.parquet"),
             "test": str(data / "test.parquet"), "shard_rows": SHARD_ROWS, "validation": 0.001}
        )  # fmt: skip
        self.index = shard_stage(self.data, self.store, SerialPool())
        self.proxy = ProxySpec.model_validate({"model": MODELS[model], "seeds": proxies, "steps": 5, "batch_size": 64})
        inputs = ProxyInputs(self.data, self.index, (1.0,), "", 0)
        self.proxies = proxy_stage(self.proxy, inputs, self.store, SerialPool())
        self.model = model

    def stage(self, scores: list[str], pool: Pool, store: Store, which: slice = slice(None), **spec: Any) -> Seal:
        """Score with some of the proxies into a store."""
        inputs = ScoreInputs(self.data, self.index, self.proxy, self.proxies[which], "", 0)
        return score_stage(ScoreSpec.model_validate({"scores": scores, **spec}), inputs, store, pool)

    def place(self, number: int) -> Store:
        """Return another empty store with this case's index and proxies in it, hard-linked."""
        target = self.folder / f"scored-{self.model}-{len(self.proxies)}-{number}-{time.monotonic_ns()}"
        source = Path(self.store.uri.removeprefix("file://"))
        for file in source.rglob("*"):
            if file.is_file() and "/score-" not in str(file):
                link = target / file.relative_to(source)
                link.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, link)
        return Store(str(target))


def loaded(case: Case, number: int = 0) -> torch.nn.Module:
    """Return one of the proxies as it was trained."""
    model = build_model(case.proxy.model, (1, SIDE, SIDE), CLASSES, 0)
    model.load_state_dict(load_checkpoint(case.store, case.proxies[number], 1.0)["model"])
    return model.eval()


def bare_scores(model: torch.nn.Module, path: str, groups: Sequence[int]) -> torch.Tensor:
    """Return el2n of some row groups of a file: read, scale, forward, score."""
    out = []
    file = pq.ParquetFile(path)
    for group in groups:
        read = file.read_row_group(group)
        x = read.column("features").combine_chunks().flatten().to_numpy().reshape(-1, 1, SIDE, SIDE)
        y = torch.from_numpy(read.column("label").to_numpy())
        with torch.no_grad():
            for at in range(0, len(x), 256):
                inputs = torch.from_numpy(x[at : at + 256]).float() / 255
                probabilities = functional.softmax(model(inputs), 1)
                hot = functional.one_hot(y[at : at + 256], CLASSES)
                out.append((probabilities - hot).norm(dim=1))
    return torch.cat(out)


def bare_loop(case: Case, threads: int) -> tuple[float, torch.Tensor]:
    """Return rows a second of a torch loop in this process, and el2n of its rows."""
    torch.set_num_threads(threads)
    model, path = loaded(case), case.data.train
    groups = range(pq.ParquetFile(path).metadata.num_row_groups)
    start = time.perf_counter()
    scores = bare_scores(model, path, groups)
    return len(scores) / (time.perf_counter() - start), scores


def _share(model: torch.nn.Module, path: str, groups: Sequence[int], ready: Any, said: Any) -> None:
    torch.set_num_threads(1)
    ready.wait()
    start = time.perf_counter()
    scores = bare_scores(model, path, groups)
    said.put((groups[0], len(scores) / (time.perf_counter() - start), scores.numpy()))


def bare_loops(case: Case, processes: int) -> tuple[float, torch.Tensor]:
    """Return the same of a loop in each of several processes of one thread: the sum of their rates, each over its own share."""
    spawn = multiprocessing.get_context("spawn")
    ready, said = spawn.Barrier(processes), spawn.Queue()
    groups = np.array_split(np.arange(pq.ParquetFile(case.data.train).metadata.num_row_groups), processes)
    shares = [spawn.Process(target=_share, args=(loaded(case), case.data.train, one.tolist(), ready, said)) for one in groups]
    for share in shares:
        share.start()
    found = sorted((said.get() for _ in shares), key=lambda one: one[0])
    for share in shares:
        share.join()
    return sum(rate for _, rate, _ in found), torch.cat([torch.from_numpy(scores) for _, _, scores in found])
