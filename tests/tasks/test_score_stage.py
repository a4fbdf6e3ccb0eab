"""The score stage: right scores for the right ids, the same bytes for any shards, resumed and never half done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cluster.errors import CorruptError, InputError, StageError
from cluster.record import Seal, Unit
from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.models.build import build_model
from tasks.pool import SerialPool
from tasks.proxy import ProxyInputs, ProxySpec, load_checkpoint, proxy_stage
from tasks.schemas import TRAIN, scores_schema
from tasks.score import (
    ScoreInputs,
    ScoreSpec,
    ScoreUse,
    checkpoints_needed,
    column_name,
    needs_proxies,
    score_columns,
    score_stage,
    scorer_key,
)
from tasks.score_worker import score_unit
from tasks.scores.uniform import uniform
from tasks.shard import shard_stage
from tasks.sources.spec import DataSpec
from tasks.spec import Use
from tasks.tables import footer_of, load_part
from tests.oracles import scores as oracle
from tests.tasks.score_case import ALL, CLASSES, PROXY, WIDTH, Base, data_spec, write_data
from tests.tasks.stage_case import CountingPool, Killed, dying_at


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECATEUR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(tmp_path_factory.mktemp("score"))


@pytest.fixture(scope="module")
def scored(base: Base) -> Seal:
    return score_stage(ALL, base.inputs, base.store, SerialPool())


def rows_of(store: Store, seal: Seal) -> dict[int, dict[str, float]]:
    """Return {example_id: {column: value}} over all parts; every id once."""
    out: dict[int, dict[str, float]] = {}
    for part in seal.parts:
        table = load_part(store, part)
        for row in table.to_pylist():
            assert row["example_id"] not in out
            out[row["example_id"]] = row
    return out


def test_every_score_of_every_train_example_equals_its_oracle(base: Base, scored: Seal) -> None:
    rows = rows_of(base.store, scored)
    train = base.dataset.load(TRAIN)
    assert sorted(rows) == train.example_id.tolist() and len(rows) == base.dataset.num_train
    inputs = torch.from_numpy((train.x - 3.0) / 2.0)  # Trap 6: as the recipe's transform has it.
    targets = torch.from_numpy(train.y)
    expected: dict[str, list[np.ndarray[Any, Any]]] = {}
    for seal in base.proxies:
        for at in (0.25, 1.0):
            model = build_model(PROXY.model, (WIDTH,), CLASSES, 0)
            model.load_state_dict(load_checkpoint(base.store, seal, at)["model"])
            with torch.no_grad():
                logits = model.eval()(inputs).numpy()
            if at != 1:
                expected.setdefault("el2n@0.25", []).append(oracle.from_logits("el2n", logits, train.y))
                continue
            for name in oracle.FROM_LOGITS:
                expected.setdefault(name, []).append(oracle.from_logits(name, logits, train.y))
            expected.setdefault("grand", []).append(oracle.gradient_norms(model, inputs, targets))
            last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
            hidden: list[torch.Tensor] = []
            handle = last.register_forward_hook(lambda module, args, out, hidden=hidden: hidden.append(args[0]))
            with torch.no_grad():
                model(inputs)
            handle.remove()
            expected.setdefault("grand_last", []).append(
                oracle.last_layer_norms(hidden[0].numpy(), logits, train.y, last.bias is not None)
            )
        dynamics = load_part(base.store, next(part for part in seal.parts if part.name.endswith("dynamics.parquet")))
        by_id = {row["example_id"]: row for row in dynamics.to_pylist()}
        for name in ("forgetting", "aum"):
            expected.setdefault(name, []).append(np.array([by_id[i][name] for i in train.example_id.tolist()]))
        expected.setdefault("never_learned", []).append(
            np.array([float(by_id[i]["never_learned"]) for i in train.example_id.tolist()])
        )
    for name, each in expected.items():
        column = np.array([rows[i][name] for i in train.example_id.tolist()])
        np.testing.assert_allclose(column, np.mean(each, axis=0), rtol=1e-4, atol=1e-6, err_msg=name)
        if name == "never_learned":
            continue
        spread = np.array([rows[i][f"{name}_std"] for i in train.example_id.tolist()])
        np.testing.assert_allclose(spread, np.std(each, axis=0, ddof=1), rtol=1e-3, atol=2e-6, err_msg=name)
        for number, values in enumerate(each):
            single = np.array([rows[i][f"{name}_s{number}"] for i in train.example_id.tolist()])
            np.testing.assert_allclose(single, values, rtol=1e-4, atol=1e-6, err_msg=name)
    column = np.array([rows[i]["random"] for i in train.example_id.tolist()], np.float32)
    np.testing.assert_array_equal(column, uniform(0, train.example_id))


def test_trap_1_and_16_parts_hold_the_ids_of_their_shard_in_row_order(base: Base, scored: Seal) -> None:
    parts = {part.name.rpartition("/")[2]: part for part in scored.parts}
    shards = base.dataset.shards()
    assert len(shards) == len(parts) == 5
    moved = 0
    for shard in shards:
        table = load_part(base.store, parts[shard.part_name])
        ids = table.column("example_id").to_numpy()
        np.testing.assert_array_equal(ids, base.dataset.read(shard, TRAIN).example_id)
        moved += int(not np.array_equal(ids, np.sort(ids)))
        assert table.schema.remove_metadata().equals(scores_schema(list(score_columns(ALL, 2))))
        assert footer_of(table, "")["key"] == score_unit(ALL, base.inputs, base.store)[1]
    assert moved == len(shards), "the ids of this data are shuffled, so a sorted part would be a wrong one"


def test_tables_say_what_they_hold(base: Base, scored: Seal) -> None:
    metadata = load_part(base.store, scored.parts[0]).schema.metadata
    facts = {name.decode(): json.loads(value) for name, value in metadata.items() if name not in (b"ARROW:schema",)}
    for held in (facts, scored.meta):
        assert held["mode"] == "eval" and held["augmentation"] == "none"
        assert held["seeds"] == [seal.meta["seed"] for seal in base.proxies] and len(set(held["seeds"])) == 2
        assert held["directions"]["margin"] == "low" and held["directions"]["el2n"] == "high"
        assert held["directions"]["el2n_s1"] == "high" and held["directions"]["el2n_std"] is None
        entry = next(one for one in held["scores"] if one["column"] == "el2n@0.25")
        assert entry == {
            "score": "el2n", "column": "el2n@0.25", "definition_version": 1, "direction": "high", "checkpoint": 0.25
        }  # fmt: skip
        assert set(held["models"]) == {"0.25", "1"} and all(len(digests) == 2 for digests in held["models"].values())
    assert scored.meta["num_rows"] == base.dataset.num_train
    assert scored.meta["columns"] == list(score_columns(ALL, 2))


@pytest.mark.parametrize("shard_rows", [10, 33, 1000])
def test_scores_have_the_same_bits_for_any_shard_size(
    base: Base, scored: Seal, shard_rows: int, tmp_path: Path
) -> None:
    seal = score_stage(ALL, base.resharded(tmp_path, shard_rows), base.store, SerialPool())
    assert len(seal.parts) != len(scored.parts)
    assert rows_of(base.store, seal) == rows_of(base.store, scored)


@pytest.mark.parametrize("hidden", [[8], [3]])
def test_so_have_those_of_a_narrow_layer_whose_last_bits_depend_on_the_slot(hidden: list[int], tmp_path: Path) -> None:
    proxy = PROXY.model_copy(update={"model": Use(use="mlp", args={"hidden": hidden})})
    base = Base(tmp_path, proxy)
    spec = ScoreSpec.model_validate({"scores": ["el2n", "grand", "grand_last", "margin"], "forward_rows": 32})
    expected = rows_of(base.store, score_stage(spec, base.inputs, base.store, SerialPool()))
    for shard_rows in (7, 33, 1000):
        seal = score_stage(spec, base.resharded(tmp_path, shard_rows), base.store, SerialPool())
        assert rows_of(base.store, seal) == expected


def test_a_killed_stage_keeps_its_parts_and_scores_only_the_rest(base: Base, scored: Seal, tmp_path: Path) -> None:
    spec = ScoreSpec.model_validate({"scores": ["el2n", "grand", "aum"], "forward_rows": 32})
    unit, _ = score_unit(spec, base.inputs, base.store)
    with pytest.raises(Killed):
        score_stage(spec, base.inputs, dying_at(base.store, 3, unit.folder), SerialPool())
    assert unit.seal() is None and len(base.store.list(f"{unit.folder}/parts")) == 2
    pool = CountingPool()
    seal = score_stage(spec, base.inputs, base.store, pool)
    assert len(pool.items) == 3
    again = CountingPool()
    assert score_stage(spec, base.inputs, base.store, again) == seal and again.items == []
    first, second = rows_of(base.store, seal), rows_of(base.store, scored)
    # Which scores are asked for together does not change them.
    assert all(row[name] == second[i][name] for i, row in first.items() for name in ("el2n", "grand_s1", "aum"))


def test_a_part_of_other_rows_is_refused_when_it_is_found(base: Base) -> None:
    spec = ScoreSpec.model_validate({"scores": ["entropy"], "forward_rows": 32})
    unit, _ = score_unit(spec, base.inputs, base.store)
    score_stage(spec, base.inputs, base.store, SerialPool())
    base.store.remove(f"{unit.folder}/{unit.seal_name}")
    one, two = (unit.part_name(shard.part_name) for shard in base.dataset.shards()[:2])
    swapped = base.store.read(one)
    base.store.remove(two)
    base.store.create(two, swapped)
    with pytest.raises(CorruptError, match="belongs elsewhere"):
        score_stage(spec, base.inputs, base.store, SerialPool())


def test_scores_that_need_no_proxy_train_none_and_read_no_features(base: Base) -> None:
    spec = ScoreSpec.model_validate({"scores": ["random"]})
    assert not needs_proxies(spec)
    inputs = ScoreInputs(base.data, base.index, PROXY, [], "", 5)
    rows = rows_of(base.store, score_stage(spec, inputs, base.store, SerialPool()))
    ids = np.array(sorted(rows))
    np.testing.assert_array_equal(np.array([rows[i]["random"] for i in ids.tolist()], np.float32), uniform(5, ids))
    with pytest.raises(InputError, match=r"proxy\.seeds"):
        score_stage(ScoreSpec.model_validate({"scores": "el2n"}), inputs, base.store, SerialPool())


def test_trap_11_every_proxy_has_scores_of_its_own(base: Base, scored: Seal) -> None:
    rows = rows_of(base.store, scored)
    for name in ("el2n", "grand", "aum"):
        assert any(row[f"{name}_s0"] != row[f"{name}_s1"] for row in rows.values())
        assert all(row[f"{name}_std"] >= 0 for row in rows.values())


def test_one_proxy_has_no_spread(base: Base) -> None:
    inputs = ScoreInputs(base.data, base.index, PROXY, base.proxies[:1], "", 0)
    spec = ScoreSpec.model_validate({"scores": "el2n"})
    rows = rows_of(base.store, score_stage(spec, inputs, base.store, SerialPool()))
    assert all(row["el2n_std"] == 0 and row["el2n"] == row["el2n_s0"] for row in rows.values())


def test_trap_5_augmentation_is_off_when_scoring(base: Base, scored: Seal) -> None:
    recipe = PROXY.recipe.model_copy(update={"augment": None})
    with_augment = ProxySpec.model_validate(
        {**PROXY.model_dump(), "recipe": {**recipe.model_dump(), "augment": {"use": f"{__name__}:ruin"}}}
    )
    inputs = ScoreInputs(base.data, base.index, with_augment, base.proxies, "", 0)
    pool = CountingPool()
    spec = ScoreSpec.model_validate({"scores": ["loss", "el2n", "grand"], "forward_rows": 32})
    rows, expected = rows_of(base.store, score_stage(spec, inputs, base.store, pool)), rows_of(base.store, scored)
    assert len(pool.items) == 5, "nothing was sealed before"
    assert all(row[name] == expected[i][name] for i, row in rows.items() for name in ("loss_s0", "el2n", "grand_s1"))


def ruin(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Be an augmentation that nobody could overlook."""
    raise AssertionError("scoring augmented its inputs")


def test_trap_6_inputs_are_scored_as_the_proxies_were_trained_on_them(base: Base, scored: Seal) -> None:
    rows, train = rows_of(base.store, scored), base.dataset.load(TRAIN)
    model = build_model(PROXY.model, (WIDTH,), CLASSES, 0)
    model.load_state_dict(load_checkpoint(base.store, base.proxies[0], 1.0)["model"])
    column = np.array([rows[i]["loss_s0"] for i in train.example_id.tolist()])

    def losses(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            return oracle.from_logits("loss", model.eval()(torch.from_numpy(x)).numpy(), train.y)

    np.testing.assert_allclose(column, losses((train.x - 3) / 2), rtol=1e-4, atol=1e-6)
    assert np.abs(column - losses(train.x)).max() > 0.1


def test_trap_6_the_transform_of_the_recipe_is_part_of_the_key(base: Base) -> None:
    plain = ProxySpec.model_validate({**PROXY.model_dump(), "recipe": {}})
    keys = [
        scorer_key(ALL, proxy, ["a"], code="", seed=0, data=base.data, index_key=base.index.key)
        for proxy in (PROXY, plain)
    ]
    assert keys[0] != keys[1]


def explode(input_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
    """Be a model that has no finite logits for some inputs."""

    class Exploding(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bad = x[:, :1] > x[:, 1:2] + 4
            return torch.where(bad, torch.full_like(x[:, :1], float("nan")), super().forward(x))

    return Exploding(input_shape[0], num_classes)


def test_scores_that_are_not_finite_name_their_examples(base: Base, tmp_path: Path) -> None:
    proxy = ProxySpec.model_validate(
        {**PROXY.model_dump(), "model": {"use": f"{__name__}:explode"}, "lr": 1e-9, "recipe": {}}
    )
    # Trained on rows without such features, then met with one that has them: only scoring can see it.
    store = Store(str(tmp_path / "store"))
    tame = write_data(tmp_path / "data")
    table = pq.read_table(tame / "a.parquet")
    x = np.stack(table.column("features").to_numpy(zero_copy_only=False))
    x[:, 1] = x[:, 0]
    wild = x.copy()
    wild[7, 0] += 5
    wild[120, 0] += 5
    (tame / "b.parquet").unlink()

    def write(features: np.ndarray[Any, Any]) -> None:
        column = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), WIDTH)
        pq.write_table(table.set_column(1, "features", column), tame / "a.parquet")

    write(x)
    data = DataSpec.model_validate({**data_spec(tame).model_dump(), "validation": 0.05, "test_fraction": 0.05})
    index = shard_stage(data, store, SerialPool())
    proxies = proxy_stage(proxy, ProxyInputs(data, index, (1.0,), "", 0), store, SerialPool())
    write(wild)
    index = shard_stage(data, store, SerialPool())
    dataset = Dataset(data, index, store)
    train = set(dataset.ids(TRAIN).tolist())
    bad = [i for i in (int(table.column("key")[7].as_py()), int(table.column("key")[120].as_py())) if i in train]
    assert bad
    inputs = ScoreInputs(data, index, proxy, proxies, "", 0)
    spec = ScoreSpec.model_validate({"scores": ["el2n"], "forward_rows": 16})
    with pytest.raises(StageError) as caught:
        score_stage(spec, inputs, store, SerialPool())
    assert "el2n" in str(caught.value) and any(str(i) in str(caught.value) for i in bad)
    assert score_unit(spec, inputs, store)[0].seal() is None


def test_trap_16_examples_that_a_proxy_never_met_are_no_zeros(base: Base, tmp_path: Path) -> None:
    data = DataSpec.model_validate({**base.data.model_dump(), "validation": 0.02})
    index = shard_stage(data, base.store, SerialPool())
    inputs = ScoreInputs(data, index, PROXY, base.proxies, "", 0)
    with pytest.raises(CorruptError, match="no dynamics for"):
        score_stage(ScoreSpec.model_validate({"scores": "aum"}), inputs, base.store, SerialPool())


def test_shards_without_train_rows_have_empty_parts(base: Base, tmp_path: Path) -> None:
    small = {"limit": 40, "validation": 0.2, "test_fraction": 0.3}
    data = DataSpec.model_validate({**data_spec(Path(base.data.train), 10).model_dump(), **small})
    index = shard_stage(data, base.store, SerialPool())
    inputs = ScoreInputs(data, index, PROXY, base.proxies, "", 0)
    spec = ScoreSpec.model_validate({"scores": ["random", "el2n"], "forward_rows": 16})
    seal = score_stage(spec, inputs, base.store, SerialPool())
    assert any(part.rows == 0 for part in seal.parts)
    assert sum(part.rows for part in seal.parts) == seal.meta["num_rows"] == index.meta["num_train"]


def test_keys_follow_what_scores_depend_on_and_nothing_else(base: Base) -> None:
    def key(spec: ScoreSpec = ALL, proxies: tuple[str, ...] = ("a", "b"), **changes: Any) -> str:
        given = {"code": "", "seed": 0, "data": base.data, "index_key": "i", **changes}
        return scorer_key(spec, PROXY, list(proxies), **given)

    changed = [
        key(ALL.model_copy(update={"forward_rows": 64})), key(ALL.model_copy(update={"scores": ALL.scores[:-1]})),
        key(proxies=("a", "c")), key(code="x"), key(seed=1),
        key(data=base.data.model_copy(update={"validation": 0.2})),
        key(data=base.data.model_copy(update={"limit": 9})),
        key(data=base.data.model_copy(update={"limit": 9}), index_key="j"),
    ]  # fmt: skip
    assert len({key(), *changed}) == 1 + len(changed)
    workers = ALL.resources.model_copy(update={"workers": 7})
    assert key(ALL.model_copy(update={"resources": workers})) == key()
    assert key(index_key="j") == key(data=base.data.model_copy(update={"shard_rows": 3})) == key()
    assert key(data=base.data.model_copy(update={"train": "elsewhere"})) == key()
    unrandom = ALL.model_copy(update={"scores": ALL.scores[1:]})
    assert key(unrandom, seed=1) == key(unrandom, seed=2)


def test_specifications_check_themselves() -> None:
    assert ScoreUse.model_validate("el2n@0.1") == ScoreUse(name="el2n", at=0.1)
    assert column_name(ScoreUse(name="el2n", at=0.1)) == "el2n@0.1"
    spec = ScoreSpec.model_validate({"scores": ["el2n", {"name": "el2n", "at": 0.1}, "aum"]})
    assert checkpoints_needed(spec) == (0.1, 1.0)
    assert checkpoints_needed(ScoreSpec.model_validate({"scores": "el2n@0.1"})) == (0.1, 1.0)
    assert list(score_columns(ScoreSpec.model_validate({"scores": ["random", "forgetting"]}), 2)) == [
        "random", "forgetting", "forgetting_std", "forgetting_s0", "forgetting_s1", "never_learned",
    ]  # fmt: skip
    for wrong, message in (
        ("el2m", "did you mean 'el2n'"), ("aum@0.5", "whole training"), ("random@0.5", "no proxy"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            ScoreSpec.model_validate({"scores": wrong})
    with pytest.raises(InputError, match="more than once"):
        ScoreSpec.model_validate({"scores": ["el2n", "el2n@1"]})
    for bad in ({"scores": []}, {"scores": "el2n@1.5"}, {"scores": "el2n@0"}, {"scores": "el2n", "forward_rows": 8},
                {"scores": "el2n", "forward_row": 64}, {"scores": "el2n@x"}):  # fmt: skip
        with pytest.raises(ValueError):
            ScoreSpec.model_validate(bad)


def test_the_seal_is_of_the_index_and_the_parts_are_of_the_scorer(base: Base, scored: Seal) -> None:
    unit, scorer = score_unit(ALL, base.inputs, base.store)
    assert isinstance(unit, Unit)
    assert unit.folder == f"stages/score-{scorer[:12]}"
    assert base.store.exists(f"{unit.folder}/seal-{base.index.key[:12]}.json")
    assert all(part.name.startswith(f"{unit.folder}/parts/") for part in scored.parts)
