"""A whole run on many tiny shards: the driver's memory and Prefect's calls a shard, by `python -m benchmarks.tiny_shards`.

The same run on two numbers of shards; what grows between them is what a shard costs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 4
"""Rows of a shard."""

CONFIG = """
name: tiny
data: {{source: parquet, train: {data}/train.parquet, test: {data}/test.parquet, validation: 0.1, shard_rows: {rows}}}
proxy: {{model: {{use: mlp, args: {{hidden: [8]}}}}, seeds: 1, steps: 20, batch_size: 64}}
score: {{scores: [el2n]}}
select: {{keep: 0.1, arms: [{{protocol: exact, score: el2n, alpha: 0.5}}]}}
train: {{model: {{use: mlp, args: {{hidden: [8]}}}}, steps: 20, replicates: 1, full: false}}
"""

CHILD = """
import json, resource, sys, time
import httpx

calls = []
for client in (httpx.AsyncClient, httpx.Client):
    def counted(send=client.send):
        def wrapped(self, request, *args, **kwargs):
            calls.append(f"{request.method} {request.url.path}")
            return send(self, request, *args, **kwargs)
        return wrapped
    client.send = counted()

import flows.pipeline
from flows.config import load_config
from flows.execute import execute

peaks = {}
def noted(self, name, *timing, record=flows.pipeline.Clock.record):
    peaks[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record(self, name, *timing)
flows.pipeline.Clock.record = noted

start = time.monotonic()
sys.stdout = sys.stderr
execute(load_config(sys.argv[1], ()), sys.argv[2], "local", False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = {"peak_kib": peak, "peaks_kib": peaks, "calls": len(calls), "seconds": time.monotonic() - start}
print(json.dumps(found), file=sys.__stdout__)
"""


def make_data(folder: Path, shards: int) -> None:
    """Write a Parquet file of `shards` tiny row groups, and a test file."""
    generator = np.random.default_rng(0)
    for name, rows in (("train", shards * ROWS), ("test", 256)):
        y = generator.integers(0, 4, rows)
        x = (generator.normal(size=(rows, 8)) + y[:, None]).astype(np.float32)
        columns = {"features": pa.FixedSizeListArray.from_arrays(x.ravel(), 8), "label": y}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=ROWS * 64)


def measure(shards: int) -> dict[str, Any]:
    """Return peak_kib of the driver, its peaks_kib up to the end of each stage, HTTP calls to Prefect, seconds, and the
    stages' times of a fresh run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, shards)
        (folder / "tiny.yaml").write_text(CONFIG.format(data=folder, rows=ROWS))
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "SECATEUR_"))}
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(folder / "tiny.yaml"), str(folder / "store")],
            env=environment, check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        stages = next(folder.glob("store/runs/*/attempts/*.stages.json"))
        found["stages"] = {stage["name"]: stage["seconds"] for stage in json.loads(stages.read_bytes())}
        return found


def main() -> None:
    """Print what each number of shards took, and what a shard adds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", type=int, default=1000)
    parser.add_argument("--many", type=int, default=10_000)
    arguments = parser.parse_args()
    found = {shards: measure(shards) for shards in (arguments.few, arguments.many)}
    for shards, each in found.items():
        stages = ", ".join(f"{name} {seconds:.0f}" for name, seconds in each["stages"].items())
        print(f"{shards} shards: driver's peak {each['peak_kib'] / 1024:.1f} MiB, {each['calls']} calls to Prefect, "
              f"{each['seconds']:.0f} s ({stages})")
    few, many = found[arguments.few], found[arguments.many]
    more = arguments.many - arguments.few
    print(f"a shard adds {(many['peak_kib'] - few['peak_kib']) * 1024 / more:.0f} bytes to the driver's peak and "
          f"{(many['calls'] - few['calls']) / more:.4f} calls")
    # The report reads in libraries of 50 MiB, which take what memory the stages before it left free.
    grown = {name: (peak - few["peaks_kib"][name]) * 1024 / more for name, peak in many["peaks_kib"].items()}
    print("by the end of each stage: " + ", ".join(f"{name} {bytes_:.0f}" for name, bytes_ in grown.items()))


if __name__ == "__main__":
    main()
