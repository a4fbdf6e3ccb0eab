"""The shift stage on a real index, score table, selections and subsets: seals, resuming, and what cannot change a figure."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.record import Seal, Unit
from cluster.storage import Store
from flows.config import RunConfig, parse_config
from flows.config_text import override
from flows.measured import shift_inputs, shift_units
from flows.plan import Plan, make_plan
from tasks.dataset import Dataset
from tasks.merge import MergeInputs, merge_stage
from tasks.pool import SerialPool
from tasks.schemas import TRAIN
from tasks.selecting import SelectInputs, selection_stage
from tasks.selection.stage import load_selection
from tasks.shard import shard_stage
from tasks.shift import features as shift_features
from tasks.shift.features import Features, load_features, looked_at, nearest
from tasks.shift.units import ShiftUnit, features_key, shift_key, shift_stage
from tasks.subset import SubsetInputs, subset_stage
from tests.oracles import shift as oracle
from tests.tasks.stage_case import CountingPool, Killed, dying_at, part_bytes

ROWS, WIDTH = 400, 6


def write_data(folder: Path) -> None:
    """Write 400 rows with ids and labels, and two scores of each, one with few values."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(5 * ROWS)[:ROWS].astype(np.int64)
    label = rng.integers(0, 4, ROWS)
    x = (rng.normal(size=(ROWS, WIDTH)) + label[:, None]).astype(np.float32)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDTH)
    pq.write_table(pa.table({"id": ids, "features": flat, "label": label}), folder / "data.parquet", row_group_size=50)
    score = (x[:, 0] + rng.normal(size=ROWS)).astype(np.float32)
    scores = {"example_id": ids, "el2n": score, "mine": rng.integers(0, 3, ROWS) - 1.0}
    pq.write_table(pa.table(scores), folder / "scores.parquet")


def with_settings(folder: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Return the configuration of a run on these rows, with KEY=VALUE settings."""
    body: dict[str, Any] = {
        "name": "measured",
        "data": {
            "source": {"use": "parquet", "args": {"id_column": "id"}}, "train": str(folder / "data.parquet"),
            "test_fraction": 0.1,
        },
        "scores": str(folder / "scores.parquet"),
        "select": {
            "keep": 0.25,
            "arms": [
                {"protocol": "topk", "score": "el2n", "direction": "high"},
                {"protocol": "exact", "score": "el2n", "direction": "high", "alpha": 0.4},
                {"protocol": "topk", "score": "mine", "direction": "low"},
            ],
        },
        "train": {"model": "mlp", "steps": 2, "replicates": 2},
    }  # fmt: skip
    for setting in settings:
        override(body, setting)
    return body


class Case:
    """Hold a run on 400 rows with scores of its own, up to its subsets; `shift` measures on any store that has them."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder = folder
        self.plan = make_plan(self.config(*settings))
        self.store = Store(str(folder / f"store-{len(settings)}"))
        run = self.plan.config
        self.index = shard_stage(run.data, self.store, SerialPool(), self.plan.source_code)
        self.merge = merge_stage(
            MergeInputs(run.data, self.index, scores_uri=run.scores, scores_digest=self.plan.scores_digest),
            self.store, SerialPool(),
        )  # fmt: skip
        chosen = dict(self.plan.selections.values())
        inputs = SelectInputs(run.data, self.index, self.merge)
        self.selections = dict(zip(chosen, selection_stage(list(chosen.items()), inputs, self.store, SerialPool())))
        cut = [(self.plan.subset(key), seal) for key, seal in self.selections.items()]
        made = subset_stage(cut, SubsetInputs(run.data, self.index), self.store, SerialPool())
        self.subsets = dict(zip(self.selections, made))

    def config(self, *settings: str) -> RunConfig:
        return parse_config(with_settings(self.folder, settings))

    @property
    def units(self) -> list[tuple[str, ShiftUnit]]:
        return shift_units(self.plan, self.selections, self.subsets)

    def shift(self, store: Store | None = None, pool: Any = None, units: Any = None) -> list[Seal]:
        spec = self.plan.config.shift
        assert spec is not None
        inputs = shift_inputs(self.plan, self.index, self.merge, [])
        return shift_stage(spec, self.units if units is None else units, inputs, store or self.store, pool or SerialPool())

    def features(self, store: Store | None = None) -> Seal:
        assert self.plan.features is not None
        seal = Unit(store or self.store, "features", self.plan.features).seal()
        assert seal is not None
        return seal

    def copy(self, folder: Path) -> Store:
        """Return another store with all that the stage reads, and nothing that it makes."""
        shutil.copytree(self.folder / "store-0", folder / "copy", ignore=shutil.ignore_patterns("features-*", "shift-*"))
        return Store(str(folder / "copy"))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("shift")
    write_data(folder)
    made = Case(folder)
    made.shift()
    return made


def _figures(seals: Sequence[Seal]) -> list[dict[str, Any]]:
    return [dict(seal.meta) for seal in seals]


def test_every_arm_is_measured_once_and_right(case: Case) -> None:
    seals = case.shift()
    assert [one.arm for one in case.plan.shifts] == ["random", *(arm.label for arm in case.plan.config.select.arms)]
    dataset = Dataset(case.plan.config.data, case.index, case.store)
    examples = dataset.load(TRAIN)
    place = {int(i): row for row, i in enumerate(examples.example_id)}
    full: Features = load_features(case.store, case.features())
    assert np.array_equal(full.example_id, examples.example_id)
    assert np.allclose(full.place(looked_at(examples.x)), full.coordinates, atol=1e-5)
    for planned, seal in zip(case.plan.shifts, seals):
        meta = seal.meta
        table = load_selection(case.store, case.selections[planned.selection])
        rows = [place[i] for i in table.column("example_id").to_pylist()]
        weight = table.column("weight").to_pylist()
        labels = examples.y.tolist()
        kept = [labels[row] for row in rows]
        assert meta["class_tv"]["weighted"] == pytest.approx(oracle.total_variation(kept, weight, labels), abs=1e-6)
        assert meta["class_tv"]["raw"] == pytest.approx(oracle.total_variation(kept, [1.0] * len(kept), labels), abs=1e-6)
        number, mass = oracle.empty(full.cell.tolist(), nearest(full.coordinates[rows], full.centres).tolist())
        assert meta["empty_cells"] == number and meta["empty_mass"] == pytest.approx(mass, abs=1e-6)
        want = oracle.energy(
            full.coordinates.tolist(), full.example_id.tolist(), full.coordinates[rows].tolist(),
            table.column("example_id").to_pylist(), weight,
        )  # fmt: skip
        assert meta["energy"]["weighted"] == pytest.approx(want, abs=2e-5)
        assert 0.3 < meta["auc"]["raw"] < 0.8 and meta["num_kept"] == meta["num_compared"] == len(rows)
        assert [name for name, _, _ in meta["points"]].count(0) == sum(arm == "signal" for arm in table.column("arm").to_pylist())
        # Weights that are all alike change nothing.
        assert meta["weights_differ"] is (planned.arm.startswith("exact"))
        if not meta["weights_differ"]:
            assert all(meta[name]["raw"] == meta[name]["weighted"] for name in ("auc", "energy", "class_tv", "score_tv"))
        assert not seal.parts


def test_theory_holds_for_the_sealed_figures(case: Case) -> None:
    random, topk, exact, _ = _figures(case.shift())
    assert random["closed_form"] == {"raw": 0, "weighted": 0} and random["partition_tv"]["raw"] == 0
    keep = topk["num_kept"] / sum(case.merge.meta["histograms"]["el2n"]["counts"])
    assert topk["closed_form"]["raw"] == pytest.approx(1 - keep, abs=1e-5) == topk["partition_tv"]["weighted"]
    assert exact["closed_form"]["raw"] == pytest.approx(0.4 * (1 - keep), abs=2 / topk["num_kept"])
    assert exact["partition_tv"]["raw"] == pytest.approx(exact["closed_form"]["raw"], abs=1e-5)
    assert exact["partition_tv"]["weighted"] == pytest.approx(0.0, abs=1e-5)
    assert exact["score_tv"]["weighted"] < exact["score_tv"]["raw"] < topk["score_tv"]["raw"]


def test_what_is_sealed_is_not_made_again(case: Case) -> None:
    pool = CountingPool()
    assert [seal.key for seal in case.shift(pool=pool)] == [one.key for one in case.plan.shifts]
    assert pool.items == []


class _Backwards(SerialPool):
    """Give every item a worker of its own, the last item first."""

    def map(self, make_worker: Any, items: Any, *, label: str, resources: Any, done: int = 0) -> Iterator[tuple[int, Any]]:
        for number in reversed(range(len(items))):
            for _, result in super().map(make_worker, items[number : number + 1], label=label, resources=resources):
                yield number, result


def test_workers_threads_and_order_change_no_byte(case: Case, tmp_path: Path) -> None:
    from threadpoolctl import threadpool_limits

    other = case.copy(tmp_path)
    with threadpool_limits(2):
        seals = case.shift(other, _Backwards())
    for mine, theirs in zip([case.features(), *case.shift()], [case.features(other), *seals]):
        assert part_bytes(case.store, mine) == part_bytes(other, theirs)


def test_shards_change_no_figure(case: Case) -> None:
    other = Case(case.folder, "data.shard_rows=60")
    assert len(Dataset(other.plan.config.data, other.index, other.store).shards("train")) > 2
    assert _figures(other.shift()) == _figures(case.shift())
    assert dict(other.features().meta) == dict(case.features().meta)
    mine, theirs = load_features(case.store, case.features()), load_features(other.store, other.features())
    for name in ("example_id", "coordinates", "cell", "basis", "centres"):
        assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name


@pytest.mark.parametrize("create", range(1, 6))
@pytest.mark.parametrize("after", [False, True])
def test_death_at_any_write_is_resumed_to_the_same_bytes(case: Case, tmp_path: Path, create: int, after: bool) -> None:
    other = case.copy(tmp_path)
    units = case.units[:1]
    with pytest.raises(Killed):
        case.shift(dying_at(other, create, "", after), units=units)
    seals = case.shift(other, units=units)
    for mine, theirs in zip([case.features(), case.shift()[0]], [case.features(other), seals[0]]):
        assert part_bytes(case.store, mine) == part_bytes(other, theirs)


def test_a_sample_is_of_the_size_asked_for_and_no_wider_than_fits(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.arange(100_000, dtype=np.int64)
    chosen = shift_features.in_sample(ids, 10_000, 100_000)
    assert abs(int(chosen.sum()) - 10_000) < 400
    # Smaller samples lie in larger ones.
    assert not (shift_features.in_sample(ids, 1000, 100_000) & ~chosen).any()
    wide = np.arange(2 * 3 * 5000).reshape(2, 3, 5000)
    assert looked_at(wide).shape == (2, shift_features.MAX_WIDTH) and looked_at(wide)[0, -1] > 14_990
    monkeypatch.setattr(shift_features, "MAX_WIDTH", 3)
    other = case.copy(tmp_path)
    assert 0 <= case.shift(other)[0].meta["auc"]["raw"] <= 1
    assert (case.features(other).meta["values"], case.features(other).meta["of_values"]) == (3, 6)


def test_of_many_a_sample_of_either_is_compared(case: Case) -> None:
    few = Case(case.folder, "shift.sample=100", "select.keep=0.5")
    found = _figures(few.shift())
    sampled = few.features().meta["sample"]
    assert 60 < sampled < 140 and few.features().meta["cells"] <= sampled // 20
    for meta in found:
        assert meta["num_compared"] == 100 < meta["num_kept"] == 158
        assert 0 <= meta["empty_share"] <= 1 and 0.2 < meta["auc"]["raw"] < 0.9
    # What needs no features is of all that are kept.
    random, topk, *_ = found
    assert topk["closed_form"]["raw"] == pytest.approx(0.5, abs=0.01) == topk["partition_tv"]["raw"]
    assert random["score_tv"]["raw"] < topk["score_tv"]["raw"]


def test_keys_follow_what_changes_the_figures(case: Case) -> None:
    def plan(*settings: str) -> Plan:
        return make_plan(case.config(*settings))

    base = plan()
    assert plan("shift=true").shifts == base.shifts and plan("shift.resources.cpus=2").shifts == base.shifts
    for setting in ("shift.sample=200", "shift.components=3", "shift.cells=3", "shift.pairs=100"):
        assert plan(setting).features != base.features
        assert not {one.key for one in plan(setting).shifts} & {one.key for one in base.shifts}
    assert plan("shift.bins=5").features == base.features
    assert not {one.key for one in plan("shift.bins=5").shifts} & {one.key for one in base.shifts}
    # Only replicate 0 is measured, and trainings and selections know nothing of it.
    assert plan("train.replicates=3").shifts == base.shifts
    off = plan("shift=false")
    assert off.features is None and off.shifts == () and "shift" not in off.own_keys()
    assert off.selections == base.selections and off.trainings == base.trainings
    spec = base.config.shift
    assert spec is not None
    assert shift_key(spec, "a", "s", "f", "m") != shift_key(spec, "b", "s", "f", "m")
    assert features_key(spec, "one") != features_key(spec, "two")
