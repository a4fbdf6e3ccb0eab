"""Training on a compact subset beside a bare torch loop, and with the dynamics recorder: `python -m benchmarks.training`.

The subset is what the stages shard, select and subset make of a table of TABLE_ROWS images, read by `SubsetDataset`; the bare
loop has the same arrays. How long reading and verifying it takes stands beside: the pool does it while the training before runs.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional

from benchmarks.contest import Row, peaks_of, table
from cluster.record import Unit
from cluster.storage import Store
from flows.config import parse_config
from flows.plan import make_plan
from tasks.dynamics import DynamicsRecorder
from tasks.models.build import build_model
from tasks.pool import SerialPool
from tasks.recipe import Pipeline
from tasks.selecting import SelectInputs, selection_stage
from tasks.shard import shard_stage
from tasks.spec import Numerics, Recipe, Use
from tasks.subset import SubsetInputs, subset_stage
from tasks.subset_dataset import SubsetDataset
from tasks.training import Settings, TrainingArrays, train_model

MODELS: dict[str, dict[str, Any]] = {"mlp": {"use": "mlp", "args": {"hidden": [256]}}, "cnn": {"use": "cnn", "args": {}}}
TABLE_ROWS, KEEP, SHARD_ROWS, BATCH, CLASSES, SHAPE = 60_000, 0.35, 8192, 128, 10, (1, 28, 28)


def compact_subset(folder: Path) -> str:
    """Return the address of a sealed subset of KEEP of TABLE_ROWS random images, drawn by the protocol random."""
    generator = np.random.default_rng(0)
    for name, rows in (("train", TABLE_ROWS), ("test", 1000)):
        x = pa.array(generator.integers(0, 256, rows * math.prod(SHAPE), dtype=np.uint8))
        y = generator.integers(0, CLASSES, rows)
        table_of = pa.table({"features": pa.FixedSizeListArray.from_arrays(x, math.prod(SHAPE)), "label": y})
        pq.write_table(table_of, folder / f"{name}.parquet", row_group_size=SHARD_ROWS)
    data = {"source": {"use": "parquet", "args": {"shape": list(SHAPE)}}, "train": f"{folder}/train.parquet",
            "test": f"{folder}/test.parquet", "shard_rows": SHARD_ROWS}  # fmt: skip
    model = {"use": "mlp", "args": {"hidden": [8]}}
    run = parse_config({
        "name": "training", "data": data, "proxy": {"model": model, "steps": 1}, "score": {"scores": ["el2n"]},
        "select": {"keep": KEEP, "arms": [{"protocol": "rs2"}]}, "train": {"model": model, "steps": 1},
    })  # fmt: skip
    plan, store, pool = make_plan(run), Store(str(folder / "store")), SerialPool()
    index = shard_stage(run.data, store, pool)
    random = next(one for one in plan.selections.values() if one[1].spec.protocol == "random")
    chosen = selection_stage([random], SelectInputs(run.data, index), store, pool)
    (cut,) = subset_stage([(plan.subset(random[0]), chosen[0])], SubsetInputs(run.data, index), store, pool)
    return store.url(Unit(store, "subset", cut.key).folder)


def read(subset: str) -> TrainingArrays:
    """Return a subset as it is read for a training: every part against its digest."""
    example_id, x, y, w = SubsetDataset(subset).arrays()
    return TrainingArrays(x, y, w, example_id)


def bare(model: torch.nn.Module, data: TrainingArrays, steps: int) -> None:
    """Train as a plain script would: AdamW, one cycle, weighted loss, data in memory."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    x, y, w = torch.from_numpy(data.x), torch.from_numpy(data.y), torch.from_numpy(data.w)
    generator = torch.Generator().manual_seed(0)
    done = 0
    while done < steps:
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            loss = (w[rows] * functional.cross_entropy(model(x[rows].float() / 255), y[rows], reduction="none")).sum() / len(rows)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            if done == steps:
                return


def recorded_bytes(examples: int = 1000) -> float:
    """Return the bytes of a recorder's state for each example."""
    return sum(one.numel() * one.element_size() for one in DynamicsRecorder(examples).state_dict().values()) / examples


def measure(repeats: int, steps: dict[str, int]) -> list[Row]:
    """Return the lines of the table."""
    with tempfile.TemporaryDirectory() as folder:
        subset = compact_subset(Path(folder))
        return rows_of(subset, repeats, steps)


WAYS = ("ours", "bare", "recorded", "read")


def ways_of(subset: str, name: str, steps: int) -> dict[str, Callable[[], Any]]:
    """Return every way of WAYS for one model, on a compact subset that is in memory."""
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    data, fresh = read(subset), build_model(Use.model_validate(MODELS[name]), SHAPE, CLASSES, 0)
    numerics = Numerics.model_validate({"threads": threads})
    settings = Settings(
        steps=steps, seed=0, batch_size=BATCH, lr=3e-3, weight_decay=0.01, numerics=numerics, checkpoint_every_s=1e9
    )
    pipeline = Pipeline(Recipe(), numerics)

    def ours(recorder: DynamicsRecorder | None = None) -> torch.nn.Module:
        model = copy.deepcopy(fresh)
        train_model(model, data, settings, pipeline, recorder=recorder)
        return model

    return {
        "ours": ours,
        "bare": lambda: bare(copy.deepcopy(fresh).train(), data, settings.steps),
        "recorded": lambda: ours(DynamicsRecorder(len(data.y))),
        "read": lambda: read(subset),
    }


def rows_of(subset: str, repeats: int, steps: dict[str, int]) -> list[Row]:
    """Return the lines of trainings on a compact subset."""
    rows = []
    for name in MODELS:
        ways = ways_of(subset, name, steps[name])
        weights = [dict(ways[way]().state_dict()) for way in ("ours", "recorded")]
        if any(not torch.equal(one, weights[1][key]) for key, one in weights[0].items()):
            raise ValueError("the recorder changes the training that it records")
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(repeats + 1):
            for way, do in ways.items():
                start = time.perf_counter()
                do()
                if turn:
                    times[way].append(time.perf_counter() - start)
        found = {way: statistics.median(each) for way, each in times.items()}
        print(f"  {name}: {found}", file=sys.stderr, flush=True)
        peaks = peaks_of("benchmarks.training", WAYS[:3], "--subset", subset, "--model", name, "--steps", str(steps[name]))
        said = {way: f"{found[way]:.2f} s, {peaks[way]:.0f} MiB" for way in peaks}
        speed, cost = found["bare"] / found["ours"], found["recorded"] / found["ours"]
        work = f"training, {name}, {steps[name]} steps of {BATCH}"
        rows += [
            Row(work, "bare torch loop, data in memory", ">= 0.95x its speed", said["ours"], said["bare"],
                f"{speed:.2f}x", speed >= 0.95, f"read and verified in {found['read']:.2f} s before"),
            Row(f"{work}, recorded", "the same without the recorder", "<= 1.05x its time", said["recorded"], said["ours"],
                f"{cost:.3f}x", cost <= 1.05, f"{recorded_bytes():.0f} bytes an example"),
        ]  # fmt: skip
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--way", choices=WAYS, help="do one way once and print nothing; takes the other three options")
    parser.add_argument("--subset", help="address of a sealed subset")
    parser.add_argument("--model", choices=tuple(MODELS))
    parser.add_argument("--steps", type=int)
    chosen = parser.parse_args()
    if chosen.way:
        ways_of(chosen.subset, chosen.model, chosen.steps)[chosen.way]()
        return
    print(table(measure(chosen.repeats, {"mlp": 600, "cnn": 100})))


if __name__ == "__main__":
    main()
