"""1,000 tiny shards through a stage, beside bare Ray tasks and prefect-ray: `python -m benchmarks.tiny_parts`.

Each way makes the same part of a shard and publishes it create-only in a store. Start-up is not counted: Ray runs, its workers
are warm, and the flow of the task runner has begun.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.contest import Row, Run, run_python, table
from cluster.record import Part, Unit
from cluster.session import RaySession
from cluster.storage import Store
from tasks.pool import FunctionWorker
from tasks.spec import Resources
from tasks.tables import encode_table, part_check

SHARDS, ROWS, REPEATS = 1000, 4, 5
KEY = "0" * 64

RUNNER = """
import json, os, sys, tempfile, time
from pathlib import Path
from flows.server import OwnServer
from cluster.session import prepare_local
shards, store = int(sys.argv[1]), sys.argv[2]
server = OwnServer(Path(tempfile.mkdtemp()))
server.start(); server.wait()
os.environ.update(PREFECT_API_URL=server.url, PREFECT_API_AUTH_STRING=server.auth, PREFECT_LOGGING_LEVEL="ERROR")
prepare_local()
import ray
ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False,
         runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}})
from prefect import flow, task
from prefect_ray.task_runners import RayTaskRunner
from benchmarks.tiny_parts import publish

@task(retries=0, persist_result=False)
def one(number):
    publish(store, number)
    return number

@flow(task_runner=RayTaskRunner())
def many():
    [future.result() for future in one.map(range(-8, 0))]
    start = time.perf_counter()
    [future.result() for future in one.map(range(shards))]
    return time.perf_counter() - start

try:
    seconds = many()
finally:
    server.stop()
print(json.dumps(seconds))
"""


def publish(store: str, number: int) -> Part:
    """Make the part of a tiny shard and publish it."""
    unit = Unit(Store(store), "tiny", KEY)
    ids = np.arange(number * ROWS, (number + 1) * ROWS, dtype=np.int64)
    data = encode_table(pa.table({"example_id": ids, "score": ids.astype(np.float32)}), KEY)
    name = f"{number + 8:06d}.parquet"
    return unit.publish_part(name, data, part_check(KEY, unit.store.url(unit.part_name(name)), ids))


class Publisher:
    """Be a stage's worker."""

    def __init__(self, store: str) -> None:
        self.store = store

    def __call__(self, number: int) -> Part:
        """Publish the part of one shard."""
        return publish(self.store, number)


class MakePublisher:
    """Make workers that publish to a store; picklable."""

    def __init__(self, store: str) -> None:
        self.store = store

    def __call__(self) -> FunctionWorker:
        """Return a worker."""
        return FunctionWorker(Publisher(self.store))


def sealed_stage(session: RaySession, store: str, shards: int) -> float:
    """Return the seconds of all parts through the pool, and the seal."""
    pool = session.pool()
    resources = Resources()
    for _ in pool.map(MakePublisher(store), range(-8, 0), label="warm", resources=resources):
        pass
    start = time.perf_counter()
    parts = [part for _, part in pool.map(MakePublisher(store), range(shards), label="tiny", resources=resources)]
    Unit(Store(store), "tiny", KEY).publish_seal(parts)
    seconds = time.perf_counter() - start
    pool.release()
    return seconds


def bare_ray(store: str, shards: int) -> float:
    """Return the seconds of the same by plain remote functions, without a seal."""
    import ray

    task = ray.remote(publish)
    ray.get([task.remote(store, number) for number in range(-8, 0)])
    start = time.perf_counter()
    ray.get([task.remote(store, number) for number in range(shards)])
    return time.perf_counter() - start


def measure(shards: int, repeats: int) -> dict[str, float]:
    """Return the median seconds of each way, the two of Ray in turn in one session."""
    found: dict[str, list[float]] = {"secateur": [], "bare Ray tasks": []}
    os.environ["PYTHONPATH"] = str(Path.cwd())
    with tempfile.TemporaryDirectory() as folder, RaySession("local", (), Path(folder) / "scratch") as session:
        ways: dict[str, Callable[[str], float]] = {
            "secateur": lambda store: sealed_stage(session, store, shards),
            "bare Ray tasks": lambda store: bare_ray(store, shards),
        }
        for turn in range(repeats + 1):
            for name, way in ways.items():
                seconds = way(str(Path(folder) / f"{name[:4]}-{turn}"))
                print(f"  {name}: {seconds:.3f} s", file=sys.stderr, flush=True)
                if turn:
                    found[name].append(seconds)
    return {name: statistics.median(times) for name, times in found.items()}


def task_runner(shards: int) -> float:
    """Return the seconds of the same by prefect-ray's task runner."""
    with tempfile.TemporaryDirectory() as folder:
        run: Run = run_python(RUNNER, shards, folder, environment={"PYTHONPATH": str(Path.cwd())})
    return float(run.said)


def rows_of(found: dict[str, float], runner: float, shards: int) -> list[Row]:
    """Return the lines of the table."""
    mine = found["secateur"]
    work, said = f"{shards:,} tiny shards through a stage", f"{mine:.2f} s"
    bare = mine / found["bare Ray tasks"]
    return [
        Row(work, "bare Ray tasks", "<= 1.5x its time", said, f"{found['bare Ray tasks']:.2f} s", f"{bare:.2f}x", bare <= 1.5,
            "the seal included"),
        Row(work, "prefect-ray's task runner", ">= 20x faster", said, f"{runner:.1f} s", f"{runner / mine:.0f}x",
            runner / mine >= 20, "once"),
    ]  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    arguments = parser.parse_args()
    found = measure(arguments.shards, arguments.repeats)
    runner = task_runner(arguments.shards)
    print(table(rows_of(found, runner, arguments.shards)))
    print(json.dumps({**found, "prefect-ray": runner}), file=sys.stderr)


if __name__ == "__main__":
    main()
