"""The select stage on a real index and score table: seals, parts, resuming, and the facts in the seal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import CorruptError, InputError
from cluster.record import Seal, Unit
from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.merge import MergeInputs, merge_stage
from tasks.pool import SerialPool
from tasks.schemas import SELECTION, TRAIN
from tasks.selecting import SelectInputs, SelectionUnit, selection_key, selection_stage
from tasks.selection import SelectionSpec, table
from tasks.selection.rows import ScoreTableRows
from tasks.selection.stage import load_selection
from tests.oracles import selection as oracle
from tests.oracles import slices, systematic
from tests.tasks.stage_case import DATA, CountingPool, Killed, dying_at, indexed, part_bytes

Case = tuple[Store, SelectInputs]
SPECS = {
    "random": SelectionSpec(protocol="random", keep=0.25),
    "topk": SelectionSpec(protocol="topk", keep=0.25, score="el2n"),
    "exact": SelectionSpec(protocol="exact", keep=0.25, score="el2n", alpha=0.4),
    "hard": SelectionSpec(protocol="approximate", keep=0.25, score="mine", alpha=0.4, direction="low"),
}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Return a store with an index and a score table of the user's own scores, one with few values, one with many."""
    folder = tmp_path_factory.mktemp("select")
    store, index = indexed(folder)
    ids = Dataset(DATA, index, store).ids(TRAIN)
    generator = np.random.default_rng(0)
    scores = {"example_id": ids, "el2n": generator.random(len(ids)), "mine": generator.integers(0, 3, len(ids)) - 1.0}
    pq.write_table(pa.table(scores), folder / "scores.parquet")
    merge = merge_stage(MergeInputs(DATA, index, scores_uri=str(folder / "scores.parquet")), store, SerialPool())
    return store, SelectInputs(DATA, index, merge)


def _units(inputs: SelectInputs, seed: int, *names: str) -> list[tuple[str, SelectionUnit]]:
    out = []
    for name in names:
        source = inputs.index if name == "random" else inputs.merge
        assert source is not None
        out.append((selection_key(SPECS[name], seed, source.key), SelectionUnit(SPECS[name], seed)))
    return out


def _columns(store: Store, seal: Seal) -> dict[str, list[Any]]:
    return dict(load_selection(store, seal).to_pydict())


def test_every_selection_is_the_oracles(case: Case) -> None:
    store, inputs = case
    assert inputs.merge is not None
    columns = {}
    for column in ("el2n", "mine"):
        rows = ScoreTableRows(store, inputs.merge, column, inputs.index)
        columns[column] = [batch for part in rows.pieces() for batch in rows.read(part)]
    ids = np.concatenate([batch.example_id for batch in columns["mine"]]).tolist()
    seals = selection_stage(_units(inputs, 11, *SPECS), inputs, store, SerialPool())
    for seal, (name, spec) in zip(seals, SPECS.items()):
        scores = np.concatenate([batch.score for batch in columns[spec.score or "el2n"]])  # type: ignore[misc]
        truth = oracle.select(
            ids, scores.tolist(), spec.kept_end or "high", 0.25, protocol=spec.protocol, alpha=spec.signal_share,
            gamma=None, seed=11,
        )
        got = _columns(store, seal)
        assert got["example_id"] == [row.example_id for row in truth], name
        assert got["arm"] == [row.arm for row in truth]
        assert got["inclusion_prob"] == [float(row.inclusion_prob) for row in truth]
        assert np.allclose(got["weight"], [float(row.weight) for row in truth], rtol=1e-7)
        part = load_selection(store, seal)
        assert part.schema.equals(SELECTION)
        assert json.loads(part.schema.metadata[b"score_table_key"]) == (inputs.merge.key if spec.score else None)


def test_a_selection_that_cannot_be_drawn_is_named(case: Case) -> None:
    store, inputs = case
    assert inputs.merge is not None
    spec = SelectionSpec(protocol="exact", keep=0.05, score="el2n", alpha=0.999)
    units = [(selection_key(spec, 1, inputs.merge.key), SelectionUnit(spec, 1))]
    with pytest.raises(InputError, match=r"keep 0\.05.*alpha 0\.999.*cannot be drawn: .*leaves no exploration"):
        selection_stage(units, inputs, store, SerialPool())


def test_slices_and_sizes_and_class_budgets_are_the_oracles(case: Case) -> None:
    store, inputs = case
    assert inputs.merge is not None
    rows = ScoreTableRows(store, inputs.merge, "el2n", inputs.index)
    batches = [batch for part in rows.pieces() for batch in rows.read(part)]
    ids, scores, codes = (
        np.concatenate([getattr(batch, name) for batch in batches]).tolist() for name in ("example_id", "score", "code")
    )
    more = {"score": "el2n", "keep": 0.2}
    specs = [
        SelectionSpec(protocol="ccs", beta=0.1, weights="ht", classes="balanced", **more),
        SelectionSpec(protocol="ccs", beta=0.1, **more),
        SelectionSpec(protocol="band", beta=0.1, width=0.4, **more),
        SelectionSpec(protocol="pps", floor=0.2, **more),
    ]
    units = [(selection_key(spec, 21, inputs.merge.key), SelectionUnit(spec, 21)) for spec in specs]
    seals = selection_stage(units, inputs, store, SerialPool())
    for seal, spec in zip(seals, specs):
        params = spec.params()
        if spec.protocol == "pps":
            truth = systematic.select(ids, scores, 0.2, floor=0.2, seed=21)
        else:
            truth = slices.select(
                ids, scores, codes, "high", 0.2, beta=0.1, width=params.get("width"), strata=params.get("strata", 1),
                classes=params["classes"], weighted=params.get("weights") == "ht", seed=21,
            )  # fmt: skip
        got = _columns(store, seal)
        assert got["example_id"] == [row.example_id for row in truth], spec
        assert np.allclose(got["inclusion_prob"], [float(row.inclusion_prob) for row in truth], rtol=1e-8)
        assert np.allclose(got["weight"], [float(row.weight) for row in truth], rtol=1e-6)
        counts = seal.meta["class_counts"]
        assert counts["full"] == np.bincount(codes, minlength=10).tolist()
        kept = np.add(counts["signal"], counts["exploration"])
        label = dict(zip(ids, codes))
        assert kept.tolist() == np.bincount([label[row.example_id] for row in truth], minlength=10).tolist()
        assert {name: seal.meta[name] for name in params} == params
    # Balanced to the row, in a run without a word about it.
    assert np.ptp(np.add(*(seals[2].meta["class_counts"][arm] for arm in ("signal", "exploration")))) <= 1


def test_the_seal_says_what_was_drawn(case: Case) -> None:
    store, inputs = case
    [seal] = selection_stage(_units(inputs, 12, "exact"), inputs, store, SerialPool())
    meta, n = seal.meta, int(inputs.index.meta["num_train"])
    m = round(0.25 * n)
    assert (meta["n"], meta["num_kept"], meta["num_signal"]) == (n, m, round(0.4 * m))
    assert meta["weight_sum"] == pytest.approx(m)
    assert 0 < meta["ess"] < m
    assert meta["design_effect"] > 1
    assert (meta["estimator"], meta["direction"], meta["alpha"], meta["seed"]) == ("ht", "high", 0.4, 12)
    labels: dict[int, int] = {}
    dataset = Dataset(DATA, inputs.index, store)
    for shard in dataset.shards():
        part = dataset.index_table(shard)
        labels.update(zip(part.column("example_id").to_pylist(), part.column("label").to_pylist()))
    got = _columns(store, seal)
    for arm in ("signal", "exploration"):
        counts = np.zeros(10, dtype=int)
        for example, its in zip(got["example_id"], got["arm"]):
            counts[labels[example]] += its == arm
        assert meta["class_counts"][arm] == counts.tolist()
    assert sum(meta["class_counts"]["full"]) == n
    assert Unit(store, "select", seal.key).seal() == Seal.from_bytes(seal.to_bytes(), "")


def test_what_is_sealed_is_not_made_again(case: Case) -> None:
    store, inputs = case
    units = _units(inputs, 13, "topk", "random")
    pool = CountingPool()
    first = selection_stage([*units, units[0]], inputs, store, pool)
    assert len(pool.items) == 2
    assert first[0] == first[2]
    again = CountingPool()
    assert [seal.parts for seal in selection_stage(units, inputs, store, again)] == [seal.parts for seal in first[:2]]
    assert again.items == []


def test_keys_follow_what_changes_the_selection(case: Case) -> None:
    _, inputs = case
    assert inputs.merge is not None
    base = SelectionSpec(protocol="topk", keep=0.25, score="el2n")
    same = [base, SelectionSpec(protocol="topk", keep=0.25, score="el2n", alpha=1.0, direction="high")]
    assert len({selection_key(spec, 0, "a") for spec in same}) == 1
    different = [*SPECS.values(), base.model_copy(update={"keep": 0.5}), base.model_copy(update={"direction": "low"})]
    keys = {selection_key(spec, seed, source) for spec in different for seed in (0, 1) for source in ("a", "b")}
    assert len(keys) == 4 * len(different)


def test_files_are_cut_by_rows_and_not_by_shards(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    store, inputs = case
    [seal] = selection_stage(_units(inputs, 14, "exact"), inputs, store, SerialPool())
    assert [part.name.rpartition("/")[2] for part in seal.parts] == ["selection-00000.parquet"]
    monkeypatch.setattr(table.SelectionTable.tables, "__defaults__", (30,))
    [cut] = selection_stage(_units(inputs, 15, "exact"), inputs, store, SerialPool())
    rows = [part.rows for part in cut.parts]
    assert rows[:-1] == [30] * (len(rows) - 1)
    assert sum(rows) == cut.meta["num_kept"]
    ids = _columns(store, cut)["example_id"]
    assert ids == sorted(ids)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("create", [1, 2, 3])
def test_death_at_any_write_is_resumed_to_the_same_bytes(
    tmp_path: Path, case: Case, create: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, inputs = case
    monkeypatch.setattr(table.SelectionTable.tables, "__defaults__", (40,))
    seed = 100 + 10 * create + after
    units = _units(inputs, seed, "hard")
    with pytest.raises(Killed):
        selection_stage(units, inputs, dying_at(store, create, "select-", after), SerialPool())
    [resumed] = selection_stage(units, inputs, store, SerialPool())
    whole, index = indexed(tmp_path)
    for part in inputs.merge.parts if inputs.merge else ():
        whole.create(part.name, store.read(part.name))
    assert index.key == inputs.index.key
    [straight] = selection_stage(units, inputs, whole, SerialPool())
    assert part_bytes(store, resumed) == part_bytes(whole, straight)


def test_a_changed_score_table_is_found(tmp_path: Path, case: Case) -> None:
    store, inputs = case
    other = Store(str(tmp_path / "other"))
    assert inputs.merge is not None
    for part in inputs.merge.parts:
        data = bytearray(store.read(part.name))
        data[len(data) // 2] ^= 1
        other.create(part.name, bytes(data))
    with pytest.raises(CorruptError, match="changed after it was published"):
        selection_stage(_units(inputs, 16, "topk"), inputs, other, SerialPool())


def test_what_cannot_be_ranked_is_said_so(case: Case) -> None:
    store, inputs = case
    assert inputs.merge is not None
    spec = SelectionSpec(protocol="topk", keep=0.5, score="el2m", direction="high")
    unit = [(selection_key(spec, 0, inputs.merge.key), SelectionUnit(spec, 0))]
    with pytest.raises(InputError, match="did you mean 'el2n'"):
        selection_stage(unit, inputs, store, SerialPool())
    with pytest.raises(InputError, match="no score table"):
        selection_stage(unit, SelectInputs(DATA, inputs.index), store, SerialPool())
