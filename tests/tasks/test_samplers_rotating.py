"""Subsets that change: every epoch against a sort in plain Python, its weights by z-test, and trainings that resume on it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import CorruptError, InputError
from cluster.record import Seal
from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.merge import MergeInputs, merge_stage
from tasks.ordering import BatchOrder, rank_slice
from tasks.pool import SerialPool
from tasks.rotation import Rotation, rotation_of
from tasks.schemas import TRAIN
from tasks.selecting import SelectInputs, SelectionUnit, selection_key, selection_stage
from tasks.selection import SelectionSpec, calibrated_selection
from tasks.selection.rows import ArrayRows
from tasks.sources.spec import DataSpec
from tasks.standalone import select_file
from tasks.subset import SubsetInputs, subset_key, subset_stage
from tasks.tables import load_part
from tasks.train import TrainInputs, TrainSpec, TrainUnit, train_key, train_stage
from tasks.train_worker import TrainWorker
from tests.oracles import rotation as oracle
from tests.tasks.stage_case import DATA, Killed, dying_at, indexed, part_bytes

pytestmark = pytest.mark.timeout(300)

KEEP, SEED, BATCH = 0.25, 11, 32
SPECS = {
    "rs2": SelectionSpec(protocol="rs2", keep=KEEP),
    "rotate": SelectionSpec(protocol="rotate", keep=KEEP, score="el2n", alpha=0.4),
}
SPEC = TrainSpec.model_validate(
    {"model": {"use": "mlp", "args": {"hidden": [16]}}, "epochs": 4, "batch_size": BATCH, "lr": 0.02, "checkpoint_every_s": 0}
)


class Case:
    """Hold an index and a score table, and the scores by id."""

    def __init__(self, folder: Path, data: DataSpec = DATA) -> None:
        self.data = data
        self.store, self.index = indexed(folder) if data is DATA else _indexed(folder, data)
        self.ids = Dataset(data, self.index, self.store).ids(TRAIN)
        # From a file in another order than the data.
        mixed = np.random.default_rng(0).permutation(len(self.ids))
        self.scores = np.random.default_rng(1).random(len(self.ids)).astype(np.float32)
        pq.write_table(pa.table({"example_id": self.ids[mixed], "el2n": self.scores[mixed]}), folder / "scores.parquet")
        uri = str(folder / "scores.parquet")
        self.merge = merge_stage(MergeInputs(data, self.index, scores_uri=uri), self.store, SerialPool())
        self.inputs = SelectInputs(data, self.index, self.merge)

    def unit(self, name: str, store: Store | None = None) -> TrainUnit:
        """Select, cut the first epoch's subset, and return a training of four epochs."""
        store = store or self.store
        key = selection_key(SPECS[name], SEED, self.merge.key if name == "rotate" else self.index.key)
        [selection] = selection_stage([(key, SelectionUnit(SPECS[name], SEED))], self.inputs, store, SerialPool())
        cut = [(subset_key(key, self.index.key), selection)]
        [subset] = subset_stage(cut, SubsetInputs(self.data, self.index), store, SerialPool())
        return TrainUnit(name, KEEP, 0, subset, selection, SPEC.steps_for(round(KEEP * len(self.ids))), 5)

    def train(self, unit: TrainUnit, store: Store | None = None, spec: TrainSpec = SPEC) -> Seal:
        assert unit.selection is not None
        source, index = unit.selection.key, self.index.key
        key = train_key(spec, keep=KEEP, seed=unit.seed, source_key=source, index_key=index, code="")
        inputs = TrainInputs(self.data, self.index, "", [(key, unit)])
        return train_stage(spec, inputs, store or self.store, SerialPool())[0]


def _indexed(folder: Path, data: DataSpec) -> tuple[Store, Seal]:
    from tasks.shard import shard_stage

    store = Store(str(folder / "store"))
    return store, shard_stage(data, store, SerialPool())


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("rotating"))


@pytest.mark.parametrize("name", SPECS)
def test_every_epoch_is_the_oracles_with_its_weights(case: Case, name: str) -> None:
    unit = case.unit(name)
    arrays = TrainWorker(SPEC, DATA, case.index, case.store).arrays(unit)
    assert arrays.rotation is not None and np.array_equal(arrays.example_id, case.ids)
    order = BatchOrder(arrays.example_id, BATCH, unit.seed, rotation=arrays.rotation)
    seen: set[int] = set()
    for epoch in range(6):
        alpha = 0.4 if name == "rotate" else 0.0
        truth = oracle.epoch(case.ids.tolist(), case.scores.tolist(), "high", KEEP, alpha, SEED, epoch)
        rows = order.epoch_rows(epoch)
        assert {int(case.ids[row]) for row in rows} == set(truth) and len(rows) == len(truth)
        for row in rows:
            assert arrays.w[row] == np.float32(float(truth[int(case.ids[row])]))
        assert sum(truth.values()) == pytest.approx(len(truth))
        seen |= set(truth)
        assert order.touched((epoch + 1) * order.batches) == len(seen)
    if name == "rs2":
        # Of n (1 - (1 - 1/4)^6) expected, sd below 8.
        assert abs(len(seen) - len(case.ids) * (1 - 0.75**6)) < 32


def test_the_sealed_selection_is_the_first_epoch(case: Case) -> None:
    unit = case.unit("rotate")
    assert unit.selection is not None and unit.subset is not None
    assert unit.selection.meta["num_kept"] == unit.subset.meta["num_kept"] == round(KEEP * len(case.ids))
    assert (unit.selection.meta["estimator"], unit.selection.meta["population"]) == ("ht", "all")
    other = replace(unit.selection, meta={**unit.selection.meta, "seed": SEED + 1})
    with pytest.raises(CorruptError, match="not the first draw"):
        rotation_of(other, case.ids, case.store)
    with pytest.raises(CorruptError, match="not in the train split"):
        rotation_of(unit.selection, case.ids[::2], case.store)


def test_an_epoch_does_not_depend_on_history_storage_or_signal_order(case: Case) -> None:
    ids = case.ids
    signal, complement = np.arange(20), np.arange(20, len(ids))
    wanted = [set(ids[Rotation(ids, signal, complement, 30, 3).rows(epoch)].tolist()) for epoch in range(5)]
    assert len({frozenset(one) for one in wanted}) == 5 and all(len(one) == 50 for one in wanted)
    mixed = np.random.default_rng(2).permutation(len(ids))
    place = np.argsort(mixed)
    stored = Rotation(ids[mixed], place[signal[::-1]], place[np.random.default_rng(3).permutation(complement)], 30, 3)
    for epoch in reversed(range(5)):
        assert set(ids[mixed][stored.rows(epoch)].tolist()) == wanted[epoch]
    straight = BatchOrder(ids, 16, 7, rotation=Rotation(ids, signal, complement, 30, 3))
    turned = BatchOrder(ids[mixed], 16, 7, rotation=stored)
    for step in reversed(range(12)):
        assert np.array_equal(ids[straight.batch(step)], ids[mixed][turned.batch(step)])
    # Six steps: one epoch of 16, 16, 16, 2 and half of the next.
    shown = {int(row) for step in range(6) for row in straight.batch(step)}
    assert straight.touched(6) == len(shown)
    everything = Rotation(ids, signal, complement, len(complement), 3)
    assert all(np.array_equal(everything.rows(epoch), np.arange(len(ids))) for epoch in range(2))


def test_batches_drawn_by_weight_come_from_the_epoch(case: Case) -> None:
    ids = case.ids
    rotation = Rotation(ids, np.arange(20), np.arange(20, len(ids)), 30, 3)
    weights = np.where(np.arange(len(ids)) < 20, 0.2, 1.6)
    order = BatchOrder(ids, 16, 7, weights=weights, rotation=rotation)
    for epoch in range(40):
        assert set(order.epoch_rows(epoch).tolist()) <= set(rotation.rows(epoch).tolist())
    signal = np.mean([row < 20 for epoch in range(40) for row in order.epoch_rows(epoch)])
    # 2,000 draws: sd of a share of 4/52 is 0.006.
    assert signal == pytest.approx(4 / 52, abs=0.024)


def moments(epochs: int, alpha: float) -> dict[str, float]:
    """Return z of the weighted and of the plain mean over epochs, the ratio of variances, and the correlation of neighbours."""
    generator = np.random.default_rng(21)
    n, keep = 60, 0.25
    score = generator.random(n) ** 2
    value = 1 + 2 * score + generator.random(n)
    ids = np.arange(n, dtype=np.int64)
    protocol = {"protocol": "rotate", "score": "el2n", "alpha": alpha} if alpha else {"protocol": "rs2"}
    table = calibrated_selection(ArrayRows(ids, score), SelectionSpec.model_validate({"keep": keep, **protocol}), 4)
    signal = table.signal_id
    complement = np.setdiff1d(ids, signal)
    weight = np.zeros(n)
    weight[signal], weight[complement] = table.design.signal_weight[0], table.design.explore_weight[0]
    rotation = Rotation(ids, signal, complement, len(table.explore_id), 4)
    m = table.num_rows
    weighted, plain = np.empty(epochs), np.empty(epochs)
    for epoch in range(epochs):
        rows = rotation.rows(epoch)
        weighted[epoch], plain[epoch] = (weight[rows] * value[rows]).sum() / m, value[rows].mean()
    explored = m - len(signal)
    design = (len(complement) / n) ** 2 * (1 - explored / len(complement)) * value[complement].var(ddof=1) / explored
    error = math.sqrt(design / epochs)
    return {
        "weighted": (weighted.mean() - value.mean()) / error,
        "plain": (plain.mean() - value.mean()) / (plain.std() / math.sqrt(epochs)),
        "variance": weighted.var() / design,
        "neighbours": float(np.corrcoef(weighted[1:], weighted[:-1])[0, 1]) * math.sqrt(epochs),
    }


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_over_epochs_the_weighted_mean_is_unbiased_and_epochs_are_independent(alpha: float) -> None:
    found = moments(4000, alpha)
    assert abs(found["weighted"]) < 4 and abs(found["neighbours"]) < 4
    # A sample variance of 4,000 has a relative sd of 2.2 %.
    assert found["variance"] == pytest.approx(1, abs=0.1)
    # Why exploration carries W: without it the mean over epochs never comes to the population's.
    assert (abs(found["plain"]) > 20) == (alpha > 0)


@pytest.mark.parametrize(("name", "at"), [("rs2", 4), ("rotate", 5)])
def test_a_training_says_what_it_touched_and_resumes_to_the_same_bytes(
    case: Case, tmp_path: Path, name: str, at: int
) -> None:
    unit = case.unit(name)
    seal = case.train(unit)
    m = round(KEEP * len(case.ids))
    alpha = 0.4 if name == "rotate" else 0.0
    epochs = [set(oracle.epoch(case.ids.tolist(), case.scores.tolist(), "high", KEEP, alpha, SEED, e)) for e in range(4)]
    assert (seal.meta["num_kept"], seal.meta["steps"]) == (m, 4 * math.ceil(m / BATCH))
    assert seal.meta["examples_touched"] == len(set().union(*epochs)) > 1.4 * m
    # Writes of one training: its lease, 4 work checkpoints, one an epoch, 2 parts, the seal.
    fresh = Case(tmp_path)
    again = fresh.unit(name)
    with pytest.raises(Killed):
        fresh.train(again, dying_at(fresh.store, at, "/train-"))
    # The lease is not released, and the newest two checkpoints are kept.
    assert len([one for one in fresh.store.list("stages") if "/work/model/" in one and "/train-" in one]) == 2
    assert part_bytes(fresh.store, fresh.train(again)) == part_bytes(case.store, seal)


def test_other_shards_make_the_same_training(case: Case, tmp_path: Path) -> None:
    other = Case(tmp_path, DATA.model_copy(update={"shard_rows": 90}))
    for name in SPECS:
        seals = [one.train(one.unit(name)) for one in (case, other)]
        facts = [{fact: value for fact, value in seal.meta.items() if fact != "key"} for seal in seals]
        assert facts[0] == facts[1]
        tables = [load_part(one.store, seal.parts[0]) for one, seal in zip((case, other), seals)]
        assert tables[0].column("predicted").equals(tables[1].column("predicted"))


def test_every_rank_sees_the_same_draw(case: Case) -> None:
    # Each rank is a process with a worker of its own, that has nothing from the others but the store.
    unit = case.unit("rotate")
    ranks = [TrainWorker(SPEC, DATA, case.index, case.store).arrays(unit) for _ in range(3)]
    orders = [BatchOrder(one.example_id, BATCH, unit.seed, rotation=one.rotation) for one in ranks]
    # Whatever a rank did before, as one that joins after a checkpoint.
    orders[1].batch(9)
    for step in range(12):
        rows = [order.batch(step) for order in orders]
        mine = np.concatenate([rows[rank][rank_slice(len(rows[rank]), rank, 3)] for rank in range(3)])
        assert np.array_equal(mine, rows[0])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"protocol": "rs2", "score": "el2n"}, "rs2 reads no score"),
        ({"protocol": "rs2", "direction": "high"}, "rs2 has no kept end"),
        ({"protocol": "rs2", "alpha": 0.2}, "its alpha is always 0"),
        ({"protocol": "rs2", "classes": "balanced"}, "rs2 takes no classes"),
        ({"protocol": "rotate", "score": "el2n"}, "rotate needs alpha"),
        ({"protocol": "rotate", "alpha": 0.2}, "rotate needs a score"),
        ({"protocol": "rotate", "score": "el2n", "alpha": 1}, "no exploration is left"),
        ({"protocol": "rotate", "score": "el2n", "alpha": "auto"}, "draws anew every epoch"),
        ({"protocol": "rotate", "score": "el2n", "alpha": 0.2, "gamma": 0.5}, "rotate takes no gamma"),
        ({"protocol": "rotate", "score": "mine", "alpha": 0.2}, "give direction"),
    ],
)
def test_settings_that_say_nothing_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        SelectionSpec(keep=0.1, **given)


def test_a_budget_that_rounds_to_signal_alone_is_refused() -> None:
    rows = ArrayRows(np.arange(40, dtype=np.int64), np.arange(40.0))
    with pytest.raises(InputError, match="leaves no exploration to draw anew"):
        calibrated_selection(rows, SelectionSpec(protocol="rotate", score="el2n", alpha=0.9, keep=0.1), 0)


@pytest.mark.parametrize(("protocol", "instead"), [("rs2", "random"), ("rotate", "exact")])
def test_a_file_cannot_hold_what_changes(tmp_path: Path, protocol: str, instead: str) -> None:
    out = tmp_path / "out.parquet"
    pq.write_table(pa.table({"id": np.arange(50), "s": np.arange(50.0)}), tmp_path / "scores.parquet")
    alpha = 0.2 if protocol == "rotate" else None
    with pytest.raises(InputError, match=f"anew in every epoch of a training.* use {instead} here"):
        select_file(
            str(tmp_path / "scores.parquet"), score="s", direction="high", keep=0.2, protocol=protocol, alpha=alpha, out=str(out)
        )
    assert not out.exists()
