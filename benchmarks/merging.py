"""Merge the scores of four proxies with the index, beside joins on id: `python -m benchmarks.merging`.

What is merged is what a store holds: an index (id, position, split, label) and a score stage's parts (id, then mean, standard
deviation and the four proxies' scores), SHARD_ROWS rows a file, ids ascending and disjoint. Peers of two tables read the same
files, join them on id and write the same columns of the same rows. Peers of five tables have the four proxies' scores apart, a
table of one score each, as who scores without the stage has them, and write what the stage does less mean and deviation. Peers
check no digest, count no column and compare no seeds, as the stage does. Every way ends with its rows synced to the disk; before
each run the inputs are read, so that all find them in memory. Every way's rows are compared with every
other's. Ours is timed from the stage's call to its seal, on workers that are up, as those of the score stage are in a run; the
start-up of Ray and of these is reported beside.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.contest import REPEATS, Row, Run, in_turn, run_python, table
from cluster.fingerprint import sha256
from cluster.record import Part, Unit
from cluster.storage import Store
from tasks.hashing import hash64
from tasks.pool import FunctionWorker
from tasks.schemas import INDEX, TRAIN, VALIDATION, scores_schema
from tasks.shard_records import pack_shards
from tasks.sources.protocol import Shard
from tasks.tables import encode_table

SHARD_ROWS, PROXIES, THREADS = 2**18, 4, 2
SEEDS = [f"el2n_s{number}" for number in range(PROXIES)]
COLUMNS = ["el2n", "el2n_std", *SEEDS]
INDEX_KEY, SCORE_KEY = sha256(b"index"), sha256(b"score")

PEERS = ("DuckDB", "Polars", "Polars, told that ids ascend")
APART = tuple(f"{name}, five tables" for name in PEERS)

OURS = "import sys; from benchmarks.merging import merge; merge(sys.argv[1], sys.argv[2])"

# As the stage's parts are.
SYNC = """
import os
file = os.open(out, os.O_RDONLY)
os.fsync(file)
"""

DUCKDB = """
import sys, duckdb
index, *scores, out, spill = sys.argv[1:]
c = duckdb.connect(); c.execute("SET threads=2"); c.execute(f"SET temp_directory='{spill}'"); c.execute("SET memory_limit='12GB'")
c.execute("SET preserve_insertion_order=false"); c.execute("SET enable_progress_bar=false")
joins = " ".join(f"JOIN read_parquet('{folder}/*.parquet') s{at} USING (example_id)" for at, folder in enumerate(scores))
columns = ", ".join(f"s{at}.* EXCLUDE (example_id)" for at in range(len(scores)))
c.execute(f"COPY (SELECT i.example_id, i.label, {columns} FROM read_parquet('{index}/*.parquet') i {joins} WHERE i.split = 0) "
          f"TO '{out}' (FORMAT parquet, COMPRESSION lz4_raw)")
""" + SYNC

POLARS = """
import os, sys
os.environ["POLARS_MAX_THREADS"] = "2"
import polars as pl
index, *scores = (pl.scan_parquet(folder + "/*.parquet") for folder in sys.argv[1:-2])
joined = index.filter(pl.col("split") == 0).select("example_id", "label")
for score in scores:
    joined = joined.join(score, on="example_id")
joined.sink_parquet(sys.argv[-2], compression="lz4")
out = sys.argv[-2]
""" + SYNC

# Said again after each step, which forgets it: five tables then take a quarter of the time.
POLARS_SORTED = re.sub(
    r'(/\*\.parquet"\)|"label"\)|on="example_id"\))', r'\1.set_sorted("example_id")', POLARS
)


def make_store(root: Path, rows: int, shard_rows: int = SHARD_ROWS) -> Store:
    """Return a store with the index and the sealed score stage of `rows` examples, 0.1 % of them validation."""
    store = Store(str(root))
    index, score = Unit(store, "shard", INDEX_KEY), Unit(store, "score", SCORE_KEY)
    shards, indexed, scored = [], [], []
    for number, start in enumerate(range(0, rows, shard_rows)):
        generator = np.random.default_rng(number)
        size = min(shard_rows, rows - start)
        shard = Shard("train", "data.parquet", "", start, size, start, f"{number:012x}".ljust(64, "0"))
        ids = np.arange(start, start + size)
        split = np.where(generator.random(size) < 0.001, VALIDATION, TRAIN).astype(np.int8)
        arrays = [ids, ids, split, generator.integers(0, 1000, size)]
        whole = pa.table([pa.array(array) for array in arrays], schema=INDEX)
        ids = ids[split == TRAIN]
        level = generator.gamma(2.0, 0.2, len(ids)).astype(np.float32)
        each = np.stack([level * generator.uniform(0.5, 1.5, len(ids)).astype(np.float32) for _ in range(PROXIES)])
        values = [each.mean(0), each.std(0, ddof=1), *each]
        table_of = pa.table([pa.array(array) for array in [ids, *values]], schema=scores_schema(COLUMNS))
        for unit, one, parts in ((index, whole, indexed), (score, table_of, scored)):
            parts.append(unit.publish_part(shard.part_name, encode_table(one, unit.key), lambda _, one=one: one.num_rows))
        shards.append(shard)
    train = sum(part.rows for part in scored)
    index.publish_seal(indexed, {"num_train": train, "num_rows": rows, "shards": pack_shards(shards)})
    score.publish_seal(scored, {"columns": COLUMNS, "directions": dict.fromkeys(COLUMNS, "high"), "num_rows": train})
    return store


def write_apart(store: Store, folder: Path) -> list[Path]:
    """Write the four proxies' scores as four tables (example_id, score), encoded as the stage's are, and return their folders."""
    folders = [folder / name for name in SEEDS]
    for one in folders:
        one.mkdir(parents=True)
    for file in sorted(parts_of(store, "score").glob("*.parquet")):
        whole = pq.read_table(file).replace_schema_metadata(None)
        for name, one in zip(SEEDS, folders):
            (one / file.name).write_bytes(encode_table(whole.select(["example_id", name]), SCORE_KEY))
    return folders


def parts_of(store: Store, stage: str) -> Path:
    """Return the folder of a stage's parts."""
    return next(Path(store.uri).glob(f"stages/{stage}-*/parts"))


def rows_in(part: Part) -> int:
    """Return how many rows a part has: work for a worker that is only to be started."""
    return part.rows


def merge(root: str, scratch: str) -> None:
    """Run the merge stage on THREADS workers of the real pool, and print the seconds from its call to its seal."""
    from cluster.session import RaySession
    from tasks.merge import MergeInputs, merge_stage
    from tasks.sources.spec import DataSpec
    from tasks.spec import Resources

    store = Store(root)
    index, score = Unit(store, "shard", INDEX_KEY).seal(), Unit(store, "score", SCORE_KEY).seal()
    assert index is not None and score is not None
    data = DataSpec.model_validate({"source": "parquet", "train": "data.parquet"})
    inputs = MergeInputs(data, index, score, resources=Resources(workers=THREADS))
    with RaySession("local", (), Path(scratch)) as session:
        pool = session.pool()
        for _ in pool.map(partial(FunctionWorker, rows_in), score.parts[: 2 * THREADS], label="warm", resources=inputs.resources):
            pass
        start = time.perf_counter()
        merge_stage(inputs, store, pool)
        seconds = time.perf_counter() - start
    print(json.dumps(seconds))


def content(files: Iterable[Path], columns: Sequence[str]) -> tuple[int, int]:
    """Return how many rows files hold, and a sum over them of a hash of what is in a row's columns: in any order the same."""
    rows = total = 0
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(2**18):
            word = np.zeros(batch.num_rows, np.uint64)
            for name in ("example_id", "label", *columns):
                values = batch.column(name).to_numpy()
                bits = values.view(np.int32).astype(np.int64) if values.dtype == np.float32 else values
                word = hash64(name, 0, (word ^ bits.view(np.uint64)).view(np.int64))
            rows, total = rows + batch.num_rows, (total + int(word.sum())) % 2**64
    return rows, total


class Contest:
    """Hold a store and the ways of merging it; what the first turn of each way wrote is read and compared."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder = folder
        self.store = make_store(folder / "store", rows)
        index, scores = (parts_of(self.store, stage) for stage in ("shard", "score"))
        apart = write_apart(self.store, folder / "apart")
        self.inputs = {peer: [index, scores] for peer in PEERS} | {peer: [index, *apart] for peer in APART}
        self.contents: dict[tuple[str, bool], tuple[int, int]] = {}
        self.killed: dict[str, Run] = {}

    def prepare(self, folders: Iterable[Path]) -> None:
        """Have the system write what it owes and hold the inputs: a peer of 17 GB before leaves neither as it was."""
        os.sync()
        for folder in folders:
            for file in folder.glob("*.parquet"):
                with file.open("rb") as stream:
                    while stream.read(2**24):
                        pass

    def ours(self) -> Run:
        """Run the stage; a second run would find the first one's parts, so these are removed."""
        self.prepare(self.inputs[PEERS[0]])
        run = run_python(OURS, self.store.uri, self.folder / "ray")
        parts = parts_of(self.store, "merge")
        self.compare("secateur", sorted(parts.glob("*.parquet")), (False, True))
        shutil.rmtree(parts.parent)
        return Run(run.said, run.peak_mib, run.seconds - run.said)

    def peer(self, name: str, code: str) -> Run:
        """Run a peer's code; one that was killed for memory would be again."""
        if name in self.killed:
            return self.killed[name]
        out, spill = self.folder / "out.parquet", self.folder / "spill"
        spill.mkdir(exist_ok=True)
        self.prepare(self.inputs[name])
        run = run_python(code, *self.inputs[name], out, spill, may_die=True)
        if math.isinf(run.seconds):
            self.killed[name] = run
            out.unlink(missing_ok=True)
            return run
        self.compare(name, [out], (name in APART,))
        out.unlink()
        return run

    def compare(self, name: str, files: Sequence[Path], apart: Iterable[bool]) -> None:
        """Raise ValueError where what a way wrote first, in all columns or those of the tables apart, is not what others did."""
        for which in apart:
            if (name, which) not in self.contents:
                self.contents[name, which] = content(files, SEEDS if which else COLUMNS)
                found = {name: value for (name, other), value in self.contents.items() if other == which}
                if len(set(found.values())) > 1:
                    raise ValueError(f"the ways of merging differ in rows and their content: {found}")


def measure(rows: int, repeats: int) -> dict[str, Run]:
    """Return the median run of each way."""
    with tempfile.TemporaryDirectory() as name:
        contest = Contest(Path(name), rows)
        ways = {"secateur": contest.ours}
        for peer, code in zip((*PEERS, *APART), (DUCKDB, POLARS, POLARS_SORTED) * 2):
            ways[peer] = partial(contest.peer, peer, code)
        return in_turn(ways, repeats)


def rows_of(found: dict[str, Run], rows: int) -> list[Row]:
    """Return the lines of the table."""
    mine = found["secateur"]
    said = f"{mine.seconds:.2f} s, {mine.peak_mib:.0f} MiB"
    out = []
    for peer in (*PEERS, *APART):
        its = found[peer]
        ratio = its.seconds / mine.seconds
        met = ratio >= 3 and mine.peak_mib * 2**20 <= 1e9
        ended = "killed for memory" if math.isinf(its.seconds) else f"{its.seconds:.2f} s"
        work, note = f"merge of {PROXIES} proxies' scores, {rows:.0e} rows", f"start-up of Ray and its workers {mine.said:.1f} s"
        out.append(Row(work, f"{peer}: join on id", ">= 3x, <= 1 GB", said, f"{ended}, {its.peak_mib:.0f} MiB",
                       "-" if math.isinf(ratio) else f"{ratio:.2f}x", met, note))  # fmt: skip
    return out


def profile(rows: int) -> str:
    """Return where the time of one worker goes, nanoseconds a row by kind of work; run two at once for what the stage has."""
    from tasks.merge import MergeInputs, merge_stage
    from tasks.pool import SerialPool
    from tasks.sources.spec import DataSpec

    kinds = {"write": "write to the file system", "fsync": "fsync", "openssl_sha256": "sha256 of what is read and written",
             "write_table": "encode Parquet", "read": "read and decode Parquet", "argsort": "seeds compared (ranks)"}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "store", rows)
        index, score = Unit(store, "shard", INDEX_KEY).seal(), Unit(store, "score", SCORE_KEY).seal()
        assert index is not None and score is not None
        inputs = MergeInputs(DataSpec.model_validate({"source": "parquet", "train": "data.parquet"}), index, score)
        measured = cProfile.Profile()
        measured.runcall(merge_stage, inputs, store, SerialPool())
    found = dict.fromkeys([*kinds.values(), "all else: row checks, counts, copies"], 0.0)
    for entry in measured.getstats():
        text = entry.code if isinstance(entry.code, str) else entry.code.co_name
        name = next((kind for word, kind in kinds.items() if re.search(rf"\b{word}\b", text)), list(found)[-1])
        found[name] += entry.inlinetime
    lines = [f"| {name} | {seconds / rows * 1e9:.0f} |" for name, seconds in found.items()]
    return "\n".join(["| work | ns a row |", "| --- | --- |", *lines, f"| all | {sum(found.values()) / rows * 1e9:.0f} |"])


def waiting(parts: int = 100) -> str:
    """Return how much of writing and syncing a part is work of the core, and how much is waiting, in ns a row."""
    data = os.urandom(SHARD_ROWS * (2 * 8 + 4 * len(COLUMNS)))
    spent: dict[str, list[float]] = {"write": [0.0, 0.0], "fsync": [0.0, 0.0]}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(parts):
            with (Path(folder) / str(number)).open("wb", buffering=0) as file:
                for name, act in (("write", partial(file.write, data)), ("fsync", partial(os.fsync, file))):
                    clock, core = time.perf_counter(), time.thread_time()
                    act()
                    spent[name][0] += time.perf_counter() - clock
                    spent[name][1] += time.thread_time() - core
    each = 1e9 / (parts * SHARD_ROWS)
    said = "{}: {:.0f} of {:.0f} ns a row are the core's"
    return "\n".join(said.format(name, core * each, clock * each) for name, (clock, core) in spent.items())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10**8)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--profile", action="store_true", help="where one worker's time goes, instead")
    arguments = parser.parse_args()
    if arguments.profile:
        print(f"{profile(arguments.rows)}\n\n{waiting()}")
        return
    print(table(rows_of(measure(arguments.rows, arguments.repeats), arguments.rows)))


if __name__ == "__main__":
    main()
