"""Training beside a bare torch loop, and the dynamics recorder beside no recorder: `python -m benchmarks.training`."""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.contest import Row, table
from tasks.dynamics import DynamicsRecorder
from tasks.models.build import build_model
from tasks.recipe import Pipeline
from tasks.spec import Numerics, Recipe, Use
from tasks.training import Settings, TrainingArrays, train_model

MODELS: dict[str, dict[str, Any]] = {"mlp": {"use": "mlp", "args": {"hidden": [256]}}, "cnn": {"use": "cnn", "args": {}}}
ROWS, BATCH, CLASSES, SHAPE = 20_000, 128, 10, (1, 28, 28)


def arrays() -> TrainingArrays:
    """Return images in memory, as a compact subset is read."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (ROWS, *SHAPE), dtype=np.uint8)
    y = generator.integers(0, CLASSES, ROWS)
    return TrainingArrays(x, y, np.ones(ROWS, dtype=np.float32), np.arange(ROWS, dtype=np.int64))


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


def measure(repeats: int, steps: dict[str, int]) -> list[Row]:
    """Return the lines of the table."""
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    data, rows = arrays(), []
    for name, use in MODELS.items():
        fresh = build_model(Use.model_validate(use), SHAPE, CLASSES, 0)
        numerics = Numerics.model_validate({"threads": threads})
        settings = Settings(
            steps=steps[name], seed=0, batch_size=BATCH, lr=3e-3, weight_decay=0.01, numerics=numerics, checkpoint_every_s=1e9
        )
        pipeline = Pipeline(Recipe(), numerics)

        def ours(recorder: DynamicsRecorder | None = None) -> None:
            train_model(copy.deepcopy(fresh), data, settings, pipeline, recorder=recorder)  # noqa: B023

        ways = {
            "ours": ours,
            "bare": lambda: bare(copy.deepcopy(fresh).train(), data, settings.steps),  # noqa: B023
            "recorded": lambda: ours(DynamicsRecorder(ROWS)),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(repeats + 1):
            for way, work in ways.items():
                start = time.perf_counter()
                work()
                if turn:
                    times[way].append(time.perf_counter() - start)
        found = {way: statistics.median(each) for way, each in times.items()}
        print(f"  {name}: {found}", file=sys.stderr, flush=True)
        speed, cost = found["bare"] / found["ours"], found["recorded"] / found["ours"]
        work = f"training, {name}, {settings.steps} steps of {BATCH}"
        rows += [
            Row(work, "bare torch loop, data in memory", ">= 0.95x its speed", f"{found['ours']:.2f} s", f"{found['bare']:.2f} s",
                f"{speed:.2f}x", speed >= 0.95),
            Row(f"{work}, recorded", "the same without the recorder", "<= 1.05x its time", f"{found['recorded']:.2f} s",
                f"{found['ours']:.2f} s", f"{cost:.3f}x", cost <= 1.05, "18 bytes an example"),
        ]  # fmt: skip
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    print(table(measure(parser.parse_args().repeats, {"mlp": 600, "cnn": 100})))


if __name__ == "__main__":
    main()
