"""Select 5 % signal and 5 % exploration with weights from a large table, beside its peers: `python -m benchmarks.selection`.

The table has ids ascending over disjoint files, unless --case says otherwise. Every way runs in a process of its own and ends
with a Parquet file on disk. Two peers do less than `select` does: they sort out the top 10 % and write their ids.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.contest import Row, Run, in_turn, run_process, run_python, table

FILES, GROUP_ROWS = 24, 2**20
CASES = ("ascending", "eight values", "shuffled")

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
pl.scan_parquet(sys.argv[1] + "/*.parquet").top_k(k, by="score").select("example_id").sink_parquet(sys.argv[2])
"""

NUMPY_TOP = """
import sys, numpy as np, pyarrow as pa, pyarrow.parquet as pq
t = pq.read_table(sys.argv[1]); k = int(sys.argv[3]) // 10
score = t.column("score").to_numpy(); ids = t.column("example_id").to_numpy()
top = np.argpartition(score, len(score) - k)[len(score) - k:]
pq.write_table(pa.table({"example_id": ids[top]}), sys.argv[2])
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


def measure(rows: int, case: str, repeats: int, peers: bool) -> dict[str, Run]:
    """Return the median run of each way on one table."""
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "scores", Path(name) / "out.parquet"
        spill = Path(name) / "spill"
        folder.mkdir()
        spill.mkdir()
        make_table(folder, rows, case)
        ways = {"secateur": partial(ours, folder, out)}
        scripts = {"DuckDB, top only": DUCKDB_TOP, "DuckDB, the same work": DUCKDB_WHOLE, "Polars top_k": POLARS_TOP,
                   "numpy.argpartition": NUMPY_TOP}  # fmt: skip
        for peer, code in scripts.items() if peers else ():
            ways[peer] = partial(run_python, code, folder, out, rows, spill)
        found = in_turn(ways, repeats)
        shutil.rmtree(folder)
        return found


def rows_of(found: dict[str, Run], rows: int, case: str) -> list[Row]:
    """Return the lines of the table."""
    mine = found["secateur"]
    said = f"{mine.seconds:.2f} s, {mine.peak_mib:.0f} MiB"
    work = f"select 5 % + 5 % of {rows:.0e}, {case}"
    out = []
    bars = {"DuckDB, top only": 2.0, "DuckDB, the same work": 2.0, "Polars top_k": 1.0, "numpy.argpartition": 1.0}
    for peer, bar in bars.items():
        if peer in found:
            its = found[peer]
            ratio = its.seconds / mine.seconds
            out.append(Row(work, peer, f">= {bar:g}x, <= 0.6 GB", said, f"{its.seconds:.2f} s, {its.peak_mib:.0f} MiB",
                           f"{ratio:.2f}x", ratio >= bar and mine.peak_mib * 2**20 <= 0.6e9))  # fmt: skip
    if len(found) == 1:
        out.append(Row(work, "itself", "<= 0.6 GB", said, "", "", mine.peak_mib * 2**20 <= 0.6e9))
    return out


def main() -> None:
    """Print the table of one case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10**8)
    parser.add_argument("--case", choices=CASES, default="ascending")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="without the peers")
    arguments = parser.parse_args()
    found = measure(arguments.rows, arguments.case, arguments.repeats, not arguments.alone)
    print(table(rows_of(found, arguments.rows, arguments.case)))


if __name__ == "__main__":
    main()
