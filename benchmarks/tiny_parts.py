"""1,000 tiny shards, beside bare Ray tasks and prefect-ray: `python -m benchmarks.tiny_parts`.

The merge stage runs on warm workers of the real pool, timed from its call to its seal. Its peer's tasks, two at a time in
processes that are warm too, call the stage's own worker, which each process keeps, and publish the same bytes; that is checked.
They find no ranges of the scores (a pass of its own in the stage), add nothing up and seal nothing.
With stub work in place of a stage's, the pool and the seal are measured alone. Start-up is nowhere counted: Ray runs, and the
flow of the task runner has begun.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.contest import Row, Run, run_python, table, watched
from benchmarks.merging import INDEX_KEY, SCORE_KEY, make_store, parts_of
from cluster.record import Part, Unit
from cluster.session import RaySession
from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.merge import MergeInputs, merge_key, merge_stage
from tasks.merge_columns import Ranges, part_ranges, wider
from tasks.merge_worker import MergeWorker, Merging
from tasks.pool import FunctionWorker
from tasks.quarantine import FACT
from tasks.sources.protocol import Shard
from tasks.sources.spec import DataSpec
from tasks.spec import Resources
from tasks.tables import encode_table, part_check

SHARDS, ROWS, REPEATS = 1000, 4, 5
WORKERS = 2
KEY = "0" * 64
STAGE, STAGE_TASKS = "merge stage", "bare Ray tasks, merging"
POOL, POOL_TASKS = "pool, stub work", "bare Ray tasks, stub work"

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


def sealed_parts(session: RaySession, store: str, shards: int) -> float:
    """Return the seconds of all stub parts through the pool, and the seal."""
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


def merge_inputs(store: Store) -> MergeInputs:
    """Return what the stage merges."""
    index, score = Unit(store, "shard", INDEX_KEY).seal(), Unit(store, "score", SCORE_KEY).seal()
    assert index is not None
    data = DataSpec.model_validate({"source": "parquet", "train": "data.parquet"})
    return MergeInputs(data, index, score, resources=Resources(workers=WORKERS))


@lru_cache(maxsize=1)
def kept_worker(root: str) -> MergeWorker:
    """Return this process's merge worker, which is given what the stage finds out first."""
    store = Store(root)
    inputs = merge_inputs(store)
    assert inputs.score is not None
    columns, parts = tuple(inputs.score.meta["columns"]), inputs.score.parts
    ranges: Ranges = {}
    for part in parts:
        ranges = wider(part_ranges(store, columns, part), ranges)
    facts = {name: value for name, value in inputs.score.meta.items() if name != FACT}
    key = merge_key(inputs.source_key(), inputs.index.key)
    return MergeWorker(Merging(inputs, store, key, columns, facts, ranges, sum(part.rows for part in parts)))


def merge_part(root: str, shard: Shard, meeting: str = "") -> Part:
    """Make and publish the merged part of a shard; to warm up, wait then until WORKERS processes have been at the meeting."""
    worker = kept_worker(root)
    part = worker.compute(shard, worker.load(shard)).part
    if meeting:
        (Path(meeting) / str(os.getpid())).touch()
        while len(list(Path(meeting).iterdir())) < WORKERS:
            time.sleep(0.01)
    return part


class Merges:
    """Hold a store and the two ways of merging it; what each run leaves is compared with the others', and removed."""

    def __init__(self, folder: Path, shards: int) -> None:
        self.folder = folder
        self.store = make_store(folder / "merged", shards * ROWS, ROWS)
        self.inputs = merge_inputs(self.store)
        self.shards = Dataset(self.inputs.data, self.inputs.index, self.store).shards()
        self.parts: dict[str, bytes] = {}

    def stage(self, session: RaySession) -> float:
        """Return the seconds of the stage on a warm pool."""
        pool, resources = session.pool(), self.inputs.resources
        warm = partial(FunctionWorker, partial(merge_part, self.store.uri, meeting=self.meeting()))
        for _ in pool.map(warm, self.shards[: 2 * WORKERS], label="warm", resources=resources):
            pass
        self.remove()
        start = time.perf_counter()
        merge_stage(self.inputs, self.store, pool)
        seconds = time.perf_counter() - start
        pool.release()
        self.compare()
        return seconds

    def tasks(self) -> float:
        """Return the seconds of the same parts by plain remote functions."""
        import ray

        task: Any = ray.remote(num_cpus=1)(merge_part)
        meeting = self.meeting()
        ray.get([task.remote(self.store.uri, shard, meeting) for shard in self.shards[: 2 * WORKERS]])
        self.remove()
        start = time.perf_counter()
        ray.get([task.remote(self.store.uri, shard) for shard in self.shards])
        seconds = time.perf_counter() - start
        self.compare()
        return seconds

    def meeting(self) -> str:
        """Return a new empty folder."""
        return tempfile.mkdtemp(dir=self.folder)

    def remove(self) -> None:
        """Remove what is merged: the next run would find it done."""
        shutil.rmtree(parts_of(self.store, "merge").parent)

    def compare(self) -> None:
        """Read the parts and remove them. Raises ValueError unless they are one a shard, and to the byte those of all runs."""
        found = {file.name: file.read_bytes() for file in parts_of(self.store, "merge").iterdir()}
        self.remove()
        if set(found) != {shard.part_name for shard in self.shards}:
            raise ValueError(f"{len(found)} parts were published, not one for each of {len(self.shards)} shards")
        self.parts = self.parts or found
        if found != self.parts:
            raise ValueError("the parts differ in their bytes from those of another run")


def measure(shards: int, repeats: int) -> dict[str, Run]:
    """Return the median seconds of each way, all in turn in one session of WORKERS CPUs, and its peak, Ray's own included."""
    os.environ["PYTHONPATH"] = str(Path.cwd())
    with (
        tempfile.TemporaryDirectory() as folder,
        RaySession("local", (), Path(folder) / "scratch", num_cpus=WORKERS) as session,
    ):
        merges = Merges(Path(folder), shards)
        ways: dict[str, Callable[[int], float]] = {
            STAGE: lambda turn: merges.stage(session),
            STAGE_TASKS: lambda turn: merges.tasks(),
            POOL: lambda turn: sealed_parts(session, f"{folder}/pool-{turn}", shards),
            POOL_TASKS: lambda turn: bare_ray(f"{folder}/tasks-{turn}", shards),
        }
        found: dict[str, list[Run]] = {name: [] for name in ways}
        for turn in range(repeats + 1):
            for name, way in ways.items():
                # A look at all of Ray's processes takes some ms of the two cores.
                with watched(os.getpid(), every=0.25) as peak:
                    seconds = way(turn)
                print(f"  {name}: {seconds:.3f} s, {peak[0]:.0f} MiB", file=sys.stderr, flush=True)
                if turn:
                    found[name].append(Run(seconds, peak[0]))
    return {
        name: Run(statistics.median(run.seconds for run in runs), max(run.peak_mib for run in runs))
        for name, runs in found.items()
    }


def task_runner(shards: int) -> Run:
    """Return the seconds of the same by prefect-ray's task runner, and its peak, with Ray's own and Prefect's server."""
    with tempfile.TemporaryDirectory() as folder:
        run = run_python(RUNNER, shards, folder, environment={"PYTHONPATH": str(Path.cwd())})
    return Run(float(run.said), run.peak_mib)


def rows_of(found: dict[str, Run], runner: Run, shards: int) -> list[Row]:
    """Return the lines of the table."""
    real, its_tasks, stub, stub_tasks = (found[name] for name in (STAGE, STAGE_TASKS, POOL, POOL_TASKS))
    work = f"merge stage, {shards:,} shards of {ROWS} rows"
    pool = f"the pool and the seal, stub work: {shards:,} tiny parts"
    beyond = "same bytes; the stage also finds the ranges of every score part, adds up the totals and seals; memory with Ray's"

    def row(what: str, ours: Run, peer: str, its: Run, bar: float, note: str) -> Row:
        slower, faster = ours.seconds / its.seconds, its.seconds / ours.seconds
        wanted, figure, met = (f">= {bar:g}x faster", f"{faster:.0f}x", faster >= bar) if bar > 2 else (
            f"<= {bar:g}x its time", f"{slower:.2f}x", slower <= bar
        )  # fmt: skip
        said, its_said = (f"{run.seconds:.2f} s, {run.peak_mib:.0f} MiB" for run in (ours, its))
        return Row(what, peer, wanted, said, its_said, figure, met, note)

    return [
        row(work, real, "bare Ray tasks", its_tasks, 1.5, beyond),
        row(pool, stub, "bare Ray tasks", stub_tasks, 1.5, "the seal included"),
        row(pool, stub, "prefect-ray's task runner", runner, 20, "once"),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    arguments = parser.parse_args()
    found = measure(arguments.shards, arguments.repeats)
    runner = task_runner(arguments.shards)
    print(table(rows_of(found, runner, arguments.shards)))
    print(json.dumps({name: run.seconds for name, run in {**found, "prefect-ray": runner}.items()}), file=sys.stderr)


if __name__ == "__main__":
    # By its name, as workers find it: what is kept in a process is no part of a pickled `__main__`.
    import_module("benchmarks.tiny_parts").main()
