"""The merge stage: one score row for each train row and no other, and what is known of every column."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import CorruptError, InputError
from cluster.fingerprint import sha256
from cluster.record import Seal, Unit
from cluster.storage import Store, filesystem
from tasks import merge_totals
from tasks.dataset import Dataset
from tasks.merge import MergeInputs, merge_key, merge_stage, own_scores_key, scores_digest
from tasks.merge_columns import spearman
from tasks.pool import SerialPool
from tasks.proxy import ProxyInputs, ProxySpec, proxy_stage
from tasks.schemas import TRAIN, score_table_schema
from tasks.score import ScoreInputs, ScoreSpec, score_stage
from tasks.selection.order import sortable_bits
from tasks.shard import shard_stage
from tasks.sources.spec import DataSpec
from tasks.tables import encode_table, load_part, part_check
from tests.oracles import scores as oracle
from tests.tasks.stage_case import CountingPool, Killed, dying_at

ROWS = 300
PROXY = ProxySpec.model_validate({"model": {"use": "mlp", "args": {"hidden": [8]}}, "seeds": 3, "steps": 15})
SPEC = ScoreSpec.model_validate({"scores": ["random", "el2n", "forgetting"], "forward_rows": 32})


class Base:
    """Hold a store with an index, and the ids and labels of its train rows."""

    def __init__(self, folder: Path) -> None:
        generator = np.random.default_rng(0)
        labels = generator.integers(0, 3, ROWS)
        features = (generator.normal(size=(ROWS, 4)) + labels[:, None]).astype(np.float32)
        self.ids = 2**61 + generator.permutation(ROWS)
        folder.mkdir(exist_ok=True)
        pq.write_table(
            pa.table(
                {
                    "key": self.ids, "label": labels,
                    "features": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), 4),
                }
            ),
            folder / "data.parquet",
            row_group_size=20,
        )  # fmt: skip
        self.labels = dict(zip(self.ids.tolist(), labels.tolist()))
        self.store = Store(str(folder / "store"))
        self.folder = folder
        self.data = self.spec(60)
        self.index = shard_stage(self.data, self.store, SerialPool())
        self.dataset = Dataset(self.data, self.index, self.store)
        self.train = self.dataset.ids(TRAIN)

    def spec(self, shard_rows: int) -> DataSpec:
        return DataSpec.model_validate(
            {
                "source": {"use": "parquet", "args": {"id_column": "key"}}, "train": str(self.folder / "data.parquet"),
                "test_fraction": 0.1, "shard_rows": shard_rows,
            }
        )  # fmt: skip

    def own(self, table: dict[str, Any], name: str = "own.parquet", **changes: Any) -> MergeInputs:
        """Return inputs with the user's own scores, written as one file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), path)
        return MergeInputs(self.data, self.index, scores_uri=str(path), **changes)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECATEUR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(tmp_path_factory.mktemp("merge"))


@pytest.fixture(scope="module")
def score(base: Base) -> Seal:
    proxies = proxy_stage(PROXY, ProxyInputs(base.data, base.index, (1.0,), "", 0), base.store, SerialPool())
    return score_stage(SPEC, ScoreInputs(base.data, base.index, PROXY, proxies, "", 0), base.store, SerialPool())


@pytest.fixture(scope="module")
def merged(base: Base, score: Seal) -> Seal:
    return merge_stage(MergeInputs(base.data, base.index, score), base.store, SerialPool())


def table_of(store: Store, seal: Seal) -> pa.Table:
    return pa.concat_tables([load_part(store, part).replace_schema_metadata(None) for part in seal.parts])


def test_the_table_has_each_train_row_once_with_its_label_and_scores(base: Base, score: Seal, merged: Seal) -> None:
    table = table_of(base.store, merged)
    columns = list(score.meta["columns"])
    assert table.schema.equals(score_table_schema(columns))
    said = load_part(base.store, merged.parts[0]).schema.metadata
    assert said[b"mode"] == b'"eval"' and said[b"augmentation"] == b'"none"' and b"seeds" in said
    assert sorted(table.column("example_id").to_pylist()) == base.train.tolist()
    assert all(base.labels[row["example_id"]] == row["label"] for row in table.to_pylist())
    scored = {row["example_id"]: row for part in score.parts for row in load_part(base.store, part).to_pylist()}
    for row in table.to_pylist():
        assert {name: row[name] for name in columns} == {name: scored[row["example_id"]][name] for name in columns}
    assert merged.key == merge_key(score.key, base.index.key)


def test_trap_1_parts_follow_their_shard_row_for_row(base: Base, merged: Seal) -> None:
    parts = {part.name.rpartition("/")[2]: part for part in merged.parts}
    for shard in base.dataset.shards():
        ids = load_part(base.store, parts[shard.part_name]).column("example_id").to_numpy()
        np.testing.assert_array_equal(ids, base.dataset.read(shard, TRAIN).example_id)
        assert not np.array_equal(ids, np.sort(ids))


def test_the_seal_knows_directions_histograms_and_sortable_counts(base: Base, merged: Seal) -> None:
    table = table_of(base.store, merged)
    assert merged.meta["columns"] == table.column_names[2:]
    assert merged.meta["num_rows"] == len(base.train)
    assert merged.meta["directions"]["el2n"] == "high" and merged.meta["directions"]["el2n_std"] is None
    assert merged.meta["mode"] == "eval" and len(merged.meta["seeds"]) == 3
    for name in table.column_names[2:]:
        values = table.column(name).to_numpy()
        histogram = merged.meta["histograms"][name]
        assert (histogram["low"], histogram["high"]) == (float(values.min()), float(values.max()))
        expected = np.histogram(values.astype(np.float64), 64, (values.min(), values.max()))[0]
        assert histogram["counts"] == expected.tolist() and sum(histogram["counts"]) == len(base.train)
        words: dict[str, int] = {}
        for word in (sortable_bits(values) >> np.uint64(48)).tolist():
            words[str(word)] = words.get(str(word), 0) + 1
        assert merged.meta["sortable"][name] == words


def test_rank_correlations_between_seeds_are_spearmans(base: Base, merged: Seal) -> None:
    table = table_of(base.store, merged)
    matrix = merged.meta["rank_correlations"]["el2n"]
    assert set(merged.meta["rank_correlations"]) == {"el2n", "forgetting"}
    for i in range(3):
        for j in range(3):
            a, b = table.column(f"el2n_s{i}").to_pylist(), table.column(f"el2n_s{j}").to_pylist()
            assert matrix[i][j] == pytest.approx(oracle.spearman(a, b), abs=2e-6)
    assert merged.meta["rank_correlation_rows"] == {"how": "all rows", "rows": len(base.train)}


def test_spearman_has_mean_ranks_for_ties_and_none_for_constants() -> None:
    a, b = np.array([1.0, 1.0, 2.0, 3.0, 3.0]), np.array([5.0, 4.0, 4.0, 1.0, 2.0])
    got = spearman([a, b, np.ones(5)])
    assert got[0][1] == pytest.approx(oracle.spearman(a.tolist(), b.tolist()), abs=1e-6)
    assert got[0][0] == 1.0 and got[2] == [None, None, None] and got[0][2] is None
    assert spearman([np.zeros(0), np.zeros(0)]) == [[None, None], [None, None]]


def test_beyond_a_million_rows_a_hash_sample_is_taken_and_named(
    base: Base, score: Seal, merged: Seal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_totals, "EXACT_ROWS", 100)
    samples = []
    for shard_rows in (60, 25):
        data = base.spec(shard_rows)
        store = Store(str(tmp_path / str(shard_rows)))
        index = shard_stage(data, store, SerialPool())
        table = table_of(base.store, merged)
        path = tmp_path / "own.parquet"
        pq.write_table(table, path)
        seal = merge_stage(MergeInputs(data, index, scores_uri=str(path)), store, SerialPool())
        samples.append((seal.meta["rank_correlations"], seal.meta["rank_correlation_rows"]))
    assert samples[0] == samples[1], "the sample is a function of the ids, not of the shards"
    assert samples[0][1]["how"] == "hash sample" and 60 < samples[0][1]["rows"] < 150
    assert samples[0][0]["el2n"][0][1] == pytest.approx(merged.meta["rank_correlations"]["el2n"][0][1], abs=0.2)


def test_a_killed_merge_goes_on_and_a_finished_one_does_nothing(base: Base, score: Seal, tmp_path: Path) -> None:
    expected = merge_stage(MergeInputs(base.data, base.index, score), base.store, SerialPool())
    unit = Unit(base.store, "merge", expected.key)
    base.store.remove(f"{unit.folder}/seal.json")
    removed = [part.name for part in expected.parts[:3]]
    for name in removed:
        base.store.remove(name)
    with pytest.raises(Killed):
        merge_stage(MergeInputs(base.data, base.index, score), dying_at(base.store, 2, unit.folder), SerialPool())
    pool = CountingPool()
    assert merge_stage(MergeInputs(base.data, base.index, score), base.store, pool) == expected
    again = CountingPool()
    assert merge_stage(MergeInputs(base.data, base.index, score), base.store, again) == expected
    assert again.items == []


def rewritten(base: Base, score: Seal, change: Any, name_of_change: str) -> Seal:
    """Return the score seal with the rows of its first part changed, as a broken writer would have left it."""
    key = sha256(name_of_change.encode())
    unit = Unit(base.store, "score", key)
    parts = []
    for number, part in enumerate(score.parts):
        table = load_part(base.store, part)
        if number == 0:
            table = change(table)
        name = part.name.rpartition("/")[2]
        parts.append(unit.publish_part(name, encode_table(table, key), part_check(key, name)))
    return Seal("score", key, tuple(parts), score.meta)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.slice(1), "1 missing, 0 extra, 0 repeated"),
        (lambda table: pa.concat_tables([table, table.slice(0, 2)]), "0 missing, 0 extra, 2 repeated"),
        (lambda table: table.take(list(reversed(range(table.num_rows)))), "in their order: 0 missing"),
        (
            lambda table: table.set_column(0, table.schema.field(0), pa.array(table.column(0).to_numpy() + 2**40)),
            "missing",
        ),
    ],
)
def test_trap_1_score_parts_that_do_not_match_the_index_are_refused(
    base: Base, score: Seal, change: Any, message: str
) -> None:
    broken = rewritten(base, score, change, message)
    with pytest.raises(CorruptError, match=message):
        merge_stage(MergeInputs(base.data, base.index, broken), base.store, SerialPool())
    assert Unit(base.store, "merge", merge_key(broken.key, base.index.key)).seal() is None


def test_scores_of_other_shards_are_refused(base: Base, score: Seal) -> None:
    partial = Seal("score", "f" * 64, score.parts[1:], score.meta)
    with pytest.raises(CorruptError, match="4 of 5 shards"):
        merge_stage(MergeInputs(base.data, base.index, partial), base.store, SerialPool())


def test_own_scores_are_joined_by_id_in_any_order_and_type(base: Base) -> None:
    generator = np.random.default_rng(1)
    ids = generator.permutation(np.concatenate([base.dataset.ids(split) for split in (0, 1, 2)]))
    hard = generator.normal(size=len(ids))
    table = {
        "hard": hard, "count": generator.integers(0, 9, len(ids)).astype(np.int16), "row": ids,
        "half": hard.astype(np.float16), "name": [f"row {i}" for i in ids.tolist()],
        "flag": generator.random(len(ids)) < 0.5,
    }  # fmt: skip
    seal = merge_stage(base.own(table, id_column="row"), base.store, SerialPool())
    merged = table_of(base.store, seal)
    assert merged.column_names == ["example_id", "label", "hard", "count", "half"]
    assert sorted(merged.column("example_id").to_pylist()) == base.train.tolist()
    by_id = dict(zip(ids.tolist(), hard.astype(np.float32).tolist()))
    assert all(by_id[row["example_id"]] == row["hard"] for row in merged.to_pylist())
    # The rows of other splits, which nobody but the index can know, are left out and said so.
    assert seal.meta["rows_of_other_splits"] == ROWS - len(base.train)
    assert seal.meta["ignored_columns"] == ["name", "flag"]
    assert seal.meta["directions"] == {"hard": None, "count": None, "half": None}
    assert seal.meta["rank_correlations"] == {}


def test_own_scores_may_be_a_folder_and_keep_their_key_when_moved(base: Base, tmp_path: Path) -> None:
    for number, rows in enumerate((slice(0, 100), slice(100, None))):
        for name in ("one", "two"):
            (tmp_path / name).mkdir(exist_ok=True)
            table = pa.table({"example_id": base.train[rows], "mine": np.arange(len(base.train), dtype=float)[rows]})
            pq.write_table(table, tmp_path / name / f"{name}-{number}.parquet")
    first = MergeInputs(base.data, base.index, scores_uri=str(tmp_path / "one"))
    second = MergeInputs(base.data, base.index, scores_uri=str(tmp_path / "two"))
    assert first.source_key() == second.source_key()
    seal = merge_stage(first, base.store, SerialPool())
    assert merge_stage(second, base.store, CountingPool()) == seal
    values = {row["example_id"]: row["mine"] for row in table_of(base.store, seal).to_pylist()}
    assert [values[i] for i in base.train.tolist()] == list(range(len(base.train)))
    assert own_scores_key(scores_digest(str(tmp_path / "one")), "row") != first.source_key()


def test_a_merged_table_is_itself_a_source_of_scores(base: Base, merged: Seal) -> None:
    table = table_of(base.store, merged)
    seal = merge_stage(base.own({name: table.column(name) for name in table.column_names}), base.store, SerialPool())
    assert table_of(base.store, seal).sort_by("example_id").equals(table.sort_by("example_id"))


def nothing_written(base: Base, inputs: MergeInputs) -> bool:
    unit = Unit(base.store, "merge", merge_key(inputs.source_key(), base.index.key))
    return not base.store.list(unit.folder)


def test_trap_14_own_scores_with_wrong_ids_are_refused_with_counts(base: Base) -> None:
    ids, values = base.train, np.arange(len(base.train), dtype=float)
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"example_id": ids[7:], "s": values[7:]}, ["7 train rows have no score", "0 of"]),
        ({"example_id": np.append(ids, [1, 2]), "s": np.append(values, [0, 0])}, ["2 of", "not in the data"]),
        ({"example_id": np.append(ids, ids[:3]), "s": np.append(values, [0] * 3)}, ["3 of", "repeat an id"]),
        ({"example_id": np.arange(len(ids)), "s": values}, [f"{len(ids)} train rows have no score", "0 match"]),
        # Beyond 2^53 neighbours fall together in float64: such ids are refused, not rounded.
        ({"example_id": ids.astype(np.float64), "s": values}, ["double", "whole numbers"]),
        ({"example_id": [str(i) for i in ids.tolist()], "s": values}, ["string", "whole numbers"]),
        ({"example_id": pa.array([None, *ids[1:].tolist()]), "s": values}, ["1 of", "null"]),
        ({"key": ids, "s": values}, ["no id column 'example_id'", "id_column"]),
        ({"example_id": pa.array(ids.astype(np.uint64) + np.uint64(2**63)), "s": values}, ["int64"]),
    ]
    for table, words in cases:
        inputs = base.own(table)
        with pytest.raises(InputError) as caught:
            merge_stage(inputs, base.store, SerialPool())
        for word in words:
            assert word in str(caught.value), str(caught.value)
        assert nothing_written(base, inputs)


def test_own_scores_with_wrong_values_are_refused_with_counts(base: Base) -> None:
    ids = base.train
    values = np.arange(len(ids), dtype=float)
    nan, huge, null = values.copy(), values.copy(), [None, *values[1:].tolist()]
    nan[[2, 5]], huge[3] = np.nan, 1e300
    wrong = [base.labels[i] for i in ids.tolist()]
    wrong[0], wrong[1] = (wrong[0] + 1) % 3, (wrong[1] + 1) % 3
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"example_id": ids, "s": nan}, ["2 of", "NaN"]),
        ({"example_id": ids, "s": huge}, ["1 of", "float32"]),
        ({"example_id": ids, "s": pa.array(null)}, ["1 of", "null"]),
        ({"example_id": ids, "s": ["a"] * len(ids)}, ["no numeric column"]),
        ({"example_id": ids, "s": values, "label": wrong}, ["differs from the data's for 2 of"]),
    ]
    for table, words in cases:
        inputs = base.own(table)
        with pytest.raises(InputError) as caught:
            merge_stage(inputs, base.store, SerialPool())
        for word in words:
            assert word in str(caught.value), str(caught.value)
        assert nothing_written(base, inputs)


def test_own_scores_that_cannot_be_read_are_refused(base: Base, tmp_path: Path) -> None:
    def refused(uri: Path, message: str) -> None:
        with pytest.raises(InputError, match=message):
            merge_stage(MergeInputs(base.data, base.index, scores_uri=str(uri)), base.store, SerialPool())

    refused(tmp_path / "nowhere.parquet", "no file or folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"no \.parquet file")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    refused(tmp_path / "torn.parquet", "not readable Parquet")
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        pq.write_table(pa.table({"example_id": base.train, name: base.train}), tmp_path / "two" / f"{name}.parquet")
    refused(tmp_path / "two", "other columns")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[str]:
    """Return the URI of an empty bucket of a fresh server on the loopback."""
    from moto.server import ThreadedMotoServer

    caplog.set_level("ERROR", "werkzeug")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    filesystem("s3://own-scores")[0].mkdir("own-scores")
    yield "s3://own-scores"
    server.stop()


def test_own_scores_may_lie_in_s3(base: Base, bucket: str) -> None:
    fs = filesystem(bucket)[0]
    for number, rows in enumerate((slice(0, 90), slice(90, None))):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"example_id": base.train[rows], "far": base.train[rows] - 2**61}), sink)
        fs.pipe_file(f"own-scores/scores/part-{number}.parquet", sink.getvalue().to_pybytes())
    inputs = MergeInputs(base.data, base.index, scores_uri=f"{bucket}/scores")
    seal = merge_stage(inputs, base.store, SerialPool())
    assert seal.key == merge_key(own_scores_key(scores_digest(f"{bucket}/scores")), base.index.key)
    assert all(row["far"] == row["example_id"] - 2**61 for row in table_of(base.store, seal).to_pylist())
    one = MergeInputs(base.data, base.index, scores_uri=f"{bucket}/scores/part-0.parquet")
    with pytest.raises(InputError, match=f"{len(base.train) - 90} train rows have no score"):
        merge_stage(one, base.store, SerialPool())
    with pytest.raises(InputError, match="no file or folder"):
        scores_digest(f"{bucket}/nowhere")


def test_exactly_one_source_is_given(base: Base, score: Seal) -> None:
    for inputs in (MergeInputs(base.data, base.index), MergeInputs(base.data, base.index, score, scores_uri="x")):
        with pytest.raises(InputError, match="exactly one"):
            merge_stage(inputs, base.store, SerialPool())
