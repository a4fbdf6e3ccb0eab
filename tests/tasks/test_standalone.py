"""`select_file`: selection from any Parquet, to one file that is replaced whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError, StageError
from tasks.schemas import SELECTION
from tasks.standalone import select_file
from tests.oracles import selection as oracle

N = 700
Frame = dict[str, Any]


def _frame(seed: int = 0) -> Frame:
    generator = np.random.default_rng(seed)
    ids = generator.permutation(N).astype(np.int64) * 10**15 - 2**61
    return {
        "example_id": ids,
        "difficulty": np.round(generator.random(N), 2),
        "color": generator.choice(["red", "green", "blue"], N, p=[0.7, 0.25, 0.05]),
    }


def _write(folder: Path, frame: Frame, files: int = 1, order: int = 0, **options: Any) -> str:
    table = pa.table(frame).take(np.random.default_rng(order).permutation(N) if order else np.arange(N))
    if files == 1:
        pq.write_table(table, folder / "scores.parquet", **options)
        return str(folder / "scores.parquet")
    target = folder / f"scores-{files}-{order}"
    cuts = np.linspace(0, N, files + 1).astype(int)
    for number, (start, stop) in enumerate(pairwise(cuts)):
        path = target / f"part={number % 3}" / f"{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(start, stop - start), path, **options)
    return str(target)


def _select(scores: str, out: Path | str, **settings: Any) -> dict[str, Any]:
    chosen = {"score": "difficulty", "direction": "high", "keep": 0.2, "alpha": 0.5, **settings}
    return select_file(scores, out=str(out), **chosen)


def test_the_file_holds_what_the_oracle_selects(tmp_path: Path) -> None:
    frame = _frame()
    summary = _select(_write(tmp_path, frame), tmp_path / "new" / "out.parquet", seed=3, direction="low")
    table = pq.read_table(tmp_path / "new" / "out.parquet")
    assert table.schema.equals(SELECTION)
    truth = oracle.select(
        frame["example_id"].tolist(), frame["difficulty"].tolist(), "low", 0.2, protocol="exact", alpha=0.5, gamma=None,
        seed=3,
    )
    assert table.column("example_id").to_pylist() == [row.example_id for row in truth]
    assert table.column("arm").to_pylist() == [row.arm for row in truth]
    assert table.column("inclusion_prob").to_pylist() == [float(row.inclusion_prob) for row in truth]
    assert np.allclose(table.column("weight"), [float(row.weight) for row in truth], rtol=1e-7)
    assert (summary["num_kept"], summary["num_signal"], summary["id_column"]) == (140, 70, "example_id")
    assert json.loads(json.dumps(summary)) == summary
    metadata = {name.decode(): json.loads(value) for name, value in pq.read_schema(summary["out"]).metadata.items()
                if name != b"ARROW:schema"}
    assert metadata["protocol"] == "exact"
    assert (metadata["n"], metadata["alpha"], metadata["estimator"], metadata["score"]) == (N, 0.5, "ht", "difficulty")


@pytest.mark.parametrize("by", [None, "color"])
def test_the_same_bytes_from_one_seven_and_sixty_four_files_in_any_order(tmp_path: Path, by: str | None) -> None:
    frame = _frame()
    out = []
    for files, order in ((1, 0), (7, 1), (64, 2), (64, 3)):
        path = tmp_path / f"out-{files}-{order}"
        _select(_write(tmp_path, frame, files, order, row_group_size=100), path, by=by)
        out.append(path.read_bytes())
    assert len(set(out)) == 1


def test_other_column_names_types_and_dictionaries(tmp_path: Path) -> None:
    frame = _frame()
    path = _write(tmp_path, frame)
    _select(path, tmp_path / "usual.parquet", by="color")
    changed = {
        "row": frame["example_id"],
        "difficulty": frame["difficulty"] * 100,
        "color": pa.array(frame["color"]).dictionary_encode(),
        "id": np.zeros(N),
    }
    changed["difficulty"] = np.round(changed["difficulty"]).astype(np.int16)
    _select(_write(tmp_path, changed), tmp_path / "changed.parquet", id_column="row", by="color")
    first, second = (pq.read_table(tmp_path / name) for name in ("usual.parquet", "changed.parquet"))
    assert first.equals(second)


def test_alpha_that_rounds_to_no_signal_is_said(tmp_path: Path) -> None:
    path = _write(tmp_path, _frame())
    alone = _select(path, tmp_path / "out", keep=1 / N, alpha=0.5)
    assert (alone["num_kept"], alone["num_signal"]) == (1, 0)
    assert alone["notes"] == ["alpha 0.5 of 1 kept rounds to no signal: all of it is drawn at random"]
    assert _select(path, tmp_path / "out", keep=10 / N, alpha=0.5)["notes"] == []


def test_narrow_integer_ids_are_the_same_ids(tmp_path: Path) -> None:
    frame = _frame()
    ids = np.arange(N)
    for kind in (np.int64, np.int32, np.uint16, np.uint64):
        _select(_write(tmp_path, {**frame, "example_id": ids.astype(kind)}), tmp_path / f"{np.dtype(kind)}.parquet")
    assert len({(tmp_path / f"{np.dtype(kind)}.parquet").read_bytes() for kind in (np.int64, np.int32, np.uint16)}) == 1


def test_trap_08_groups_get_proportional_budgets_that_add_up(tmp_path: Path) -> None:
    frame = _frame()
    for keep in (0.05, 0.1, 0.333, 1.0):
        summary = _select(_write(tmp_path, frame), tmp_path / "out", keep=keep, by="color")
        groups = {group["value"]: group for group in summary["groups"]}
        assert list(groups) == ["blue", "green", "red"]
        m = round(keep * N)
        assert sum(group["kept"] for group in groups.values()) == m == pq.read_metadata(tmp_path / "out").num_rows
        for value, group in groups.items():
            assert group["n"] == (frame["color"] == value).sum()
            assert abs(group["kept"] - m * group["n"] / N) < 1
        table = pq.read_table(tmp_path / "out")
        assert (1 / table.column("inclusion_prob").to_numpy()).sum() == pytest.approx(N, rel=1e-9)
        color = dict(zip(frame["example_id"].tolist(), frame["color"].tolist()))
        kept = [color[example] for example in table.column("example_id").to_pylist()]
        assert {value: kept.count(value) for value in groups} == {v: g["kept"] for v, g in groups.items()}


def test_groups_without_a_share_are_named_and_exact_refuses_them(tmp_path: Path) -> None:
    frame = _frame()
    frame["color"][:3] = ["teal", "pink", "pink"]
    path = _write(tmp_path, frame)
    summary = _select(path, tmp_path / "out", keep=0.1, by="color", protocol="random", alpha=None)
    assert summary["uncovered_groups"] == 2
    assert summary["covered"] == N - 3
    assert "2 groups are too small" in summary["notes"][0]
    assert summary["weight_sum"] == pytest.approx(70)
    with pytest.raises(InputError, match="of a group of"):
        _select(path, tmp_path / "out", keep=0.1, by="color")


def test_tempered_takes_gamma_as_text_too(tmp_path: Path) -> None:
    path = _write(tmp_path, _frame())
    summary = _select(path, tmp_path / "out", protocol="tempered", params={"gamma": "0.5"})
    assert summary["gamma"] == 0.5
    assert summary["weight_sum"] == pytest.approx(140)
    with pytest.raises(InputError, match="did you mean 'gamma'"):
        _select(path, tmp_path / "out", protocol="tempered", params={"gama": 1})
    with pytest.raises(InputError, match="gamma is 'half'"):
        _select(path, tmp_path / "out", protocol="tempered", params={"gamma": "half"})


def _nan(frame: Frame) -> Frame:
    return {**frame, "difficulty": np.where(np.arange(N) % 350 == 3, np.nan, frame["difficulty"])}


def _null(frame: Frame) -> Frame:
    return {**frame, "difficulty": pa.array([None if i < 5 else float(i) for i in range(N)])}


def _same_ids(frame: Frame) -> Frame:
    return {**frame, "example_id": np.zeros(N, dtype=np.int64)}


def _ids(values: Any) -> Callable[[Frame], Frame]:
    return lambda frame: {**frame, "example_id": values}


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (_nan, {}, "2 of 700 scores are NaN"),
        (_nan, {"protocol": "random", "alpha": None}, "2 of 700 scores are NaN"),
        (_null, {}, "5 of 700 scores are NaN or null"),
        (_same_ids, {}, "occur more than once"),
        (_ids(np.arange(N, dtype=np.float32)), {}, "whole numbers"),
        (_ids([str(i) for i in range(N)]), {}, "whole numbers"),
        (_ids(np.arange(N, dtype=np.uint64) + np.uint64(2**63)), {}, "do not fit int64"),
        (_ids(pa.array([None, *range(1, N)])), {}, "1 ids of"),
        (None, {"score": "dificulty"}, "did you mean 'difficulty'"),
        (None, {"score": "color"}, "numeric column"),
        (None, {"id_column": "example"}, "did you mean 'example_id'"),
        (None, {"by": "colour"}, "did you mean 'color'"),
        (None, {"by": "difficulty"}, "groups are integers, text or booleans"),
        (None, {"protocol": "exakt"}, "did you mean 'exact'"),
        (None, {"protocol": "exact", "alpha": 1.0}, "no weight makes the estimate unbiased"),
        (None, {"alpha": 1.5}, "alpha is 1.5"),
        (None, {"keep": 0.0}, "keep is 0"),
        (None, {"keep": 0.0001}, "nothing would be kept"),
        (None, {"direction": "up"}, "give high or low"),
        (None, {"direction": None}, "give direction"),
    ],
)
def test_wrong_input_leaves_the_old_file(
    tmp_path: Path, change: Callable[[Frame], Frame] | None, settings: dict[str, Any], message: str
) -> None:
    frame = _frame()
    scores = _write(tmp_path, change(frame) if change else frame)
    out = tmp_path / "out.parquet"
    out.write_bytes(b"old")
    with pytest.raises(InputError, match=message):
        _select(scores, out, **settings)
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "scores.parquet"]


def test_no_id_column_and_no_parquet_are_said_so(tmp_path: Path) -> None:
    path = _write(tmp_path, {"difficulty": np.zeros(N)})
    with pytest.raises(InputError, match="no id column: neither example_id nor id"):
        _select(path, tmp_path / "out")
    with pytest.raises(InputError, match="is not there"):
        _select(str(tmp_path / "nothing"), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \.parquet file"):
        _select(str(tmp_path / "empty"), tmp_path / "out")
    (tmp_path / "text.parquet").write_text("not a table")
    with pytest.raises(InputError, match="not readable Parquet"):
        _select(str(tmp_path / "text.parquet"), tmp_path / "out")


def test_out_may_not_be_the_scores_nor_inside_them(tmp_path: Path) -> None:
    frame = _frame()
    one, many = _write(tmp_path, frame), _write(tmp_path, frame, 7)
    link = tmp_path / "link.parquet"
    link.symlink_to(one)
    before = Path(one).read_bytes()
    for scores, out in ((one, one), (one, f"file://{one}"), (one, link), (many, f"{many}/out.parquet")):
        with pytest.raises(InputError, match="is the scores or lies inside"):
            _select(scores, out)
    for out in (tmp_path, f"{tmp_path}/new/"):
        with pytest.raises(InputError, match="is a folder"):
            _select(one, out)
    with pytest.raises(InputError, match="scheme is not known"):
        _select(one, "gs://bucket/out.parquet")
    with pytest.raises(InputError, match="not a writable folder"):
        _select(many, f"{one}/out.parquet")
    assert Path(one).read_bytes() == before
    assert len(list(Path(many).rglob("*"))) == 10


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path, _frame())
    out = tmp_path / "out.parquet"
    out.write_bytes(b"old")
    real = os.fsync

    def full(descriptor: int) -> None:
        real(descriptor)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StageError, match="what was there is untouched"):
        _select(path, out)
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "scores.parquet"]


def test_edges_of_size(tmp_path: Path) -> None:
    constant = {"id": np.arange(N), "difficulty": np.full(N, 2.5)}
    path = _write(tmp_path, constant)
    for seed in (0, 1):
        _select(path, tmp_path / f"{seed}.parquet", seed=seed, keep=0.01, protocol="topk", alpha=None)
    first, second = (pq.read_table(tmp_path / f"{seed}.parquet").column("example_id").to_pylist() for seed in (0, 1))
    assert first != second
    assert first != list(range(7))
    summary = _select(path, tmp_path / "all.parquet", keep=1.0, alpha=0.3)
    everything = pq.read_table(tmp_path / "all.parquet")
    assert everything.column("example_id").to_pylist() == list(range(N))
    assert set(everything.column("inclusion_prob").to_pylist()) == {1.0}
    assert set(everything.column("weight").to_pylist()) == {1.0}
    assert summary["num_signal"] == 210
    pq.write_table(pa.table({"id": [7], "difficulty": [0.0]}), tmp_path / "one.parquet")
    assert _select(str(tmp_path / "one.parquet"), tmp_path / "of-one", keep=1.0)["num_kept"] == 1
    pq.write_table(pa.table({"id": [7], "difficulty": [0.0]}).slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(InputError, match="no rows"):
        _select(str(tmp_path / "none.parquet"), tmp_path / "of-none", keep=1.0)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Return the URI of a bucket on a server in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        from cluster.s3 import S3Objects

        S3Objects("s3://scores").fs.mkdir("scores")
        yield "s3://scores"
    server.stop()


def test_scores_and_out_in_s3(tmp_path: Path, bucket: str) -> None:
    from cluster.s3 import S3Objects

    folder = _write(tmp_path, _frame(), 3)
    objects = S3Objects(bucket)
    for path in Path(folder).rglob("*.parquet"):
        objects.replace(f"in/{path.relative_to(folder)}", path.read_bytes())
    _select(folder, tmp_path / "local.parquet")
    _select(f"{bucket}/in", f"{bucket}/out.parquet")
    assert objects.read("out.parquet") == (tmp_path / "local.parquet").read_bytes()
    with pytest.raises(InputError, match="lies inside"):
        _select(f"{bucket}/in", f"{bucket}/in/out.parquet")
    with pytest.raises(InputError, match="is not there"):
        _select(f"{bucket}/nothing", f"{bucket}/out.parquet")
    with pytest.raises(InputError, match="did you mean"):
        _select(f"{bucket}/in", f"{bucket}/out.parquet", score="dificulty")
    assert objects.read("out.parquet") == (tmp_path / "local.parquet").read_bytes()


@pytest.mark.parametrize("seed", range(4))
def test_an_id_that_occurs_twice_is_refused_whether_it_is_selected_or_not(tmp_path: Path, seed: int) -> None:
    ids = np.arange(997)
    ids[500] = 3
    path, out = tmp_path / "scores.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"example_id": ids, "s": np.random.default_rng(0).normal(size=997)}), path)
    with pytest.raises(InputError, match=r"more than once.*3 for example"):
        select_file(str(path), score="s", direction="high", keep=0.1, alpha=0.3, seed=seed, out=str(out))
    assert not out.exists()
