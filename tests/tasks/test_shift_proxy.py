"""Distribution shift on the features of a proxy: in a whole run, verified and healed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.errors import InputError
from cluster.record import Seal, Unit
from cluster.storage import Store
from flows.config import parse_config
from flows.healing import heal_run
from flows.lineage import load_lineage
from flows.plan import Plan, sealed
from flows.runs import make_report
from flows.verify import verify_run
from tasks.dataset import Dataset
from tasks.models.build import build_model
from tasks.pool import SerialPool
from tasks.proxy import load_checkpoint
from tasks.schemas import TRAIN
from tasks.score import ScoreSpec
from tasks.shift.features import load_features
from tasks.shift.spec import ShiftSpec
from tasks.spec import Use
from tests.flows import verify_case
from tests.flows.serial_run import run_serially
from tests.tasks.stage_case import part_bytes

Run = tuple[Plan, Store, Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("proxy-shift")
    plan, store = verify_case.plan(), Store(str(folder / "store"))
    run_serially(plan, store, SerialPool())
    return plan, store, folder / "store"


def _features(plan: Plan, store: Store) -> Seal:
    assert plan.features is not None
    return sealed(Unit(store, "features", plan.features))


def test_coordinates_are_components_of_what_goes_into_the_last_layer(run: Run) -> None:
    plan, store, _ = run
    seal = _features(plan, store)
    assert (seal.meta["features"], seal.meta["values"], seal.meta["of_values"]) == ("proxy", 64, 64)
    proxy = sealed(Unit(store, "proxy", plan.proxies[0]))
    assert plan.config.proxy is not None
    dataset = Dataset(plan.config.data, sealed(Unit(store, "shard", plan.shard)), store)
    model = build_model(plan.config.proxy.model, dataset.shape, dataset.num_classes, 0)
    model.load_state_dict(load_checkpoint(store, proxy)["model"])
    x = torch.from_numpy(dataset.load(TRAIN).x).float()
    x = x / 255 if dataset.dtype == "uint8" else x
    seen: list[torch.Tensor] = []
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    handle = last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.eval()(x)
    handle.remove()
    full = load_features(store, seal)
    assert np.allclose(full.place(seen[0].numpy()), full.coordinates, atol=1e-4)
    results = json.loads(store.read(f"runs/{plan.run_name}/report/results.json"))["shift"]
    assert results["features"] == "proxy" and [row["arm"] for row in results["arms"]] == ["random", "topk el2n"]
    page = store.read(f"runs/{plan.run_name}/report/index.html").decode()
    assert "what goes into the first proxy&#x27;s last layer" in page


def test_features_come_from_the_proxy_and_figures_from_all_they_read(run: Run) -> None:
    plan, store, _ = run
    sources = load_lineage(plan.run_name, store).sources(store)
    assert sources["features", plan.features or ""] == {("shard", plan.shard), ("proxy", plan.proxies[0])}
    for one in plan.shifts:
        assert {stage for stage, _ in sources["shift", one.key]} == {"shard", "merge", "features", "select", "subset"}
    plain = verify_case.plan("shift.features=inputs")
    assert plain.features != plan.features and plain.merge == plan.merge
    assert verify_case.plan("proxy.seeds=2").features == plan.features
    assert verify_case.plan("proxy.lr=0.01").features != plan.features


def test_features_are_a_proxys_where_one_of_a_built_in_model_is_trained(run: Run) -> None:
    plan, _, _ = run
    assert plan.config.shift is not None and plan.config.shift.features == "proxy"
    assert verify_case.plan("shift.features=proxy").run_name == plan.run_name
    # What was recorded is read back as it was meant.
    again = parse_config(plan.config.model_dump(mode="json"))
    assert again == plan.config
    inputs = verify_case.config("shift.features=inputs")
    assert parse_config(inputs.model_dump(mode="json")).shift == inputs.shift
    for settings in (["proxy.model=mine.models:net", "code=[tests]"], ["score.scores=[random]", "select.arms.0.score=random"]):
        found = verify_case.config(*settings).shift
        assert found is not None and found.features == "inputs"


def test_on_cuda_the_stage_takes_the_gpus_of_the_score_stage_where_it_was_given_none() -> None:
    score = ScoreSpec.model_validate({"scores": ["el2n"], "numerics": {"device": "cuda"}, "resources": {"gpus": 0.5}})
    named = ShiftSpec().named(score, Use(use="mlp"))
    assert (named.features, named.resources.gpus) == ("proxy", 0.5)
    asked = ShiftSpec.model_validate({"resources": {"gpus": 1}}).named(score, Use(use="mlp"))
    assert asked.resources.gpus == 1
    assert ShiftSpec().named(score, None).features == "inputs" and not ShiftSpec().named(score, None).resources.gpus


def test_what_is_lost_is_healed_to_the_same_bytes(run: Run) -> None:
    plan, store, root = run
    before = part_bytes(store, _features(plan, store))
    folder = root / Unit(store, "features", plan.features or "").folder
    (folder / "parts" / "basis.npy").unlink()
    shift = root / Unit(store, "shift", plan.shifts[0].key).folder / "seal.json"
    figures = shift.read_bytes()
    verify_case.edit_seal(shift, lambda body: body["meta"].update(made_up=1))
    lineage = load_lineage(plan.run_name, store)
    healings = heal_run(lineage, verify_run(lineage, store), store)
    assert len(healings) == 2 and all(one.healed for one in healings), healings
    assert part_bytes(store, _features(plan, store)) == before and shift.read_bytes() == figures
    make_report(plan, store, [])
    assert verify_run(lineage, store).damage == []


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        (3, "'shift' is 3"),
        ({"feature": "proxy"}, "unknown key 'shift.feature'; did you mean 'features'"),
        ({"features": "pca"}, r"shift\.features"),
        ({"features": "proxy"}, "no score here needs a proxy.*set shift.features to inputs"),
        ({"cells": 0}, r"shift\.cells"),
    ],
)
def test_settings_that_make_no_sense_get_one_message(shift: object, message: str) -> None:
    body = {
        "name": "mine", "data": {"source": "sklearn", "train": "digits"}, "scores": "mine.parquet",
        "select": {"keep": 0.1, "arms": [{"protocol": "topk", "score": "a", "direction": "high"}]},
        "train": {"model": "mlp", "steps": 1}, "shift": shift,
    }  # fmt: skip
    with pytest.raises(InputError, match=message) as caught:
        parse_config(body)
    assert "\n" not in str(caught.value)
