"""The score stage beside a bare torch loop, all scores beside one, proxies together beside apart: `python -m benchmarks.scoring`.

Bare loop and stage read the same Parquet files and use the same number of threads. The stage's rate is that between its first
and its last part, start-up reported beside it.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from benchmarks.contest import Row, peaks_of, table
from cluster.record import Seal
from cluster.session import RaySession
from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.models.build import build_model
from tasks.pool import Pool, SerialPool
from tasks.proxy import ProxyInputs, ProxySpec, load_checkpoint, proxy_stage
from tasks.schemas import TRAIN
from tasks.score import ScoreInputs, ScoreSpec, score_stage
from tasks.shard import shard_stage
from tasks.sources.spec import DataSpec
from tasks.spec import Use
from tasks.tables import load_part

SIDE, CLASSES = 16, 10
SHARD_ROWS = 2**15
FINAL = ["el2n", "loss", "entropy", "margin", "least_confidence", "grand_last"]
STAGE, BARE = "stage", "bare"
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


def bare_loop(case: Case, threads: int) -> tuple[float, torch.Tensor]:
    """Return rows a second of a torch loop over the same file, read, scale, forward, el2n, and el2n of its rows."""
    torch.set_num_threads(threads)
    model = build_model(case.proxy.model, (1, SIDE, SIDE), CLASSES, 0)
    model.load_state_dict(load_checkpoint(case.store, case.proxies[0], 1.0)["model"])
    model.eval()
    out = []
    start = time.perf_counter()
    file = pq.ParquetFile(Path(case.data.train))
    for group in range(file.metadata.num_row_groups):
        read = file.read_row_group(group)
        x = read.column("features").combine_chunks().flatten().to_numpy().reshape(-1, 1, SIDE, SIDE)
        y = torch.from_numpy(read.column("label").to_numpy())
        with torch.no_grad():
            for at in range(0, len(x), 256):
                inputs = torch.from_numpy(x[at : at + 256]).float() / 255
                probabilities = functional.softmax(model(inputs), 1)
                hot = functional.one_hot(y[at : at + 256], CLASSES)
                out.append((probabilities - hot).norm(dim=1))
    scores = torch.cat(out)
    return len(scores) / (time.perf_counter() - start), scores


def largest_difference(case: Case, store: Store, seal: Seal, scores: torch.Tensor) -> float:
    """Return how far the stage's el2n is from that of the bare loop, by row of the file. Raises ValueError above 1e-5."""
    dataset = Dataset(case.data, case.index, store)
    index = pa.concat_tables([dataset.index_table(shard) for shard in dataset.shards("train")])
    index = index.filter(pc.equal(index.column("split"), TRAIN)).sort_by("example_id")
    found = pa.concat_tables([load_part(store, part, ["example_id", "el2n"]) for part in seal.parts]).sort_by("example_id")
    if not found.column("example_id").equals(index.column("example_id")):
        raise ValueError("the stage scored other examples than those of the index")
    expected = scores.numpy()[index.column("position").to_numpy()]
    largest = float(np.abs(found.column("el2n").to_numpy() - expected).max())
    if not largest <= 1e-5:
        raise ValueError(f"el2n by the stage is up to {largest} from that of the bare loop")
    return largest


class Timed:
    """Be a pool that notes when results come."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.times: list[tuple[float, int]] = []

    def map(self, make_worker: Any, items: Any, *, label: str, resources: Any, done: int = 0) -> Any:
        """Map as the pool does."""
        for index, result in self.pool.map(make_worker, items, label=label, resources=resources, done=done):
            self.times.append((time.perf_counter(), result.part.rows))
            yield index, result


def against_bare_loop(case: Case, repeats: int) -> Row:
    """Return the line of the score stage under Ray, one worker a core, beside the bare loop with as many threads."""
    cores = os.cpu_count() or 1
    rates, starts, bare = [], [], []
    apart = 0.0
    for turn in range(repeats + 1):
        rate, scores = bare_loop(case, cores)
        bare.append(rate)
        store = case.place(turn)
        with RaySession("local", (), case.folder / f"ray-{turn}") as session:
            pool = Timed(session.pool())
            begin = time.perf_counter()
            seal = case.stage(["el2n"], pool, store, slice(0, 1))
        apart = max(apart, largest_difference(case, store, seal, scores))
        (first, skipped), (last, _) = pool.times[0], pool.times[-1]
        rates.append((sum(rows for _, rows in pool.times) - skipped) / (last - first))
        starts.append(first - begin)
        print(f"  {case.model}: stage {rates[-1]:.0f} rows/s, bare {bare[-1]:.0f}", file=sys.stderr, flush=True)
    rate, its, peak = statistics.median(rates[1:]), statistics.median(bare[1:]), peaks(case, STAGE, BARE)
    return Row(
        f"score stage, {case.model}, {case.rows:.0e} rows", f"bare torch loop, {cores} threads", ">= 0.9x its throughput",
        f"{rate:,.0f} rows/s, {peak[STAGE]}", f"{its:,.0f} rows/s, {peak[BARE]}", f"{rate / its:.2f}x", rate >= 0.9 * its,
        f"first part after {statistics.median(starts[1:]):.1f} s; el2n at most {apart:.0e} apart",
    )


def in_process(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each way, in turn, after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def ways_of(case: Case) -> dict[str, Callable[[], object]]:
    """Return what is compared of one case, by name."""

    def apart() -> None:
        for number in range(len(case.proxies)):
            case.stage(["el2n"], SerialPool(), case.place(0), slice(number, number + 1))

    def under_ray() -> None:
        with RaySession("local", (), case.folder / f"ray-{time.monotonic_ns()}") as session:
            case.stage(["el2n"], session.pool(), case.place(0), slice(0, 1))

    return {
        STAGE: under_ray,
        BARE: lambda: bare_loop(case, os.cpu_count() or 1),
        "all": lambda: case.stage(FINAL, SerialPool(), case.place(0), slice(0, 1)),
        "el2n": lambda: case.stage(["el2n"], SerialPool(), case.place(0), slice(0, 1)),
        "together": lambda: case.stage(["el2n"], SerialPool(), case.place(0)),
        "apart": apart,
    }


def peaks(case: Case, *ways: str) -> dict[str, str]:
    """Return the peak memory of each way, in a process tree of its own, as it stands beside its figure."""
    where = ("--folder", str(case.folder), "--rows", str(case.rows), "--model", case.model)
    found = peaks_of("benchmarks.scoring", ways, *where, "--proxies", str(len(case.proxies)))
    return {way: f"{peak:.0f} MiB" for way, peak in found.items()}


def all_scores(case: Case, repeats: int) -> Row:
    """Return the line of all final-checkpoint scores together beside el2n alone."""
    ways = ways_of(case)
    found = in_process({"all": ways["all"], "el2n": ways["el2n"]}, repeats)
    ratio, peak = found["all"] / found["el2n"], peaks(case, *found)
    said = {way: f"{found[way]:.2f} s, {peak[way]}" for way in found}
    work = f"all {len(FINAL)} final-checkpoint scores, {case.model}"
    return Row(work, "el2n alone", "<= 1.05x", said["all"], said["el2n"], f"{ratio:.3f}x", ratio <= 1.05)


def several_proxies(case: Case, repeats: int) -> Row:
    """Return the line of all proxies in one stage beside a stage for each."""
    ways = ways_of(case)
    found = in_process({"together": ways["together"], "apart": ways["apart"]}, repeats)
    ratio, peak = found["together"] / found["apart"], peaks(case, *found)
    said = {way: f"{found[way]:.2f} s, {peak[way]}" for way in found}
    count = len(case.proxies)
    peer, note = f"{count} separate passes", "read and decoded once"
    return Row(f"{count} proxies, {case.model}", peer, "< 1x", said["together"], said["apart"], f"{ratio:.2f}x", ratio < 1, note)


def stacked(case: Case, repeats: int) -> Row:
    """Return the line of the forward passes of all proxies as one stack (torch.func) beside one after the other."""
    models = []
    for seal in case.proxies:
        model = build_model(case.proxy.model, (1, SIDE, SIDE), CLASSES, 0).eval()
        model.load_state_dict(load_checkpoint(case.store, seal, 1.0)["model"])
        models.append(model)
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    empty = copy.deepcopy(models[0]).to("meta")
    x = pass_inputs()
    one = vmap(lambda weights, held: functional_call(empty, (weights, held), (x,)))
    return beside_each("as one stack", case.model, models, lambda: one(parameters, buffers), x, repeats)


def multiplied_together(repeats: int) -> Row:
    """Return the line of five MLPs of 32 hidden units as one batched product a layer beside one after the other.

    On one thread, as a worker has: on two, threads wait for each other at every product.
    """
    use = Use(use="mlp", args={"hidden": [32]})
    models = [build_model(use, (1, SIDE, SIDE), CLASSES, seed).eval() for seed in range(5)]
    held = stack_module_state(models)[0]  # type: ignore[arg-type]
    # Views, as nn.Linear has them: contiguous copies give other bits.
    w1, w2 = (held[f"{layer}.weight"].detach().mT for layer in ("body.0", "head"))
    b1, b2 = (held[f"{layer}.bias"].detach().unsqueeze(1) for layer in ("body.0", "head"))
    x = pass_inputs()

    def together() -> torch.Tensor:
        rows = x.flatten(1).expand(len(models), -1, -1)
        return torch.baddbmm(b2, torch.baddbmm(b1, rows, w1).relu_(), w2)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return beside_each("by torch.baddbmm", "mlp of 32 hidden units, one thread", models, together, x, repeats)
    finally:
        torch.set_num_threads(threads)


def pass_inputs() -> torch.Tensor:
    """Return the rows of one pass."""
    return torch.rand(256, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def beside_each(
    how: str, name: str, models: Sequence[torch.nn.Module], together: Callable[[], torch.Tensor], x: torch.Tensor, repeats: int
) -> Row:
    """Return the line of the models' passes over x together beside one after the other."""
    ways = {"together": together, "apart": lambda: torch.stack([model(x) for model in models])}
    with torch.no_grad():
        some, others = ways["together"](), ways["apart"]()
        same = torch.equal(some, others)
        if not torch.allclose(some, others, atol=1e-4):
            raise ValueError(f"the logits of {name} {how} are not those of each model alone")
        found = in_process({name: lambda way=way: [way() for _ in range(20)] for name, way in ways.items()}, repeats)
    ratio, count = found["together"] / found["apart"], len(models)
    return Row(
        f"{count} proxies {how}, {name}, passes of 256 rows", f"{count} forward passes", "-",
        f"{found['together'] * 50:.2f} ms", f"{found['apart'] * 50:.2f} ms", f"{ratio:.2f}x", None,
        f"{'equal' if same else 'other'} bits; not used by the stage",
    )


def measure(rows: int, repeats: int, models: Sequence[str] = tuple(MODELS)) -> list[Row]:
    """Return the lines of the table."""
    out = []
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            out.append(against_bare_loop(Case(Path(folder), rows, model, 1), repeats))
        small = Path(folder) / "small"
        for model in models:
            torch.set_num_threads(os.cpu_count() or 1)
            case = Case(small, max(rows // 20, SHARD_ROWS), model, 5)
            out += [all_scores(case, repeats), several_proxies(case, repeats), stacked(case, repeats)]
            if model == "mlp":
                out.append(multiplied_together(repeats))
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", choices=tuple(MODELS), action="append", help="one of them alone; all by default")
    parser.add_argument("--way", help="do one way once, on a case that is in --folder, and print nothing")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--proxies", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.way:
        torch.set_num_threads(os.cpu_count() or 1)
        ways_of(Case(arguments.folder, arguments.rows, arguments.model[0], arguments.proxies))[arguments.way]()
        return
    print(table(measure(arguments.rows, arguments.repeats, arguments.model or tuple(MODELS))))


if __name__ == "__main__":
    main()
