"""Curves of accuracy over steps: what they say, what they leave as it was, and what is left of them after a death."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.record import Seal, Unit, read_part
from cluster.self_digest import decode_json, encode_json
from cluster.storage import Store
from tasks.checkpoints import decode_state
from tasks.curve import Curve, grid, read_times
from tasks.dataset import Dataset
from tasks.evaluation import percent_correct, predict
from tasks.models.build import build_model
from tasks.pool import SerialPool
from tasks.recipe import Pipeline
from tasks.schemas import TEST, TRAIN, VALIDATION
from tasks.spec import Numerics, Recipe
from tasks.tables import load_part
from tasks.train import TrainInputs, TrainSpec, TrainUnit, train_key, train_stage
from tasks.training import Settings, train_model, weightless
from tests.tasks.stage_case import DATA, Killed, dying_at, indexed, part_bytes
from tests.tasks.training_case import same_state

STEPS, POINTS = 24, 5
GRID = [5, 10, 15, 20, 24]


def spec_of(**changes: Any) -> TrainSpec:
    model = {"use": "mlp", "args": {"hidden": [16], "dropout": 0.25}}
    return TrainSpec.model_validate(
        {"model": model, "steps": STEPS, "batch_size": 32, "lr": 0.02, "checkpoint_every_s": 0, **changes}
    )


UNIT = TrainUnit("full", 1.0, 0, None, None, STEPS, 3, keeps_model=True)


def run(spec: TrainSpec, store: Store, index: Seal) -> Seal:
    key = train_key(spec, keep=1.0, seed=3, source_key=index.key, index_key=index.key, code="", keeps_model=True)
    return train_stage(spec, TrainInputs(DATA, index, "", [(key, UNIT)]), store, SerialPool())[0]


def model_of(store: Store, seal: Seal) -> dict[str, torch.Tensor]:
    part = seal.part("model.pt")
    assert part is not None
    state: dict[str, torch.Tensor] = decode_state(read_part(store, part), part.name)["model"]
    return state


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Seal]:
    return indexed(tmp_path_factory.mktemp("curve"))


@pytest.fixture(scope="module")
def curved(place: tuple[Store, Seal]) -> Seal:
    return run(spec_of(curve=POINTS), *place)


def test_a_grid_is_even_and_ends_with_the_last_step() -> None:
    assert grid(POINTS, STEPS) == GRID
    assert grid(1, 300) == [300] and grid(4, 300) == [75, 150, 225, 300]
    # No step twice where there are more points than steps.
    assert grid(1000, 3) == [1, 2, 3]


def test_evaluation_on_the_way_changes_no_weight_and_no_result(place: tuple[Store, Seal], curved: Seal) -> None:
    store, index = place
    plain = run(spec_of(), store, index)
    assert "curve" not in plain.meta and plain.key != curved.key
    assert same_state(model_of(store, plain), model_of(store, curved))
    assert {name: value for name, value in curved.meta.items() if name != "curve"} == dict(plain.meta)
    for name in ("test.parquet", "validation.parquet"):
        tables = [load_part(store, part) for seal in (plain, curved) if (part := seal.part(name)) is not None]
        assert len(tables) == 2 and tables[0].equals(tables[1])


def test_what_asks_for_no_curve_is_as_it_was(place: tuple[Store, Seal]) -> None:
    assert spec_of().identity() == spec_of(curve=0).identity() and "curve" not in spec_of().identity()
    given: dict[str, Any] = {"keep": 1.0, "seed": 3, "source_key": "s", "index_key": "i", "code": ""}
    assert train_key(spec_of(), **given) == train_key(spec_of(curve=0), **given)
    assert len({train_key(spec_of(curve=points), **given) for points in (0, 5, 6)}) == 3
    store, index = place
    seal = run(spec_of(lr=0.01), store, index)
    assert not store.exists(f"{Unit(store, 'train', seal.key).folder}/times.json")


def test_points_are_the_accuracies_of_the_model_at_these_steps(place: tuple[Store, Seal], curved: Seal) -> None:
    store, index = place
    spec, dataset = spec_of(), Dataset(DATA, index, store)
    states: dict[int, dict[str, torch.Tensor]] = {}
    settings = Settings(STEPS, 3, 32, 0.02, spec.weight_decay)
    model = build_model(spec.model, dataset.shape, 10, 3)
    pipeline = Pipeline(Recipe())
    train_model(model, weightless(dataset.load(TRAIN)), settings, pipeline, snapshots=GRID, snapshot=states.__setitem__)
    want: Mapping[int, list[float | None]] = {TEST: [], VALIDATION: []}
    for step in GRID:
        model.load_state_dict(states[step])
        for split, accuracies in want.items():
            examples = dataset.load(split)
            accuracies.append(percent_correct(examples.y, predict(model, examples.x, pipeline, Numerics())))
    assert curved.meta["curve"] == {"steps": GRID, "accuracy": want[TEST], "validation_accuracy": want[VALIDATION]}
    last = [curved.meta["curve"][name][-1] for name in ("accuracy", "validation_accuracy")]
    assert last == [curved.meta["accuracy"], curved.meta["validation_accuracy"]]
    assert len(set(want[TEST])) > 2


@pytest.mark.parametrize("at", [2, 3, 4, 5, 6, 7, 8])
def test_a_resumed_training_has_the_whole_curve(place: tuple[Store, Seal], curved: Seal, tmp_path: Path, at: int) -> None:
    store, index = place
    fresh, _ = indexed(tmp_path)
    # Writes of one training: its lease, a checkpoint for each of three epochs, the times, three parts, the seal.
    with pytest.raises(Killed):
        run(spec_of(curve=POINTS), dying_at(fresh, at, "train-"), index)
    assert fresh.exists(f"{Unit(fresh, 'train', curved.key).folder}/times.json") == (at > 5)
    seal = run(spec_of(curve=POINTS), fresh, index)
    assert part_bytes(fresh, seal) == part_bytes(store, curved)
    times = read_times(Unit(fresh, "train", seal.key), GRID)
    assert times is not None and len(times) == POINTS and times == sorted(times)


def test_times_that_make_no_sense_are_none(place: tuple[Store, Seal], curved: Seal, tmp_path: Path) -> None:
    unit = Unit(place[0], "train", curved.key)
    assert read_times(unit, GRID) is not None and read_times(unit, GRID[1:]) is None
    other = Unit(Store(str(tmp_path)), "train", curved.key)
    assert read_times(other, GRID) is None
    whole = place[0].read(f"{unit.folder}/times.json")
    name = f"{unit.folder}/times.json"
    body = decode_json(whole, name)
    wrong: list[dict[str, Any]] = [{**body, "key": "0" * 64}, {**body, "seconds": [-1.0] * POINTS}, {**body, "seconds": "a"}, {}]
    torn = (b"", b"[]", b"{}", whole[:-9], whole.replace(b'"seconds":[', b'"seconds":[9'))
    for data in (*torn, *(encode_json(one, name) for one in wrong)):
        other.store.replace(f"{other.folder}/times.json", data)
        assert read_times(other, GRID) is None
    other.store.replace(f"{other.folder}/times.json", whole)
    assert read_times(other, GRID) == read_times(unit, GRID)


def test_the_clock_stands_while_a_point_is_evaluated_and_goes_on_from_a_state() -> None:
    curve = Curve([1, 2])
    curve.begin()
    spent = curve.pause()
    assert curve.pause() == spent
    curve.add(1, (10.0, None))
    state = curve.state()
    assert state["found"] == {1: [10.0, None]} and state["spent"] >= spent
    again = Curve([1, 2])
    again.begin(state)
    assert again.pause() >= state["spent"] and again.found == {1: (10.0, None)} and again.seconds == {1: spent}
    again.add(2, (20.0, None))
    assert again.record() == {"steps": [1, 2], "accuracy": [10.0, 20.0], "validation_accuracy": None}
    assert np.diff([again.seconds[1], again.seconds[2]]) >= 0
