"""How each stage grows with rows, shards, proxies, classes and nodes: `python -m benchmarks.scale [--part NAME] [--fits]`.

Every measurement is a line of JSON in --out, and what has its line there is not measured again: a stopped benchmark goes on.
Lines of another commit or machine are refused, as figures of two are no fit; `benchmarks/scale.jsonl` holds docs/scale.md's.
Stages are run one after the other by the serial pool on one thread, and their cost is CPU seconds: seconds of the clock also
tell what else the machine does. docs/scale.md says what follows for 1e10 examples.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.contest import commit, machine
from benchmarks.scale_calls import Counted, counted_requests, s3_server

STAGES = ("shard", "proxy", "score", "merge", "select", "subset", "train")
GROUP_ROWS, WRITE_VALUES = 256, 2**24
LONG_SECONDS = 20.0
OUT = Path("build/scale.jsonl")


@dataclass(frozen=True)
class Point:
    """Name one size of a run: its train rows, shards, proxies, classes and float32 features, and where its data and store are."""

    rows: int = 100_000
    shards: int = 10
    proxies: int = 1
    classes: int = 10
    features: int = 8
    store: str = "files"


BASE = Point()
SWEEPS: dict[str, list[Point]] = {
    "rows": [replace(BASE, rows=rows) for rows in (10**4, 3 * 10**4, 10**5, 3 * 10**5, 10**6, 3 * 10**6, 10**7)],
    "shards": [replace(BASE, rows=40_000, shards=shards) for shards in (1, 3, 10, 30, 100, 300, 1000)],
    "proxies": [replace(BASE, proxies=proxies) for proxies in (1, 2, 4, 8, 16)],
    "classes": [replace(BASE, classes=classes) for classes in (2, 10, 30, 100, 300, 1000)],
    "features": [replace(BASE, rows=50_000, features=features) for features in (8, 24, 80, 240, 768)],
    "s3": [replace(BASE, rows=100 * shards, shards=shards, store="s3") for shards in (5, 10, 20)],
    # Shards of 61 and 184 MB: whether a large one is read in more requests.
    "s3_wide": [replace(BASE, rows=2 * rows, shards=2, features=768, store="s3") for rows in (20_000, 60_000)],
}


def make_data(folder: Path, point: Point) -> None:
    """Write train.parquet, in row groups of a shard but not below GROUP_ROWS, and test.parquet."""
    generator = np.random.default_rng(0)
    group = max(point.rows // point.shards, GROUP_ROWS)
    for name, rows in (("train", point.rows), ("test", 10 * point.classes)):
        kind = pa.list_(pa.float32(), point.features)
        schema = pa.schema({"features": kind, "label": pa.int64()})
        with pq.ParquetWriter(folder / f"{name}.parquet", schema) as writer:
            step = group * max(1, WRITE_VALUES // point.features // group)
            for start in range(0, rows, step):
                labels = np.arange(start, min(start + step, rows), dtype=np.int64) % point.classes
                x = generator.normal(size=(len(labels), point.features)).astype(np.float32)
                x[:, 0] += labels / point.classes
                table = pa.table([pa.FixedSizeListArray.from_arrays(x.ravel(), type=kind), labels], schema=schema)
                writer.write_table(table, row_group_size=group)


def reset_peak() -> None:
    """Have the kernel forget the process's peak of memory, so that what `peak_mib` says next is of what comes."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Return the most memory that was resident since the last `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _config(folder: str, point: Point) -> dict[str, Any]:
    model = {"use": "mlp", "args": {"hidden": [8]}}
    data = {"source": "parquet", "train": f"{folder}/train.parquet", "test": f"{folder}/test.parquet",
            "shard_rows": point.rows // point.shards}  # fmt: skip
    return {
        "name": "scale", "data": data, "proxy": {"model": model, "seeds": point.proxies, "steps": 20},
        "score": {"scores": ["el2n"]}, "select": {"keep": 0.1, "arms": [{"score": "el2n", "alpha": 0.5}]},
        "train": {"model": model, "steps": 20, "replicates": 1, "full": False},
    }  # fmt: skip


def run_stages(folder: str, point: Point, uri: str) -> dict[str, Any]:
    """Return, by stage, the CPU seconds, the seconds, the process's peak MiB, and what it asked of its store (of S3)."""
    from cluster.storage import Store
    from flows.config import parse_config
    from flows.pipeline import distinct, merge_inputs, proxy_inputs, score_inputs, select_inputs, train_inputs
    from flows.plan import make_plan
    from flows.runs import subset_units
    from tasks.merge import merge_stage
    from tasks.pool import SerialPool
    from tasks.proxy import proxy_stage
    from tasks.score import score_stage
    from tasks.selecting import selection_stage
    from tasks.shard import shard_stage
    from tasks.subset import SubsetInputs, subset_stage
    from tasks.train import train_stage

    run = parse_config(_config(folder, point))
    plan, pool, store, count = make_plan(run), SerialPool(), Store(uri), Counter[str]()
    if point.store == "files":
        store.objects = Counted(store.objects, count)
    out: dict[str, Any] = {}

    @contextlib.contextmanager
    def clock(stage: str) -> Iterator[None]:
        count.clear()
        reset_peak()
        start, cpu = time.perf_counter(), time.process_time()
        yield
        out[stage] = {
            "cpu": time.process_time() - cpu, "seconds": time.perf_counter() - start, "peak_mib": peak_mib(), **count
        }  # fmt: skip

    with counted_requests(count) if point.store == "s3" else contextlib.nullcontext():
        with clock("shard"):
            index = shard_stage(run.data, store, pool)
        with clock("proxy"):
            proxies = proxy_stage(run.proxy, proxy_inputs(plan, index), store, pool)
        with clock("score"):
            scores = score_stage(run.score, score_inputs(plan, index, proxies), store, pool)
        with clock("merge"):
            table = merge_stage(merge_inputs(plan, index, scores), store, pool)
        # One arm; random, which is always there, asks the same of the index.
        one = replace(plan, selections={place: unit for place, unit in plan.selections.items() if unit[1].spec.score})
        one = replace(one, trainings=tuple(item for item in plan.trainings if item.selection in distinct(one)))
        with clock("select"):
            chosen = distinct(one)
            seals = selection_stage(list(chosen.items()), select_inputs(one, index, table, proxies), store, pool)
        with clock("subset"):
            selections = dict(zip(chosen, seals))
            cut = subset_stage(subset_units(one, selections), SubsetInputs(run.data, index), store, pool)
        with clock("train"):
            train_stage(run.train, train_inputs(one, index, selections, dict(zip(chosen, cut))), store, pool)
    out["seals"] = {seal.stage: [len(seal.parts), len(seal.to_bytes())] for seal in (index, scores, table, *seals, *cut)}
    return out


def measure_stages(point: Point) -> dict[str, Any]:
    """Return `run_stages` on data and a store made for it."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["SECATEUR_CACHE"] = str(folder / "cache")
        data = folder / "data"
        data.mkdir()
        make_data(data, point)
        if point.store == "files":
            return run_stages(str(data), point, str(folder / "store"))
        uri = stack.enter_context(s3_server())
        there = f"{uri.rpartition('/')[0]}/data"
        upload(data, there)
        return run_stages(there, point, uri)


def upload(folder: Path, uri: str) -> None:
    """Put the files of a folder below a URI in S3."""
    from cluster.storage import filesystem

    for path in folder.iterdir():
        fs, name = filesystem(f"{uri}/{path.name}")
        with path.open("rb") as source, fs.open(name, "wb") as target:
            shutil.copyfileobj(source, target, 2**24)


@functools.cache
def warm_up() -> None:
    """Run all stages once: what a process imports and sets up is no stage's cost."""
    pa.set_cpu_count(1)
    measure_stages(Point(rows=2000, shards=2))


def known_lines(out: Path, part: str | None = None) -> list[dict[str, Any]]:
    """Return what is measured already, of one part or of all."""
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    return [line for line in lines if part is None or line["part"] == part]


def note(out: Path, part: str, place: dict[str, Any], repeat: int, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the line of a measurement, measuring it and adding the line where there is none.

    Raises ValueError where the file has lines of another commit or machine.
    """
    of = {"commit": commit(), "machine": machine()}
    for line in known_lines(out):
        if {name: line[name] for name in of} != of:
            raise ValueError(f"{out} has figures of {line['commit']} on {line['machine']}, and this is {of}: give another --out")
        if (line["part"], line["place"], line["repeat"]) == (part, place, repeat):
            return line
    found = {"part": part, "place": place, "repeat": repeat, **of, "found": measure()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        file.write(json.dumps(found) + "\n")
    print(f"{part} {place} {repeat}: {json.dumps(found['found'])[:150]}", file=sys.stderr, flush=True)
    return found


def sweep(out: Path, part: str, repeats: int) -> None:
    """Measure every point of a sweep, one that takes long only once."""

    def measure(point: Point) -> dict[str, Any]:
        warm_up()
        return measure_stages(point)

    for point in SWEEPS[part]:
        for repeat in range(1 if part.startswith("s3") else repeats):
            line = note(out, part, asdict(point), repeat, partial(measure, point))
            if sum(line["found"][stage]["cpu"] for stage in STAGES) > LONG_SECONDS:
                break


def main() -> None:
    """Measure the parts asked for, or print the tables of what is measured."""
    from benchmarks import scale_run, scale_tables

    parts: dict[str, Callable[[Path, int], None]] = {
        name: lambda out, repeats, name=name: sweep(out, name, repeats) for name in SWEEPS
    } | scale_run.PARTS
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=list(parts), action="append", help="measure this part alone; all by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--fits", action="store_true", help="measure nothing, print the tables")
    arguments = parser.parse_args()
    for name in () if arguments.fits else arguments.part or list(parts):
        parts[name](arguments.out, arguments.repeats)
    print(scale_tables.tables(known_lines(arguments.out)))


if __name__ == "__main__":
    main()
