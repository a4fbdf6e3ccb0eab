"""Features of the members of a band in the select stage: read by shard, in principal components, from inputs and proxies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cluster.errors import InputError
from cluster.record import Seal
from cluster.storage import Store
from flows.config import load_config, parse_config
from flows.plan import make_plan
from tasks.dataset import Dataset
from tasks.merge import MergeInputs, merge_stage
from tasks.pool import SerialPool
from tasks.proxy import load_checkpoint
from tasks.recipe import Pipeline
from tasks.schemas import TRAIN
from tasks.selecting import SelectInputs, SelectionUnit, selection_key, selection_stage
from tasks.selection import SelectionSpec, features
from tasks.selection.features import InputFeatures
from tasks.selection.proxy_features import ProxyFeatures
from tasks.selection.stage import load_selection
from tasks.sources.spec import DataSpec
from tests.flows.serial_run import run_serially
from tests.oracles import prototypes as oracle
from tests.tasks.data_case import index, pictures, write_idx
from tests.tasks.score_case import ALL, PROXY, Base
from tests.tasks.stage_case import DATA, indexed, part_bytes

I64 = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Return a store with an index and two trained proxies."""
    return Base(tmp_path_factory.mktemp("features"))


def select_inputs(base: Base, folder: Path, shard_rows: int) -> SelectInputs:
    """Return what the select stage reads, of data cut into shards of so many rows, with scores of the user's own."""
    scoring = base.resharded(folder, shard_rows)
    ids = Dataset(scoring.data, scoring.index, base.store).ids(TRAIN)
    scores = np.random.default_rng(4).random(len(ids))
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"example_id": ids, "el2n": scores}), folder / "scores.parquet")
    uri = str(folder / "scores.parquet")
    merge = merge_stage(MergeInputs(scoring.data, scoring.index, scores_uri=uri), base.store, SerialPool())
    return SelectInputs(scoring.data, scoring.index, merge, scoring=(ALL, scoring))


def band(**settings: Any) -> SelectionSpec:
    """Return a spec of prototype_band over el2n that keeps 20 examples or so."""
    return SelectionSpec(protocol="prototype_band", score="el2n", keep=0.1, beta=0.1, width=0.6, components=3, **settings)


def selected(inputs: SelectInputs, spec: SelectionSpec, store: Store) -> Seal:
    """Run the select stage for one selection."""
    assert inputs.merge is not None
    unit = selection_key(spec, 5, inputs.merge.key), SelectionUnit(spec, 5)
    return selection_stage([unit], inputs, store, SerialPool())[0]


@pytest.mark.parametrize("kind", ["pca", "proxy"])
def test_a_selection_is_the_same_for_any_shards(base: Base, tmp_path: Path, kind: str) -> None:
    spec = band(features=kind)
    seals = [selected(select_inputs(base, tmp_path / str(size), size), spec, base.store) for size in (50, 7, 1000)]
    rows = [load_selection(base.store, seal).to_pydict() for seal in seals]
    assert rows[0] == rows[1] == rows[2] and len(rows[0]["example_id"]) == seals[0].meta["num_kept"] > 15
    meta, members = seals[0].meta, round(0.6 * seals[0].meta["n"])
    assert (meta["features"], meta["components"], meta["feature_components"]) == (kind, 3, 3)
    # The mlp has 16 hidden units, and there are two of them.
    assert meta["feature_width"] == (6 if kind == "pca" else 32)
    assert (meta["fitted_on"], meta["drawn_from"], meta["filled"], meta["inclusion"]) == (members, members, 0, "nominal")


def test_components_are_the_oracles(base: Base) -> None:
    ids = np.sort(base.dataset.ids(TRAIN)[3::4])
    where = {int(one): place for place, one in enumerate(base.dataset.load(TRAIN).example_id)}
    x = base.dataset.load(TRAIN).x[[where[int(one)] for one in ids]].astype(np.float64)
    found = InputFeatures(base.dataset, 2)(ids)
    truth = np.array(oracle.principal(x.tolist(), 2))
    signs = np.sign((found.values * truth).sum(axis=0))
    np.testing.assert_allclose(found.values * signs, truth, atol=1e-4)
    assert found.facts == {"feature_width": 6, "feature_components": 2, "fitted_on": len(ids)}
    # Where there are no more numbers than components they are taken as they are.
    whole = InputFeatures(base.dataset, 6)(ids)
    assert np.array_equal(whole.values, x) and whole.facts["fitted_on"] == 0
    assert InputFeatures(base.dataset, 2)(ids[:1]).values.shape == (1, 6)


def test_components_of_many_members_are_fitted_on_a_sample(base: Base, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ids = base.dataset.ids(TRAIN)
    every = InputFeatures(base.dataset, 3)(ids)
    monkeypatch.setattr(features, "FIT_ROWS", 64)
    inputs = base.resharded(tmp_path, 11)
    found = [InputFeatures(Dataset(inputs.data, inputs.index, base.store), 3)(ids), InputFeatures(base.dataset, 3)(ids)]
    assert np.array_equal(found[0].values, found[1].values) and found[0].facts["fitted_on"] == 64
    assert every.facts["fitted_on"] == len(ids) and not np.array_equal(every.values, found[0].values)
    # At least as many as there are components.
    monkeypatch.setattr(features, "FIT_VALUES", 6)
    assert InputFeatures(base.dataset, 3)(ids).facts["fitted_on"] == 3
    with pytest.raises(InputError, match="of which the data hold"):
        InputFeatures(base.dataset, 6)(np.append(ids, 2**62))
    monkeypatch.setattr(features, "MAX_BYTES", 12 * len(ids) - 1)
    with pytest.raises(InputError, match=rf"{len(ids)} members of 3 components, {12 * len(ids)} bytes.*lower width"):
        InputFeatures(base.dataset, 3)(ids)


def test_pictures_are_over_255_and_equal_ones_have_equal_components(tmp_path: Path) -> None:
    images = pictures(700)
    images[1::2] = images[0]
    for stem in ("train", "t10k"):
        write_idx(tmp_path / "idx", stem, images, (np.arange(700) % 3).astype(np.uint8), pack=False)
    for shard_rows in (1000, 53):
        spec = DataSpec(source="idx", train=str(tmp_path / "idx"), shard_rows=shard_rows)
        dataset = index(tmp_path, spec, f"store{shard_rows}")[1]
        examples = dataset.load(TRAIN)
        flat = examples.x.reshape(len(examples), -1).astype(np.float32) / np.float32(255)
        assert np.array_equal(InputFeatures(dataset, 25)(examples.example_id).values, flat)
        found = InputFeatures(dataset, 10)(examples.example_id).values
        equal = (flat == images[0].reshape(-1).astype(np.float32) / np.float32(255)).all(axis=1)
        assert equal.sum() > 250 and len(np.unique(found[equal], axis=0)) == 1
        assert len(np.unique(found, axis=0)) > 250


def test_features_of_proxies_are_what_goes_into_their_last_layers(base: Base) -> None:
    examples = base.dataset.load(TRAIN)
    reader = ProxyFeatures(base.dataset, 32, ALL, base.inputs, base.store)
    got = reader(examples.example_id).values
    x = Pipeline(PROXY.recipe).prepare(examples.x)
    truth = []
    for seal in base.proxies:
        state = load_checkpoint(base.store, seal)["model"]
        truth.append(torch.relu(x.flatten(1) @ state["body.0.weight"].T + state["body.0.bias"]))
    np.testing.assert_allclose(got, torch.cat(truth, dim=1).numpy(), rtol=1e-4, atol=1e-5)


def test_a_proxy_without_a_last_linear_layer_is_refused(base: Base) -> None:
    reader = ProxyFeatures(base.dataset, 3, ALL, base.inputs, base.store)
    head = torch.nn.Conv1d(16, 3, 1)
    reader.models[0] = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 16), torch.nn.Unflatten(1, (16, 1)), head,
                                           torch.nn.Flatten())  # fmt: skip
    with pytest.raises(InputError, match=r"this proxy has none .*use features: pca"):
        reader(base.dataset.ids(TRAIN))


def test_without_proxies_their_features_are_refused(base: Base, tmp_path: Path) -> None:
    inputs = select_inputs(base, tmp_path, 50)
    assert inputs.scoring is not None
    for scoring in (None, (ALL, replace(inputs.scoring[1], proxies=()))):
        with pytest.raises(InputError, match="there are no proxies"):
            selected(replace(inputs, scoring=scoring), band(features="proxy", classes="proportional"), base.store)


def test_a_selection_is_made_again_to_the_byte(base: Base, tmp_path: Path) -> None:
    bytes_of = []
    for name in ("one", "two"):
        store, made = indexed(tmp_path / name)
        ids = Dataset(DATA, made, store).ids(TRAIN)
        pq.write_table(pa.table({"example_id": ids, "el2n": np.arange(len(ids)) % 50 / 50}), tmp_path / "scores.parquet")
        merge = merge_stage(MergeInputs(DATA, made, scores_uri=str(tmp_path / "scores.parquet")), store, SerialPool())
        seal = selected(SelectInputs(DATA, made, merge), band(), store)
        bytes_of.append(part_bytes(store, seal))
    assert bytes_of[0] == bytes_of[1]


def test_configurations_in_which_no_proxy_can_be_read_are_refused() -> None:
    arm = {"protocol": "prototype_band", "score": "random", "direction": "high", "beta": 0.1, "width": 0.5, "features": "proxy"}
    model = {"use": "mlp", "args": {"hidden": [8]}}
    body: dict[str, Any] = {
        "name": "no_proxy",
        "data": {"source": "sklearn", "train": "digits"},
        "proxy": {"model": model, "steps": 2},
        "score": {"scores": ["random"]},
        "select": {"keep": 0.1, "arms": [arm]},
        "train": {"model": model, "steps": 2},
    }
    with pytest.raises(InputError, match="no score here needs a proxy"):
        parse_config(body)
    own = {name: value for name, value in body.items() if name not in ("proxy", "score")} | {"scores": "mine.parquet"}
    with pytest.raises(InputError, match="no score here needs a proxy"):
        parse_config(own)
    body["score"] = {"scores": ["random", "el2n"], "numerics": {"device": "cuda"}}
    with pytest.raises(InputError, match=r"give select.resources.gpus"):
        parse_config(body)
    body["select"]["resources"] = {"gpus": 1}
    assert parse_config(body).select.arms[0].features == "proxy"


def test_a_selection_by_proxies_hangs_on_them() -> None:
    root = Path(__file__).parents[2]
    arm = "{protocol: prototype_band, score: el2n, beta: 0.1, width: 0.5, features: proxy}"
    plans = [
        make_plan(load_config(str(root / "configs/quickstart.yaml"), [f"select.arms=[{arm}]", "score.scores=[el2n]", *more]))
        for more in ([], ["proxy.lr=0.001"])
    ]
    keys = [{key for key, unit in plan.selections.values() if unit.spec.features} for plan in plans]
    assert plans[0].proxies != plans[1].proxies and keys[0] and not keys[0] & keys[1]


@pytest.mark.timeout(300)
def test_a_run_ends_in_results_of_its_prototypes(tmp_path: Path) -> None:
    model = {"use": "mlp", "args": {"hidden": [16]}}
    arm = {"protocol": "prototype_band", "score": "el2n", "beta": 0.1, "width": 0.6}
    plan = make_plan(
        parse_config(
            {
                "name": "prototypes",
                "data": {"source": "sklearn", "train": "digits", "limit": 200},
                "proxy": {"model": model, "seeds": 2, "steps": 20, "batch_size": 32},
                "score": {"scores": ["el2n"]},
                "select": {"keep": 0.2, "arms": [{**arm, "name": kind, "features": kind} for kind in ("pca", "proxy")]},
                "train": {"model": model, "steps": 2, "batch_size": 16, "replicates": 2, "full": False},
            }
        )
    )
    store = Store(str(tmp_path))
    results = run_serially(plan, store, SerialPool())
    found = {arm["name"]: arm for arm in results["arms"]}
    assert {found[kind]["n_kept"] for kind in ("pca", "proxy", "random")} == {found["random"]["n_kept"]}
    table = pq.read_table(pa.BufferReader(store.read(f"runs/{plan.run_name}/report/results.parquet"))).to_pylist()
    assert {(row["arm"], row["features"], row["components"]) for row in table} == {
        ("random", None, None), ("pca", "pca", 40), ("proxy", "proxy", 40)
    }  # fmt: skip
