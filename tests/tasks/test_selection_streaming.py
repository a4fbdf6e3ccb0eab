"""One pass over the table, guided by a sample; chosen rows on disk; the same selection whatever the sample says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import StageError
from tasks.selection import calibrated_selection, spool, streamed_drawing
from tasks.selection.rows import ArrayRows, Batch
from tasks.selection.spool import DROPPED, EXPLORE, OPEN, SIGNAL, Spool
from tasks.standalone import select_file
from tests.own_process import in_own_process
from tests.tasks.selection_case import CutRows, cut, random_rows, same, spec

N = 6000


@pytest.fixture(autouse=True)
def many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take 6,000 rows for more than may stay undecided, and 100 for more than memory holds."""
    monkeypatch.setattr(streamed_drawing, "OPEN_ROWS", 400)
    monkeypatch.setattr(spool.Spool.__init__, "__defaults__", (100,))
    monkeypatch.setattr(spool, "_SORTED_ROWS", 64)


class _Counting(CutRows):
    """Count the pieces that are read."""

    def __init__(self, rows: CutRows) -> None:
        super().__init__(rows.pieces(), rows.num_codes)
        self.reads = 0

    def read(self, piece: Batch) -> Iterator[Batch]:
        self.reads += 1
        return super().read(piece)

    def read_keys(self, piece: Batch) -> Iterator[Batch]:
        self.reads += 1
        return super().read_keys(piece)


def _columns(rows: Any, chosen: Any, sample: Any = None, **more: Any) -> dict[str, Any]:
    table = calibrated_selection(rows, chosen, 5, sample=sample, **more).table()
    return {name: table.column(name).combine_chunks().to_numpy(zero_copy_only=False) for name in table.column_names}


def _some(rows: ArrayRows, at: Any) -> Sequence[Batch]:
    part = np.asarray(at)
    assert rows.score is not None
    return [Batch(rows.example_id[half], rows.score[half], None) for half in np.array_split(part, 4)]


@pytest.mark.parametrize("distinct", [1, 2, 8, None])
@pytest.mark.parametrize(("direction", "protocol"), [("high", "exact"), ("low", "approximate"), ("high", "topk")])
def test_no_sample_changes_the_selection(
    monkeypatch: pytest.MonkeyPatch, distinct: int | None, direction: str, protocol: str
) -> None:
    rows = random_rows(N, 3, distinct)
    assert rows.score is not None
    chosen = spec(protocol, 0.1, 0.5, direction=direction)
    order = np.argsort(rows.score)
    samples = {
        "fair": np.arange(0, N, 3), "the least": order[: N // 4], "the greatest": order[-N // 4 :], "one": [7],
        "the same row": np.full(40, 7), "all": np.arange(N),
    }  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(streamed_drawing, "OPEN_ROWS", 2**20)
        truth = _columns(rows, chosen)
    for name, at in samples.items():
        for kind in (np.float32, np.float64):
            typed = ArrayRows(rows.example_id, rows.score.astype(kind))
            got = _columns(cut(typed, 9, 1), chosen, lambda at=at, typed=typed: _some(typed, at), threads=2)
            assert same(got, truth), name


def test_one_pass_with_a_fair_sample_and_more_without() -> None:
    for distinct in (8, None):
        rows = random_rows(N, 4, distinct)
        source = _Counting(cut(rows, 20, 2))
        _columns(source, spec("exact", 0.1, 0.5), lambda rows=rows: _some(rows, np.arange(0, N, 2)))
        assert source.reads == 20
        source = _Counting(cut(rows, 20, 2))
        _columns(source, spec("exact", 0.1, 0.5))
        assert source.reads > 20


@pytest.mark.parametrize("missing", ["exclude", "explore"])
def test_rows_without_a_score(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(N, 5)
    assert rows.score is not None
    rows.score[::7] = np.nan
    for direction in ("high", "low"):
        chosen = spec("exact", 0.1, 0.5, direction=direction, missing=missing)
        got = _columns(cut(rows, 9, 1), chosen, lambda: _some(rows, np.arange(0, N, 2)))
        with monkeypatch.context() as patch:
            patch.setattr(streamed_drawing, "OPEN_ROWS", 2**20)
            assert same(got, _columns(rows, chosen))


def test_codes_are_counted_in_either_arm() -> None:
    rows = random_rows(N, 6, 5, classes=4)
    assert rows.code is not None
    table = calibrated_selection(cut(rows, 9, 1), spec("exact", 0.1, 0.5), 5)
    code = dict(zip(rows.example_id.tolist(), rows.code.tolist()))
    counts = table.facts["class_counts"]
    written = table.table()
    for arm in ("signal", "exploration"):
        mine = [code[one] for one, of in zip(written["example_id"].to_pylist(), written["arm"].to_pylist()) if of == arm]
        assert counts[arm] == np.bincount(mine, minlength=4).tolist()
    assert counts["full"] == np.bincount(rows.code, minlength=4).tolist()


@pytest.mark.parametrize("order", ["ascending", "backwards", "shuffled"])
def test_a_spool_gives_back_rows_by_id(order: str) -> None:
    generator = np.random.default_rng(1)
    ids = np.sort(generator.choice(10**6, 3000, replace=False)).astype(np.int64) - 5 * 10**5
    states = generator.choice([SIGNAL, EXPLORE, OPEN], 3000).astype(np.uint8)
    decided_of = dict(zip(ids.tolist(), generator.choice([SIGNAL, EXPLORE, DROPPED], 3000).tolist()))
    pieces = np.split(np.arange(3000), [1, 500, 500, 1700])
    if order == "backwards":
        pieces = pieces[::-1]
    elif order == "shuffled":
        pieces = np.split(generator.permutation(3000), 4)
    held, decided = Spool(), []
    for piece in pieces:
        halves = np.array_split(piece, 2)
        held.add([ids[half] for half in halves], [states[half] for half in halves])
        decided += [decided_of[int(ids[at])] for at in piece if states[at] == OPEN]
    found = list(held.chosen(np.array(decided, dtype=np.uint8)))
    got = list(zip(np.concatenate([one for one, _ in found]).tolist(), np.concatenate([arm for _, arm in found]).tolist()))
    final = [(one, decided_of[one] if state == OPEN else int(state)) for one, state in zip(ids.tolist(), states.tolist())]
    assert got == [(one, state) for one, state in final if state != DROPPED]


def test_a_full_temporary_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, max_size: int) -> None:
            pass

        def write(self, data: bytes) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", Full)
    with pytest.raises(StageError, match=r"temporary folder .* is full"):
        calibrated_selection(random_rows(N, 7), spec("exact", 0.1, 0.5), 5)


def files_that_overlap() -> None:
    """Select from one table, in order and not; for a process of its own."""
    import sys

    with tempfile.TemporaryDirectory() as name:
        folder, ids = Path(name), np.arange(N, dtype=np.int64) * 3
        score = np.random.default_rng(8).random(N).astype(np.float32)
        written = []
        for kind, order in (("ordered", np.arange(N)), ("shuffled", np.random.default_rng(9).permutation(N))):
            (folder / kind).mkdir()
            for number, part in enumerate(np.array_split(order, 5)):
                columns = {"example_id": ids[part], "score": score[part]}
                arrays = [pa.Array.from_buffers(pa.from_numpy_dtype(column.dtype), len(part), [None, pa.py_buffer(column)])
                          for column in columns.values()]  # fmt: skip
                table = pa.Table.from_arrays(arrays, list(columns))
                pq.write_table(table, folder / kind / f"{number}.parquet", row_group_size=500)
            out = folder / f"{kind}.parquet"
            select_file(str(folder / kind), score="score", direction="high", keep=0.1, alpha=0.5, out=str(out))
            written.append(out.read_bytes())
    assert written[0] == written[1]
    # 0.3 s and 40 MB that no selection needs.
    assert "pandas" not in sys.modules


def test_files_that_overlap_give_the_same_bytes_and_pandas_is_not_loaded() -> None:
    in_own_process(files_that_overlap)
