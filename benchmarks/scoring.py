"""The score stage beside a bare torch loop, all scores beside one, proxies together beside apart: `python -m benchmarks.scoring`.

Bare loops and stage read the same Parquet files and use the same number of threads: the loop in one process of as many, and in
as many processes of one each, which serves small models better. The stage's rate is that between its first and its last part,
start-up reported beside it; the loops' begins once models are loaded.
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
import torch
from torch.func import functional_call, stack_module_state, vmap

from benchmarks.contest import Row, peaks_of, table
from benchmarks.scoring_case import CLASSES, MODELS, SHARD_ROWS, SIDE, Case, bare_loop, bare_loops, loaded
from cluster.record import Seal
from cluster.session import RaySession
from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.models.build import build_model
from tasks.pool import Pool, SerialPool
from tasks.schemas import TRAIN
from tasks.spec import Use
from tasks.tables import load_part

FINAL = ["el2n", "loss", "entropy", "margin", "least_confidence", "grand_last"]
STAGE, BARE, BARES = "stage", "bare", "bares"
Scored = tuple[Store, Seal]


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


def against_bare_loops(case: Case, repeats: int) -> list[Row]:
    """Return the lines of the score stage under Ray, one worker a core, beside bare loops with as many threads."""
    cores = os.cpu_count() or 1
    rates, starts = [], []
    bare: dict[str, list[float]] = {BARE: [], BARES: []}
    apart = 0.0
    for turn in range(repeats + 1):
        rate, scores = bare_loop(case, cores)
        other, again = bare_loops(case, cores)
        if not torch.allclose(scores, again, atol=1e-5):
            raise ValueError("the bare loops have other scores in one process than in several")
        bare[BARE].append(rate)
        bare[BARES].append(other)
        store = case.place(turn)
        with RaySession("local", (), case.folder / f"ray-{turn}") as session:
            pool = Timed(session.pool())
            begin = time.perf_counter()
            seal = case.stage(["el2n"], pool, store, slice(0, 1))
        apart = max(apart, largest_difference(case, store, seal, scores))
        (first, skipped), (last, _) = pool.times[0], pool.times[-1]
        rates.append((sum(rows for _, rows in pool.times) - skipped) / (last - first))
        starts.append(first - begin)
        print(f"  {case.model}: stage {rates[-1]:.0f} rows/s, bare {rate:.0f} and {other:.0f}", file=sys.stderr, flush=True)
    rate, peak = statistics.median(rates[1:]), peaks(case, STAGE, BARE, BARES)
    note = f"first part after {statistics.median(starts[1:]):.1f} s; el2n at most {apart:.0e} apart"
    rows = []
    for way, what in ((BARE, f"bare torch loop, {cores} threads"), (BARES, f"the same, {cores} processes of one thread")):
        its = statistics.median(bare[way][1:])
        rows.append(
            Row(
                f"score stage, {case.model}, {case.rows:.0e} rows", what, ">= 0.9x its throughput",
                f"{rate:,.0f} rows/s, {peak[STAGE]}", f"{its:,.0f} rows/s, {peak[way]}", f"{rate / its:.2f}x", rate >= 0.9 * its,
                note,
            )
        )  # fmt: skip
    return rows


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


def ways_of(case: Case) -> dict[str, Callable[[], Any]]:
    """Return what is compared of one case, by name."""

    def scored(scores: list[str], which: slice) -> Scored:
        store = case.place(0)
        return store, case.stage(scores, SerialPool(), store, which)

    def apart() -> list[Scored]:
        return [scored(["el2n"], slice(number, number + 1)) for number in range(len(case.proxies))]

    def under_ray() -> None:
        with RaySession("local", (), case.folder / f"ray-{time.monotonic_ns()}") as session:
            case.stage(["el2n"], session.pool(), case.place(0), slice(0, 1))

    return {
        STAGE: under_ray,
        BARE: lambda: bare_loop(case, os.cpu_count() or 1),
        BARES: lambda: bare_loops(case, os.cpu_count() or 1),
        "all": lambda: scored(FINAL, slice(0, 1)),
        "without the last layer": lambda: scored(FINAL[:-1], slice(0, 1)),
        "el2n": lambda: scored(["el2n"], slice(0, 1)),
        "together": lambda: scored(["el2n"], slice(None)),
        "apart": apart,
    }


def peaks(case: Case, *ways: str) -> dict[str, str]:
    """Return the peak memory of each way, in a process tree of its own, as it stands beside its figure."""
    where = ("--folder", str(case.folder), "--rows", str(case.rows), "--model", case.model)
    found = peaks_of("benchmarks.scoring", ways, *where, "--proxies", str(len(case.proxies)))
    return {way: f"{peak:.0f} MiB" for way, peak in found.items()}


def check_equal(one: Scored, column: str, other: Scored) -> None:
    """Raise ValueError where a column of one score stage is not the el2n of another, bit for bit, part by part."""
    sides = ((*one, column), (*other, "el2n"))
    parts = [[load_part(store, part, ["example_id", name]) for part in seal.parts] for store, seal, name in sides]
    if any(not a.column(0).equals(b.column(0)) or not a.column(1).equals(b.column(1)) for a, b in zip(*parts, strict=True)):
        raise ValueError(f"{column} of a stage that does more is not el2n of one that does less")


def all_scores(case: Case, repeats: int) -> Row:
    """Return the line of all final-checkpoint scores together beside el2n alone."""
    ways = ways_of(case)
    check_equal(ways["all"](), "el2n", ways["el2n"]())
    names = ("all", "without the last layer", "el2n")
    found = in_process({name: ways[name] for name in names}, repeats)
    ratio, peak = found["all"] / found["el2n"], peaks(case, "all", "el2n")
    said = {way: f"{found[way]:.2f} s, {peak[way]}" for way in peak}
    note = f"without {FINAL[-1]} {found[names[1]] / found['el2n']:.3f}x"
    work = f"all {len(FINAL)} final-checkpoint scores, {case.model}, one thread"
    return Row(work, "el2n alone", "<= 1.05x", said["all"], said["el2n"], f"{ratio:.3f}x", ratio <= 1.05, note)


def several_proxies(case: Case, repeats: int) -> Row:
    """Return the line of all proxies in one stage beside a stage for each."""
    ways = ways_of(case)
    for number, alone in enumerate(ways["apart"]()):
        check_equal(ways["together"](), f"el2n_s{number}", alone)
    found = in_process({"together": ways["together"], "apart": ways["apart"]}, repeats)
    ratio, peak = found["together"] / found["apart"], peaks(case, *found)
    said = {way: f"{found[way]:.2f} s, {peak[way]}" for way in found}
    count = len(case.proxies)
    peer, note = f"{count} separate passes", "read and decoded once"
    work = f"{count} proxies, {case.model}, one thread"
    return Row(work, peer, "< 1x", said["together"], said["apart"], f"{ratio:.2f}x", ratio < 1, note)


def stacked(case: Case, repeats: int) -> Row:
    """Return the line of the forward passes of all proxies as one stack (torch.func) beside one after the other."""
    models = [loaded(case, number) for number in range(len(case.proxies))]
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
            out += against_bare_loops(Case(Path(folder), rows, model, 1), repeats)
        small = Path(folder) / "small"
        for model in models:
            # As a worker has: on two, threads wait for each other at every small product.
            torch.set_num_threads(1)
            case = Case(small, max(rows // 20, SHARD_ROWS), model, 5)
            out += [all_scores(case, repeats), several_proxies(case, repeats)]
            torch.set_num_threads(os.cpu_count() or 1)
            out.append(stacked(case, repeats))
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
        torch.set_num_threads((os.cpu_count() or 1) if arguments.way in (STAGE, BARE, BARES) else 1)
        ways_of(Case(arguments.folder, arguments.rows, arguments.model[0], arguments.proxies))[arguments.way]()
        return
    print(table(measure(arguments.rows, arguments.repeats, arguments.model or tuple(MODELS))))


if __name__ == "__main__":
    main()
