"""The train stage: what is trained on, what is evaluated, what the seal says, resuming, several ranks."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster import lease
from cluster.errors import InputError, StageError
from cluster.record import Seal, Unit
from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.evaluation import FORWARD_ROWS, predict
from tasks.models.build import build_model
from tasks.pool import SerialPool
from tasks.recipe import Pipeline
from tasks.schemas import CORRECTNESS, TEST, TRAIN, VALIDATION, subset_schema
from tasks.selecting import SelectInputs, SelectionUnit, selection_key, selection_stage
from tasks.selection.spec import SelectionSpec
from tasks.sources.protocol import Examples
from tasks.spec import Numerics, Recipe, Resources, Use
from tasks.subset import SubsetInputs, subset_key, subset_stage
from tasks.tables import encode_table, load_part, part_check
from tasks.train import TrainInputs, TrainJob, TrainSpec, TrainUnit, run_train_job, train_key, train_stage
from tasks.training import Settings, TrainingArrays, train_model, weightless
from tests.tasks.stage_case import DATA, CountingPool, Killed, dying_at, indexed, part_bytes
from tests.tasks.training_case import free_port, spawn

SPEC = TrainSpec.model_validate(
    {"model": {"use": "mlp", "args": {"hidden": [16]}}, "epochs": 4, "batch_size": 32, "lr": 0.02,
     "checkpoint_every_s": 0}
)


def key_of(spec: TrainSpec, unit: TrainUnit, index: Seal) -> str:
    source = unit.subset.key if unit.subset else index.key
    return train_key(spec, keep=unit.keep, seed=unit.seed, source_key=source, index_key=index.key, code="")


def run(
    spec: TrainSpec, units: list[TrainUnit], store: Store, index: Seal, *, pool: Any = None, launch: Any = None
) -> list[Seal]:
    pairs = [(key_of(spec, unit, index), unit) for unit in units]
    return train_stage(spec, TrainInputs(DATA, index, "", pairs), store, pool or SerialPool(), launch)


def full(seed: int = 3, steps: int = 36, arm: str = "full") -> TrainUnit:
    return TrainUnit(arm, 1.0, 0, None, None, steps, seed)


def weighted_subset(store: Store, index: Seal, count: int = 70) -> tuple[Seal, TrainingArrays]:
    """Publish a subset of `count` train examples with uneven weights, and return it beside its arrays."""
    examples = Dataset(DATA, index, store).load(TRAIN)
    rows = np.sort(np.random.default_rng(1).choice(len(examples), count, replace=False))
    weights = np.random.default_rng(2).uniform(0.1, 2, count).astype(np.float32)
    shape = examples.x.shape[1:]
    flat = pa.FixedSizeListArray.from_arrays(pa.array(examples.x[rows].ravel()), int(np.prod(shape)))
    columns = [pa.array(examples.example_id[rows]), pa.array(examples.position[rows]), flat,
               pa.array(examples.y[rows]), pa.array(weights)]
    table = pa.table(columns, schema=subset_schema(shape, pa.float32()))
    unit = Unit(store, "subset", "5" * 64)
    part = unit.publish_part("0.parquet", encode_table(table, unit.key), part_check(unit.key, "subset"))
    meta = {"num_kept": count, "num_classes": 10, "shape": list(shape), "dtype": "float32"}
    arrays = TrainingArrays(examples.x[rows], examples.y[rows], weights, examples.example_id[rows])
    return unit.publish_seal([part], meta), arrays


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Seal]:
    return indexed(tmp_path_factory.mktemp("train"))


def trained(arrays: TrainingArrays, steps: int, seed: int, shape: tuple[int, ...]) -> tuple[torch.nn.Module, float]:
    """Train as the stage should, from its parts."""
    model = build_model(SPEC.model, shape, 10, seed)
    settings = Settings(steps=steps, seed=seed, batch_size=32, lr=0.02, weight_decay=SPEC.weight_decay)
    return model, train_model(model, arrays, settings, Pipeline(Recipe())).final_loss


def test_full_unit_trains_on_the_train_split_with_weight_1(place: tuple[Store, Seal]) -> None:
    store, index = place
    (seal,) = run(SPEC, [full()], store, index)
    dataset = Dataset(DATA, index, store)
    model, loss = trained(weightless(dataset.load(TRAIN)), 36, 3, dataset.shape)
    test = dataset.load(TEST)
    predicted = model.eval()(torch.tensor(test.x)).argmax(1).numpy()
    assert seal.meta["final_loss"] == loss
    assert seal.meta["accuracy"] == pytest.approx(100 * (predicted == test.y).mean())
    assert seal.meta["accuracy"] > 50
    assert seal.meta["class_accuracy"] == [
        pytest.approx(100 * (predicted[test.y == k] == k).mean()) for k in range(10)
    ]
    validation = dataset.load(VALIDATION)
    right = model(torch.tensor(validation.x)).argmax(1).numpy() == validation.y
    assert seal.meta["validation_accuracy"] == pytest.approx(100 * right.mean())
    assert (seal.meta["num_kept"], seal.meta["examples_touched"]) == (dataset.num_train, dataset.num_train)
    assert (seal.meta["steps"], seal.meta["batch_size"], seal.meta["seed"]) == (36, 32, 3)
    assert "full" not in str(dict(seal.meta))


def test_parts_hold_the_prediction_of_every_evaluation_example(place: tuple[Store, Seal]) -> None:
    store, index = place
    (seal,) = run(SPEC, [full()], store, index)
    dataset = Dataset(DATA, index, store)
    assert [part.name.rpartition("/")[2] for part in seal.parts] == ["test.parquet", "validation.parquet"]
    for part, split in zip(seal.parts, (TEST, VALIDATION)):
        table = load_part(store, part)
        assert table.schema.remove_metadata().equals(CORRECTNESS)
        examples = dataset.load(split)
        assert np.array_equal(table.column("example_id").to_numpy(), examples.example_id)
        assert np.array_equal(table.column("label").to_numpy(), examples.y)


def test_subset_unit_trains_on_the_subset_with_its_weights(place: tuple[Store, Seal]) -> None:
    store, index = place
    subset, arrays = weighted_subset(store, index)
    (seal,) = run(SPEC, [TrainUnit("exact", 0.25, 0, subset, None, 20, 4)], store, index)
    shape = Dataset(DATA, index, store).shape
    assert seal.meta["final_loss"] == trained(arrays, 20, 4, shape)[1]
    ones = TrainingArrays(arrays.x, arrays.y, np.ones_like(arrays.w), arrays.example_id)
    assert seal.meta["final_loss"] != trained(ones, 20, 4, shape)[1]
    assert (seal.meta["num_kept"], seal.meta["examples_touched"]) == (70, 70)
    (short,) = run(SPEC, [TrainUnit("exact", 0.25, 0, subset, None, 2, 5)], store, index)
    assert short.meta["examples_touched"] == 64


def test_drawing_by_weight_is_another_key_and_says_so(place: tuple[Store, Seal]) -> None:
    store, index = place
    subset, _ = weighted_subset(store, index)
    spec = SPEC.model_copy(update={"weighting": "draw"})
    (seal,) = run(spec, [TrainUnit("exact", 0.25, 0, subset, None, 3, 4)], store, index)
    assert seal.meta["weighting"] == "draw"
    assert seal.meta["examples_touched"] < 70


def test_selection_and_subset_stages_feed_it(place: tuple[Store, Seal]) -> None:
    store, index = place
    chosen = SelectionSpec(protocol="random", keep=0.3)
    key = selection_key(chosen, 1, index.key)
    pool = SerialPool()
    (selection,) = selection_stage([(key, SelectionUnit(chosen, 1))], SelectInputs(DATA, index), store, pool)
    (subset,) = subset_stage([(subset_key(key, index.key), selection)], SubsetInputs(DATA, index), store, pool)
    (seal,) = run(SPEC, [TrainUnit("random", 0.3, 0, subset, selection, 12, 4)], store, index)
    assert seal.meta["num_kept"] == selection.meta["num_kept"] == round(0.3 * index.meta["num_train"])


def test_units_of_one_key_are_trained_once_and_order_is_kept(place: tuple[Store, Seal]) -> None:
    store, index = place
    pool = CountingPool()
    units = [full(11, 8), full(12, 8, "other"), full(11, 8, "same")]
    seals = run(SPEC, units, store, index, pool=pool)
    assert len(pool.items) == 2
    assert [seal.meta["seed"] for seal in seals] == [11, 12, 11]
    assert run(SPEC, units, store, index, pool=pool) == seals
    assert len(pool.items) == 2


def test_trap_11_replicates_differ(place: tuple[Store, Seal]) -> None:
    store, index = place
    seals = run(SPEC, [full(seed, 8) for seed in (21, 22, 23)], store, index)
    assert len({seal.meta["final_loss"] for seal in seals}) == 3


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 9))
def test_a_death_at_any_write_is_resumed_to_the_same_bytes(
    place: tuple[Store, Seal], tmp_path: Path, at: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Writes of one training: its lease, 4 work checkpoints, 2 parts, the seal.
    store, index = place
    # This process lives on, and so would the lease of the one that "died" right after it took it.
    monkeypatch.setattr(lease, "VOID_AFTER_S", 0.1)
    (want,) = run(SPEC, [full()], store, index)
    fresh, _ = indexed(tmp_path)
    with pytest.raises(Killed):
        run(SPEC, [full()], dying_at(fresh, at, "train-", after), index)
    (seal,) = run(SPEC, [full()], fresh, index)
    assert part_bytes(fresh, seal) == part_bytes(store, want)
    assert not [name for name in fresh.list("stages") if "/train-" in name and "/work/" in name]


def test_a_death_at_the_seal_is_resumed_without_training(place: tuple[Store, Seal], tmp_path: Path) -> None:
    store, index = place
    (want,) = run(SPEC, [full()], store, index)
    fresh, _ = indexed(tmp_path)
    with pytest.raises(Killed):
        run(SPEC, [full()], dying_at(fresh, 8, "train-"), index)
    watched = dying_at(fresh, 1, "/work/model/")
    (seal,) = run(SPEC, [full()], watched, index)
    assert part_bytes(fresh, seal) == part_bytes(store, want)


def test_trap_10_test_labels_change_the_accuracy_and_nothing_else(
    place: tuple[Store, Seal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, index = place
    (honest,) = run(SPEC, [full()], store, index)
    fresh, _ = indexed(tmp_path)
    load = Dataset.load

    def wrong(self: Dataset, split: int) -> Examples:
        examples = load(self, split)
        return dataclasses.replace(examples, y=(examples.y + 1) % 10) if split == TEST else examples

    monkeypatch.setattr(Dataset, "load", wrong)
    (seal,) = run(SPEC, [full()], fresh, index)
    assert seal.meta["accuracy"] < 20 < honest.meta["accuracy"]
    for name in ("final_loss", "validation_accuracy", "examples_touched"):
        assert seal.meta[name] == honest.meta[name]
    predicted = [load_part(at, one.parts[0]).column("predicted") for at, one in ((store, honest), (fresh, seal))]
    assert predicted[0].equals(predicted[1])


def test_evaluation_does_not_depend_on_rows_and_restores_modes() -> None:
    torch.manual_seed(0)
    first = torch.nn.Linear(5, 4)
    model = torch.nn.Sequential(first, torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.9))
    model[1].eval()
    x = np.random.default_rng(0).normal(size=(FORWARD_ROWS + 3, 5)).astype(np.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    got = predict(model, x, Pipeline(Recipe()), Numerics())
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert np.array_equal(got, predict(model, x, Pipeline(Recipe()), Numerics(), rows=64))
    assert np.array_equal(got[-3:], predict(model, x[-3:], Pipeline(Recipe()), Numerics()))
    assert predict(model, x[:0], Pipeline(Recipe()), Numerics()).shape == (0,)
    with torch.no_grad():
        first.weight.fill_(float("nan"))
    with pytest.raises(StageError, match="NaN logits"):
        predict(model, x, Pipeline(Recipe()), Numerics())


def test_evaluation_applies_the_transform(place: tuple[Store, Seal]) -> None:
    """Trap 6."""
    store, index = place
    # A model of negative inputs fails on the stored ones.
    recipe = Recipe(transform=Use(use="scale", args={"by": -1.0}))
    spec = SPEC.model_copy(update={"recipe": recipe})
    (seal,) = run(spec, [full()], store, index)
    dataset = Dataset(DATA, index, store)
    model = build_model(SPEC.model, dataset.shape, 10, 3)
    settings = Settings(steps=36, seed=3, batch_size=32, lr=0.02, weight_decay=SPEC.weight_decay)
    train_model(model, weightless(dataset.load(TRAIN)), settings, Pipeline(recipe))
    test = dataset.load(TEST)
    right = model(-torch.tensor(test.x)).argmax(1).numpy() == test.y
    assert seal.meta["accuracy"] == pytest.approx(100 * right.mean())


def test_key_changes_with_what_changes_the_result_only() -> None:
    def key(spec: TrainSpec = SPEC, **changes: Any) -> str:
        given: dict[str, Any] = {"keep": 0.1, "seed": 1, "source_key": "s", "index_key": "i", "code": "c", **changes}
        return train_key(spec, **given)

    same = [key(), key(SPEC.model_copy(update={"replicates": 9, "full": False, "checkpoint_every_s": 5.0}))]
    assert len(set(same)) == 1
    other = [
        key(keep=0.2), key(seed=2), key(source_key="t"), key(index_key="j"), key(code="d"),
        key(SPEC.model_copy(update={"lr": 0.5})), key(SPEC.model_copy(update={"world_size": 2})),
        key(SPEC.model_copy(update={"weighting": "draw"})),
    ]
    assert len({*other, same[0]}) == len(other) + 1


def test_steps_of_a_spec() -> None:
    assert SPEC.steps_for(100) == 4 * 4
    assert SPEC.model_copy(update={"min_steps": 300}).steps_for(100) == 300
    assert SPEC.model_copy(update={"epochs": None, "steps": 7}).steps_for(100) == 7


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "exactly one"),
        ({"steps": 3, "epochs": 2}, "exactly one"),
        ({"steps": 3, "min_steps": 2}, "goes with epochs"),
        ({"steps": 3, "batch_size": 2, "world_size": 4}, "world_size 4"),
    ],
)
def test_specs_that_contradict_themselves_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        TrainSpec.model_validate({"model": "mlp", **given})


def _rank(rank: int, payload: bytes, world_size: int, port: int, die_at: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    job: TrainJob = pickle.loads(payload)
    reports: list[int] = []

    def report(metrics: dict[str, float]) -> None:
        reports.append(int(metrics["step"]))
        if die_at and metrics["step"] >= die_at:
            raise RuntimeError("died")

    try:
        run_train_job(job, rank, world_size, report)
        every = [None, None]
        torch.distributed.all_gather_object(every, reports)
        assert every[0] == every[1]
    finally:
        torch.distributed.destroy_process_group()
    # A thread of gloo's that takes the interpreter's lock while it is finalized aborts the process, in one exit of four.
    os._exit(0)


def test_two_ranks_train_resume_and_seal(place: tuple[Store, Seal], tmp_path: Path) -> None:
    store, index = place
    spec = SPEC.model_copy(update={"world_size": 2})
    subset, arrays = weighted_subset(store, index)
    unit = TrainUnit("exact", 0.25, 0, subset, None, 12, 4)
    deaths, names = [6, 0], []

    def launch(job: TrainJob, name: str, world_size: int, resources: Resources) -> None:
        names.append((name, world_size, resources))
        payload = pickle.dumps(job)
        spawn(_rank, (payload, world_size, free_port(), deaths[len(names) - 1]), world_size)

    with pytest.raises(Exception, match="died"):
        run(spec, [unit], store, index, launch=launch)
    assert [name for name in store.list("stages") if "/work/model/" in name and "/train-" in name]
    (seal,) = run(spec, [unit], store, index, launch=launch)
    assert not [name for name in store.list("stages") if "/work/" in name and "/train-" in name]
    key = key_of(spec, unit, index)
    assert names == [(f"train-{key[:12]}", 2, spec.resources)] * 2
    model, loss = trained(arrays, 12, 4, Dataset(DATA, index, store).shape)
    assert seal.meta["final_loss"] == pytest.approx(loss, rel=1e-4)
    test = Dataset(DATA, index, store).load(TEST)
    right = model.eval()(torch.tensor(test.x)).argmax(1).numpy() == test.y
    # Gradients are summed in another order, so a prediction on the edge may differ.
    assert seal.meta["accuracy"] == pytest.approx(100 * right.mean(), abs=3.0)
    assert seal.meta["world_size"] == 2


def test_several_workers_need_a_launcher(place: tuple[Store, Seal]) -> None:
    store, index = place
    spec = SPEC.model_copy(update={"world_size": 2})
    with pytest.raises(InputError, match="launcher"):
        run(spec, [full(seed=31)], store, index)
    with pytest.raises(StageError, match="nothing is sealed"):
        run(spec, [full(seed=31)], store, index, launch=lambda *given: None)
    with pytest.raises(StageError, match="process group"):
        run_train_job(TrainJob(spec, DATA, index, "k", full(), store), 0, 2, print)


def test_arrays_of_a_unit_share_the_full_split(place: tuple[Store, Seal]) -> None:
    from tasks.train_worker import TrainWorker

    store, index = place
    worker = TrainWorker(SPEC, DATA, index, store)
    assert worker.arrays(full(1)).x is worker.arrays(full(2)).x
