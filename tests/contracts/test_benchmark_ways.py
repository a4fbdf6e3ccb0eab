"""What benchmarks compare is what they say: peers' results are held to it, and ways that should leave the same bytes do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks import selection, startup, tiny_parts
from benchmarks.contest import Run
from benchmarks.gpu_timing import Batch, Bench, find_batch
from benchmarks.merging import make_store, parts_of
from tasks.dataset import Dataset
from tasks.merge import merge_stage
from tasks.pool import SerialPool

ROWS = 2400
TOP, WHOLE = "numpy.argpartition", selection.WHOLE


@pytest.fixture(params=selection.CASES)
def scores(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Give a folder with the table of each case."""
    folder = tmp_path / "scores"
    folder.mkdir()
    selection.make_table(folder, ROWS, request.param)
    return folder


def ranked(scores: Path) -> np.ndarray:
    """Return all ids, the greatest score first."""
    table = pq.read_table(scores)
    ids: np.ndarray = table.column("example_id").to_numpy()
    return ids[np.argsort(-table.column("score").to_numpy(), kind="stable")]


def write_top(scores: Path, out: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write the top 10 % as a peer does, changed."""
    pq.write_table(pa.table({"example_id": change(ranked(scores))[: ROWS // 10]}), out)


def write_whole(scores: Path, out: Path, change: Callable[[dict[str, Any]], Any] = lambda columns: None) -> None:
    """Write signal, exploration and weights in the order of ids, changed."""
    signal, rest = np.split(ranked(scores), [ROWS // 20])
    ids = np.concatenate([signal, rest[:: len(rest) // len(signal)][: len(signal)]])
    is_signal = np.isin(ids, signal)
    columns = {"example_id": ids, "arm": np.where(is_signal, "signal", "exploration"), "weight": np.where(is_signal, 0.1, 1.9)}
    order = np.argsort(ids)
    columns = {name: values[order] for name, values in columns.items()}
    change(columns)
    columns["weight"] = columns["weight"].astype(np.float32)
    pq.write_table(pa.table(columns), out)


def test_a_peers_top_is_taken_and_any_other_is_refused(scores: Path, tmp_path: Path) -> None:
    out = tmp_path / "peer.parquet"
    for change, refusal in (
        (lambda ids: ids, None),
        (lambda ids: ids[: ROWS // 10 - 1], "wrote 239 rows, 240 wanted"),
        (lambda ids: ids[::-1], "is not in the top"),
        (lambda ids: np.concatenate([ids[:1], ids]), "1 ids occur again"),
        (lambda ids: ids + ROWS, "are not all of the table"),
    ):
        write_top(scores, out, change)
        if refusal is None:
            selection.check_peer(TOP, scores, out, ROWS)
        else:
            with pytest.raises(ValueError, match=refusal):
                selection.check_peer(TOP, scores, out, ROWS)


def test_ties_at_the_end_of_the_top_may_be_any(tmp_path: Path) -> None:
    score = np.repeat(np.array([2, 1], np.float32), [1, 19])
    pq.write_table(pa.table({"example_id": np.arange(20), "score": score}), tmp_path / "0.parquet")
    for last in (1, 19):
        selection.check_top(TOP, tmp_path, np.array([0, last]), 20)
    with pytest.raises(ValueError, match=r"a row of score 2\.0 is not in the top, one of 1\.0 is"):
        selection.check_top(TOP, tmp_path, np.array([1, 2]), 20)


def test_the_same_work_is_taken_and_any_other_is_refused(scores: Path, tmp_path: Path) -> None:
    def swap(columns: dict[str, Any]) -> None:
        columns["example_id"][:2] = columns["example_id"][1::-1]

    def exchange(columns: dict[str, Any]) -> None:
        columns["arm"] = np.where(columns["arm"] == "signal", "exploration", "signal")

    def one_arm(columns: dict[str, Any]) -> None:
        columns["arm"][:] = "signal"

    def unit(columns: dict[str, Any]) -> None:
        columns["weight"] *= 1.001

    out = tmp_path / "peer.parquet"
    write_whole(scores, out)
    selection.check_peer(WHOLE, scores, out, ROWS)
    for change, refusal in (
        (swap, "ids do not ascend"),
        (exchange, "is not in the top"),
        (one_arm, "240 rows are signal, 0 exploration"),
        (unit, "weights speak for 2402 rows, not 2400"),
    ):
        write_whole(scores, out, change)
        with pytest.raises(ValueError, match=refusal):
            selection.check_peer(WHOLE, scores, out, ROWS)


def test_a_peers_first_turn_is_checked(scores: Path, tmp_path: Path) -> None:
    out, checked = tmp_path / "peer.parquet", set[str]()
    selection.run_peer(TOP, selection.NUMPY_TOP, scores, out, tmp_path, ROWS, checked)
    assert checked == {TOP}
    assert not out.exists()
    worst = selection.NUMPY_TOP.replace("score, len(score) - k)[len(score) - k:]", "score, k)[:k]")
    with pytest.raises(ValueError, match="is not in the top"):
        selection.run_peer("worst", worst, scores, out, tmp_path, ROWS, checked)


def test_the_stage_and_its_peer_publish_the_same_bytes(tmp_path: Path) -> None:
    store = make_store(tmp_path, 5 * tiny_parts.ROWS, tiny_parts.ROWS)
    inputs = tiny_parts.merge_inputs(store)
    seal = merge_stage(inputs, store, SerialPool())
    merges = parts_of(store, "merge")
    of_stage = {file.name: file.read_bytes() for file in merges.iterdir()}
    shutil.rmtree(merges.parent)
    shards = Dataset(inputs.data, inputs.index, store).shards()
    parts = [tiny_parts.merge_part(store.uri, shard) for shard in shards]
    assert parts == list(seal.parts)
    assert [part.rows for part in parts] == [tiny_parts.ROWS] * 5
    assert {file.name: file.read_bytes() for file in merges.iterdir()} == of_stage


def test_rows_name_what_ran_and_hold_each_to_its_peer() -> None:
    names = (tiny_parts.STAGE, tiny_parts.STAGE_TASKS, tiny_parts.POOL, tiny_parts.POOL_TASKS)
    runs = [Run(seconds, 100.0) for seconds in (3.2, 2.0, 2.8, 2.0)]
    rows = tiny_parts.rows_of(dict(zip(names, runs)), Run(28.0, 900.0), 1000)
    assert (rows[2].ours, rows[2].theirs) == ("2.80 s, 100 MiB", "28.00 s, 900 MiB")
    assert [(row.work, row.figure, row.met) for row in rows] == [
        ("merge stage, 1,000 shards of 4 rows", "1.60x", False),
        ("the pool and the seal, stub work: 1,000 tiny parts", "1.40x", True),
        ("the pool and the seal, stub work: 1,000 tiny parts", "10x", False),
    ]


def test_a_stage_that_started_is_seen_in_the_store(tmp_path: Path) -> None:
    part, attempts = tmp_path / "stages/score-1/parts/a.parquet", tmp_path / "runs/r/attempts"
    for folder in (part.parent, attempts):
        folder.mkdir(parents=True)
    part.write_bytes(b"")
    before = startup.stages_of(tmp_path)
    (attempts / "1.json").write_bytes(b"")
    assert startup.stages_of(tmp_path) == before
    changes: list[Callable[[], object]] = [
        lambda: os.utime(part, ns=(0, before["stages/score-1/parts/a.parquet"] + 1)),
        (tmp_path / "stages/train-2").mkdir,
        lambda: (attempts / "1.stages.json").write_bytes(b""),
    ]
    for change in changes:
        change()
        after = startup.stages_of(tmp_path)
        assert after != before
        before = after


class Steady(Bench):
    """Take a second for any run."""

    def seconds(self, work: Callable[[], object], repeats: int = 0) -> float:
        """Run once."""
        work()
        return 1.0


@pytest.mark.parametrize(
    ("start", "most", "found"),
    [(8, 1000, Batch(64, 1.0, "memory")), (8, 50, Batch(32, 1.0, "cap")), (8, 64, Batch(64, 1.0, "cap"))],
)
def test_the_largest_batch_says_whether_memory_or_the_cap_ended_it(start: int, most: int, found: Batch) -> None:
    def work(rows: int) -> None:
        if rows > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert find_batch(Steady(torch.device("cpu"), quick=True), work, start, most) == found


def test_batches_that_gain_nothing_are_not_doubled_again() -> None:
    class Linear(Bench):
        def seconds(self, work: Callable[[], object], repeats: int = 0) -> float:
            rows: Any = work()
            return float(max(rows, 16))

    assert find_batch(Linear(torch.device("cpu"), quick=True), lambda rows: rows, 8, 1000) == Batch(16, 16.0, "gain")
