"""Select 5 % signal and 5 % exploration with weights from a large table, beside its peers: `python -m benchmarks.selection`.

The table has ids ascending over disjoint files; `--case "eight values"` has eight distinct scores, `--case shuffled` ids in no
order, so that the files overlap. Every way runs in a process of its own on two cores and ends with a Parquet file on disk.

What the peers leave out: DuckDB's top, Polars and numpy only cut off the top 10 % and write ids; they draw no exploration, have
no probabilities and weights, break ties by no hash, do not order the ids, and look for no id that occurs twice. "DuckDB, the
same work" does all of it but probabilities and the last. What a peer's first turn wrote is read and checked.

What bounds it. The rows of 1e8 are 0.84 GB on disk, 1.2 GB decoded. `select` reads them once: a sample of 12 row groups (less
than 1 % of the rows) says nearly where the signal ends, one pass takes the rows that are surely chosen and the few that are open
(0.5 %), these are then decided exactly, by histograms of score and hash; the chosen 10 % (9 bytes a row, in the temporary folder)
are read back and written. Ids in no order are read once more, and compared in buckets on disk.
Processor time at 1e8, both threads together, is 4.4 to 6 s, DuckDB's top 9.1 to 9.3 s. Of ours 0.4 s are start-up, some 30 ns
a row the scan and 6 the writing. Two thirds of the scan are Parquet's: 18 ns to decode id and score, 11 of them Snappy on the
ids alone, which no reader escapes; the hash takes 4 ns. Were all but decoding and hashing free, 2.2 s would be left: the code
is within a factor of 2 to 2.5 of that.
Tried for Polars: `scan_parquet` with `top_k` and `sink_parquet`, 6 to 8 times as long as `read_parquet`.
Tried: a first pass over the scores for a histogram of 16 bits and one over the ids for repeats (3 passes: 8.6 s of the
processor, 440 MiB); batches of 2^16 and 2^20 rows in place of 2^17 (hashing takes 4 ns a row up to 2^15 rows at once and 8
beyond: it has its own steps); hashing in place (4 ns, too); memory maps, and whole row groups at once (14 ns a row for ids,
either way); other allocators (no difference).
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.contest import Row, Run, in_turn, run_process, run_python, table
from tasks.hashing import hash64

FILES, GROUP_ROWS = 24, 2**20
WHOLE = "DuckDB, the same work"
CASES = ("ascending", "eight values", "shuffled")
MEMORY, WITHIN = 0.6e9, 1.2

DUCKDB_TOP = """
import sys, duckdb
c = duckdb.connect(); c.execute("SET threads=2"); c.execute(f"SET temp_directory='{sys.argv[4]}'")
k = int(sys.argv[3]) // 10
c.execute(f"COPY (SELECT example_id FROM read_parquet('{sys.argv[1]}/*.parquet') ORDER BY score DESC LIMIT {k}) "
          f"TO '{sys.argv[2]}' (FORMAT parquet)")
"""

# The same work as `select`: signal, exploration by hash from the rest, weights, in ascending order of ids.
DUCKDB_WHOLE = """
import sys, duckdb
c = duckdb.connect(); c.execute("SET threads=2"); c.execute(f"SET temp_directory='{sys.argv[4]}'")
n = int(sys.argv[3]); k = n // 20; w = (n - k) / k
c.execute(f"CREATE TEMP TABLE t AS SELECT example_id, score FROM read_parquet('{sys.argv[1]}/*.parquet') "
          f"ORDER BY score DESC, hash(example_id) LIMIT {k}")
last, h = c.execute("SELECT min(score), max(hash(example_id)) FROM t WHERE score = (SELECT min(score) FROM t)").fetchone()
c.execute(f"COPY (SELECT example_id, arm, weight FROM ("
          f"SELECT example_id, 'signal' AS arm, 0.1::FLOAT AS weight FROM t UNION ALL "
          f"(SELECT example_id, 'exploration', {0.1 * w}::FLOAT FROM read_parquet('{sys.argv[1]}/*.parquet') "
          f"WHERE score < {last!r} OR (score = {last!r} AND hash(example_id) > {h}) "
          f"ORDER BY hash(example_id + 17) LIMIT {k})) ORDER BY example_id) TO '{sys.argv[2]}' (FORMAT parquet)")
"""

POLARS_TOP = """
import sys, polars as pl
k = int(sys.argv[3]) // 10
pl.read_parquet(sys.argv[1] + "/*.parquet").top_k(k, by="score").select("example_id").write_parquet(sys.argv[2])
"""

# One pass finds the last score of the top, one takes all above it and as many of its equals as there is room for.
POLARS_CUT = """
import sys, polars as pl
k = int(sys.argv[3]) // 10
t = pl.read_parquet(sys.argv[1] + "/*.parquet")
last = t["score"].quantile((t.height - k) / (t.height - 1), "nearest")
top = t.filter(pl.col("score") > last).select("example_id")
equal = t.filter(pl.col("score") == last).select("example_id").head(k - top.height)
pl.concat([top, equal]).write_parquet(sys.argv[2])
"""

NUMPY_CUT = """
import sys, numpy as np, pyarrow as pa, pyarrow.parquet as pq
t = pq.read_table(sys.argv[1]); k = int(sys.argv[3]) // 10
score = t.column("score").to_numpy()
ordered = np.partition(score, len(score) - k); last = ordered[len(score) - k]; del ordered
top = score > last
top[np.flatnonzero(score == last)[: k - np.count_nonzero(top)]] = True
pq.write_table(pa.table({"example_id": t.column("example_id").to_numpy()[top]}), sys.argv[2])
"""

NUMPY_TOP = """
import sys, numpy as np, pyarrow as pa, pyarrow.parquet as pq
t = pq.read_table(sys.argv[1]); k = int(sys.argv[3]) // 10
score = t.column("score").to_numpy(); ids = t.column("example_id").to_numpy()
top = np.argpartition(score, len(score) - k)[len(score) - k:]
pq.write_table(pa.table({"example_id": ids[top]}), sys.argv[2])
"""

# Each with the bar; the cuts are what Polars and numpy do fastest, beside the calls that are usual.
PEERS = {
    "DuckDB, top only": (DUCKDB_TOP, 2.0),
    WHOLE: (DUCKDB_WHOLE, 2.0),
    "Polars top_k": (POLARS_TOP, 1.0),
    "Polars quantile and filter": (POLARS_CUT, 1.0),
    "numpy.argpartition": (NUMPY_TOP, 1.0),
    "numpy.partition and a mask": (NUMPY_CUT, 1.0),
}

# The same selection in one process, with the seconds of its parts.
SPLIT = """
import sys, time
start = time.perf_counter()
from tasks import standalone
from tasks.selection import calibrated
from tasks.selection.parquet_rows import ParquetRows
from tasks.selection.streamed_drawing import StreamedDrawing
import json, pyarrow.parquet
took = {"start": time.perf_counter() - start}
def timed(owner, name, part):
    real = getattr(owner, name)
    def run(*arguments, **more):
        begin = time.perf_counter()
        try:
            return real(*arguments, **more)
        finally:
            took[part] = took.get(part, 0.0) + time.perf_counter() - begin
    setattr(owner, name, run)
for name, part in (("_draw", "scan"), ("_interval", "sample"), ("_decide", "choose")):
    timed(StreamedDrawing, name, part)
timed(ParquetRows, "check_unique", "repeats")
timed(standalone, "_write", "write")
standalone.select_file(sys.argv[1], score="score", direction="high", keep=0.1, alpha=0.5, out=sys.argv[2])
took["scan"] -= took["choose"]
print(json.dumps(took))
"""


def make_table(folder: Path, rows: int, case: str) -> None:
    """Write the table in FILES files: example_id int64, score float32."""
    generator = np.random.default_rng(0)
    bounds = np.linspace(0, rows, FILES + 1).astype(np.int64)
    order = generator.permutation(rows) if case == "shuffled" else None
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        score = generator.random(stop - start, dtype=np.float32)
        if case == "eight values":
            score = np.floor(score * 8) / np.float32(8)
        ids = np.arange(start, stop) if order is None else order[start:stop]
        pq.write_table(
            pa.table({"example_id": ids, "score": score}), folder / f"{number:03d}.parquet", row_group_size=GROUP_ROWS
        )


def ours(folder: Path, out: Path) -> Run:
    """Run the command itself."""
    return run_process(
        [str(Path(sys.executable).parent / "secateur"), "select", str(folder), "--score", "score", "--direction", "high",
         "--keep", "0.1", "--protocol", "exact", "--alpha", "0.5", "--out", str(out), "--json"]
    )  # fmt: skip


def check(folder: Path, out: Path, rows: int) -> None:
    """Raise ValueError where the selection is not one: its size, its order, and the end of its signal, exactly."""
    written = pq.ParquetFile(out)
    if written.metadata.num_rows != rows // 10:
        raise ValueError(f"{written.metadata.num_rows} rows were selected, {rows // 10} wanted")
    facts = json.loads(written.schema_arrow.metadata[b"n"]), json.loads(written.schema_arrow.metadata[b"alpha"])
    last = -(2**63)
    signal: list[np.ndarray] = []
    least: list[tuple[float, int]] = []
    most: list[tuple[float, int]] = []
    for batch in written.iter_batches(2**20, columns=["example_id", "arm"]):
        ids = batch.column("example_id").to_numpy()
        if ids[0] <= last or not (ids[1:] > ids[:-1]).all():
            raise ValueError("ids do not ascend")
        last = int(ids[-1])
        signal.append(ids[batch.column("arm").indices.to_numpy() == 0])
    chosen = np.concatenate(signal)
    if facts != (rows, 0.5) or len(chosen) != rows // 20:
        raise ValueError(f"{len(chosen)} rows of {facts} are signal, {rows // 20} of {rows} wanted")
    is_signal = np.zeros(rows, dtype=np.bool_)
    is_signal[chosen] = True
    for file in sorted(folder.glob("*.parquet")):
        columns = pq.read_table(file)
        ids, score = (columns.column(name).to_numpy() for name in ("example_id", "score"))
        least.append(last_of(score[is_signal[ids]], ids[is_signal[ids]], -1))
        most.append(last_of(score[~is_signal[ids]], ids[~is_signal[ids]], 1))
    if min(least) < max(most):
        raise ValueError(f"a row with (score, -hash) {max(most)} is no signal, one with {min(least)} is")


def last_of(score: np.ndarray, ids: np.ndarray, side: int) -> tuple[float, int]:
    """Return the (score, -hash) that is greatest (side 1) or least (side -1) among some rows."""
    end = float(score.max(initial=-np.inf) if side > 0 else score.min(initial=np.inf))
    ties = hash64("tie", 0, ids[score == end])
    return end, -int(ties.min(initial=2**64 - 1) if side > 0 else ties.max(initial=0))


def check_peer(peer: str, folder: Path, out: Path, rows: int) -> None:
    """Raise ValueError where a peer's rows are not what it is compared for: how many, their order, the top, their weights."""
    found = pq.read_table(out)
    ids = found.column("example_id").to_numpy()
    if len(ids) != rows // 10:
        raise ValueError(f"{peer} wrote {len(ids)} rows, {rows // 10} wanted")
    if peer == WHOLE:
        if not (ids[1:] > ids[:-1]).all():
            raise ValueError(f"{peer}: ids do not ascend")
        arms = found.column("arm")
        signal, explored = (pc.equal(arms, arm).to_numpy() for arm in ("signal", "exploration"))
        if np.count_nonzero(signal) != rows // 20 or np.count_nonzero(explored) != len(ids) - rows // 20:
            raise ValueError(f"{peer}: {np.count_nonzero(signal)} rows are signal, {np.count_nonzero(explored)} exploration")
        # The mean weight of what is kept is 1.
        total = float(found.column("weight").to_numpy().sum(dtype=np.float64)) * rows / len(ids)
        if abs(total - rows) > 1e-5 * rows:
            raise ValueError(f"{peer}: weights speak for {total:.0f} rows, not {rows}")
        ids = ids[signal]
    check_top(peer, folder, ids, rows)


def check_top(peer: str, folder: Path, ids: np.ndarray, rows: int) -> None:
    """Raise ValueError unless `ids` are distinct and no other has a greater score than any of them: equal ones may be out."""
    if ids.min() < 0 or ids.max() >= rows:
        raise ValueError(f"{peer}: ids {ids.min()} to {ids.max()} are not all of the table")
    is_top = np.zeros(rows, dtype=np.bool_)
    is_top[ids] = True
    if np.count_nonzero(is_top) != len(ids):
        raise ValueError(f"{peer}: {len(ids) - np.count_nonzero(is_top)} ids occur again")
    least, most = np.inf, -np.inf
    for file in folder.glob("*.parquet"):
        columns = pq.read_table(file)
        score, top = columns.column("score").to_numpy(), is_top[columns.column("example_id").to_numpy()]
        least, most = min(least, score[top].min(initial=np.inf)), max(most, score[~top].max(initial=-np.inf))
    if least < most:
        raise ValueError(f"{peer}: a row of score {most} is not in the top, one of {least} is")


def run_peer(peer: str, code: str, folder: Path, out: Path, spill: Path, rows: int, checked: set[str]) -> Run:
    """Run a peer's code, and check what it wrote unless it is among the `checked`; each run finds no file there."""
    run = run_python(code, folder, out, rows, spill)
    if peer not in checked:
        check_peer(peer, folder, out, rows)
        checked.add(peer)
    out.unlink()
    return run


def measure(rows: int, case: str, repeats: int, peers: bool) -> dict[str, Run]:
    """Return the median run of each way on one table, the result of `select` checked; "parts" says what its time went to."""
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "scores", Path(name) / "out.parquet"
        spill = Path(name) / "spill"
        folder.mkdir()
        spill.mkdir()
        make_table(folder, rows, case)
        found = measure_on(folder, out, spill, rows, repeats, peers)
        shutil.rmtree(folder)
        return found


def measure_on(folder: Path, out: Path, spill: Path, rows: int, repeats: int, peers: bool) -> dict[str, Run]:
    """Do as `measure` on a table that is there."""
    ways: dict[str, Callable[[], Run]] = {"secateur": partial(ours, folder, out)}
    checked: set[str] = set()
    for peer, (code, _) in PEERS.items() if peers else ():
        ways[peer] = partial(run_peer, peer, code, folder, out.with_name("peer.parquet"), spill, rows, checked)
    found = in_turn(ways, repeats)
    check(folder, out, rows)
    return found | in_turn({"parts": partial(run_python, SPLIT, folder, out)}, repeats, 0)


def rows_of(found: Mapping[str, Run], rows: int, case: str, base: Run | None = None) -> list[Row]:
    """Return the lines of the table; `base` is the run whose memory this one's is held against."""
    mine = found["secateur"]
    said = f"{mine.seconds:.2f} s, {mine.peak_mib:.0f} MiB"
    parts = found["parts"].said
    note = ", ".join(f"{part} {parts[part]:.2f}" for part in ("start", "sample", "scan", "choose", "repeats", "write")) + " s"
    work = f"select 5 % + 5 % of {rows:.0e}, {case}"
    out = []
    small = mine.peak_mib * 2**20 <= MEMORY
    for peer, (_, bar) in PEERS.items():
        if peer in found:
            its = found[peer]
            ratio = its.seconds / mine.seconds
            out.append(Row(work, peer, f">= {bar:g}x, <= 0.6 GB", said, f"{its.seconds:.2f} s, {its.peak_mib:.0f} MiB",
                           f"{ratio:.2f}x", ratio >= bar and small, note))  # fmt: skip
    if base is not None:
        more = mine.peak_mib / base.peak_mib
        out.append(Row(work, "itself, ascending", "memory within 20 %", said, f"{base.seconds:.2f} s, {base.peak_mib:.0f} MiB",
                       f"{more:.2f}x", more <= WITHIN and small, note))  # fmt: skip
    elif not out:
        out.append(Row(work, "itself", "<= 0.6 GB", said, "", "", small, note))
    return out


def main() -> None:
    """Print the table of one case, or of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10**8)
    parser.add_argument("--case", choices=CASES, default="ascending")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="without the peers")
    parser.add_argument("--scores", type=Path, help="a folder that `make_table` has filled, to be used again")
    arguments = parser.parse_args()
    if arguments.scores is None:
        found = measure(arguments.rows, arguments.case, arguments.repeats, not arguments.alone)
    else:
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            found = measure_on(
                arguments.scores, place / "out.parquet", place, arguments.rows, arguments.repeats, not arguments.alone
            )
    print(table(rows_of(found, arguments.rows, arguments.case)))


if __name__ == "__main__":
    main()
