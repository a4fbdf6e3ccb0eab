"""The proxy stage: keys, parts, seeds, and resuming after a death at every write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster import lease
from cluster.errors import CorruptError, InputError
from cluster.record import Seal, Unit
from cluster.self_digest import filled
from cluster.storage import Store
from tasks.checkpoints import encode_checkpoint
from tasks.dataset import Dataset
from tasks.models.build import build_model
from tasks.pool import SerialPool
from tasks.proxy import (
    ProxyInputs,
    ProxySpec,
    checkpoint_part,
    checkpoint_steps,
    load_checkpoint,
    proxy_key,
    proxy_seed,
    proxy_stage,
)
from tasks.schemas import DYNAMICS, TRAIN, VALIDATION
from tasks.tables import load_part
from tests.tasks.stage_case import DATA, CountingPool, Killed, dying_at, indexed, part_bytes

SPEC = ProxySpec.model_validate(
    {"model": {"use": "mlp", "args": {"hidden": [16]}}, "seeds": 2, "epochs": 3, "batch_size": 32,
     "checkpoint_every_s": 0, "lr": 0.02}
)
POINTS = (0.3, 1.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Seal, list[Seal]]:
    store, index = indexed(tmp_path_factory.mktemp("proxy"))
    return store, index, proxy_stage(SPEC, inputs(index), store, SerialPool())


def inputs(index: Seal, seed: int = 0) -> ProxyInputs:
    return ProxyInputs(DATA, index, POINTS, "", seed)


def test_parts_are_dynamics_of_the_train_split_and_checkpoints(base: tuple[Store, Seal, list[Seal]]) -> None:
    store, index, seals = base
    dataset = Dataset(DATA, index, store)
    for number, seal in enumerate(seals):
        names = [part.name.rpartition("/")[2] for part in seal.parts]
        assert names == ["checkpoint-100.pt", "checkpoint-30.pt", "dynamics.parquet"]
        table = load_part(store, seal.parts[2])
        assert table.schema.remove_metadata().equals(DYNAMICS)
        assert np.array_equal(table.column("example_id").to_numpy(), dataset.ids(TRAIN))
        assert set(table.column("presentations").to_pylist()) == {3}
        assert seal.meta["number"] == number
        steps = 3 * -(-dataset.num_train // 32)
        assert seal.meta["steps"] == steps == load_checkpoint(store, seal, 1.0)["step"]
        assert load_checkpoint(store, seal, 0.3)["step"] == round(0.3 * steps)
        assert seal.meta["checkpoints"] == {"0.3": "checkpoint-30.pt", "1.0": "checkpoint-100.pt"}


def test_accuracies_are_those_of_the_last_checkpoint(base: tuple[Store, Seal, list[Seal]]) -> None:
    store, index, seals = base
    dataset = Dataset(DATA, index, store)
    model = build_model(SPEC.model, dataset.shape, 10, seed=1)
    model.load_state_dict(load_checkpoint(store, seals[0])["model"])
    for name, split in (("train_accuracy", TRAIN), ("validation_accuracy", VALIDATION)):
        examples = dataset.load(split)
        x = torch.tensor(examples.x)
        right = (model(x).argmax(1).numpy() == examples.y).mean()
        assert seals[0].meta[name] == pytest.approx(100 * right)
    assert seals[0].meta["train_accuracy"] > 30


def test_trap_11_every_proxy_has_a_seed_of_its_own(base: tuple[Store, Seal, list[Seal]]) -> None:
    store, _, seals = base
    assert len({seal.meta["seed"] for seal in seals}) == 2
    first, second = (load_checkpoint(store, seal)["model"] for seal in seals)
    assert all(not torch.equal(first[name], second[name]) for name in first)
    tables = [load_part(store, seal.parts[2]).column("aum").to_numpy() for seal in seals]
    assert not np.array_equal(tables[0], tables[1])
    assert len({proxy_seed(root, number) for root in range(20) for number in range(20)}) == 400


def test_done_proxies_are_not_trained_again_and_more_seeds_train_only_the_new(
    base: tuple[Store, Seal, list[Seal]],
) -> None:
    store, index, seals = base
    pool = CountingPool()
    assert proxy_stage(SPEC, inputs(index), store, pool) == seals
    assert pool.items == []
    more = proxy_stage(SPEC.model_copy(update={"seeds": 3}), inputs(index), store, pool)
    assert [item.number for item in pool.items] == [2]
    assert more[:2] == seals


def test_same_key_gives_the_same_bytes_in_another_store(base: tuple[Store, Seal, list[Seal]], tmp_path: Path) -> None:
    store, _, seals = base
    other, index = indexed(tmp_path)
    torch.manual_seed(77)
    again = proxy_stage(SPEC.model_copy(update={"seeds": 1}), inputs(index), other, SerialPool())
    assert part_bytes(other, again[0]) == part_bytes(store, seals[0])


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 9))
def test_a_death_at_any_write_is_resumed_to_the_same_bytes(
    base: tuple[Store, Seal, list[Seal]], tmp_path: Path, at: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Writes of one proxy: its lease, 3 work checkpoints, 2 snapshots, dynamics, the seal.
    # This process lives on, and so would the lease of the one that "died" right after it took it.
    monkeypatch.setattr(lease, "VOID_AFTER_S", 0.1)
    store, _, seals = base
    fresh, index = indexed(tmp_path)
    one = SPEC.model_copy(update={"seeds": 1})
    with pytest.raises(Killed):
        proxy_stage(one, inputs(index), dying_at(fresh, at, "proxy-", after), SerialPool())
    again = proxy_stage(one, inputs(index), fresh, SerialPool())
    assert part_bytes(fresh, again[0]) == part_bytes(store, seals[0])
    assert not [name for name in fresh.list("stages") if "proxy-" in name and "/work/" in name]


def _interrupted(folder: Path) -> tuple[Store, Seal, list[str]]:
    """Return a store in which one proxy died at its dynamics, and its work checkpoints, newest first."""
    store, index = indexed(folder)
    with pytest.raises(Killed):
        proxy_stage(SPEC.model_copy(update={"seeds": 1}), inputs(index), dying_at(store, 1, "dynamics"), SerialPool())
    return store, index, sorted((n for n in store.list("stages") if "/work/model/" in n), reverse=True)


def test_torn_checkpoints_are_passed_over_and_counted(
    base: tuple[Store, Seal, list[Seal]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, index, work = _interrupted(tmp_path)
    assert len(work) == 2
    whole = store.read(work[0])
    store.replace(work[0], whole[: len(whole) // 2])
    again = proxy_stage(SPEC.model_copy(update={"seeds": 1}), inputs(index), store, SerialPool())
    assert part_bytes(store, again[0]) == part_bytes(base[0], base[2][0])
    assert "1 unreadable checkpoint(s) passed over" in caplog.text
    assert work[1] in caplog.text


def test_with_every_checkpoint_torn_training_starts_again(
    base: tuple[Store, Seal, list[Seal]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, index, work = _interrupted(tmp_path)
    for name in work:
        store.replace(name, b"PK torn")
    again = proxy_stage(SPEC.model_copy(update={"seeds": 1}), inputs(index), store, SerialPool())
    assert part_bytes(store, again[0]) == part_bytes(base[0], base[2][0])
    assert "2 unreadable checkpoint(s)" in caplog.text
    assert "the start" in caplog.text


def test_a_snapshot_that_is_missing_is_taken_again_from_before_it(
    base: tuple[Store, Seal, list[Seal]], tmp_path: Path
) -> None:
    store, index, work = _interrupted(tmp_path)
    folder = work[0].partition("/work/")[0]
    store.remove(f"{folder}/parts/{checkpoint_part(0.3)}")
    again = proxy_stage(SPEC.model_copy(update={"seeds": 1}), inputs(index), store, SerialPool())
    assert part_bytes(store, again[0]) == part_bytes(base[0], base[2][0])


def test_a_part_of_another_key_is_refused(tmp_path: Path) -> None:
    store, index = indexed(tmp_path)
    key = proxy_key(SPEC, 0, index.key, POINTS, "", 0)
    name = Unit(store, "proxy", key).part_name("checkpoint-100.pt")
    store.create(name, filled(encode_checkpoint("0" * 64, 3, {"w": torch.zeros(2)}), name)[0])
    with pytest.raises(CorruptError, match="belongs to another proxy"):
        proxy_stage(SPEC, inputs(index), store, SerialPool())


def test_checkpoint_that_was_not_kept_is_refused_with_those_that_were(base: tuple[Store, Seal, list[Seal]]) -> None:
    with pytest.raises(InputError, match=r"no checkpoint at 0.5 .*0.3, 1.0"):
        load_checkpoint(base[0], base[2][0], 0.5)


def test_checkpoint_steps() -> None:
    assert checkpoint_steps((0.1, 0.0, 0.001), 30) == {0.0: 0, 0.001: 1, 0.1: 3, 1.0: 30}
    assert [checkpoint_part(at) for at in (0.0, 0.1, 0.125, 1.0)] == [
        "checkpoint-0.pt", "checkpoint-10.pt", "checkpoint-12.5.pt", "checkpoint-100.pt"
    ]
    with pytest.raises(InputError, match="fractions"):
        checkpoint_steps((1.5,), 30)


def _key(spec: ProxySpec = SPEC, **changes: Any) -> str:
    given: dict[str, Any] = {
        "number": 0, "index_key": "i", "checkpoints": POINTS, "code": "c", "seed": 0, **changes
    }
    return proxy_key(spec, **given)


def test_key_changes_with_what_changes_the_result_only() -> None:
    same = [
        _key(),
        _key(SPEC.model_copy(update={"seeds": 7})),
        _key(SPEC.model_copy(update={"checkpoint_every_s": 9.0})),
        _key(SPEC.model_copy(update={"resources": SPEC.resources.model_copy(update={"workers": 3})})),
        _key(checkpoints=(1.0, 0.3, 0.3)),
        _key(checkpoints=(0.3,)),
    ]
    assert len(set(same)) == 1
    other = [
        _key(number=1), _key(index_key="j"), _key(checkpoints=(0.2,)), _key(code="d"), _key(seed=1),
        _key(SPEC.model_copy(update={"lr": 0.1})), _key(SPEC.model_copy(update={"batch_size": 64})),
        _key(SPEC.model_copy(update={"numerics": SPEC.numerics.model_copy(update={"autocast": "bfloat16"})})),
    ]
    assert len({*other, same[0]}) == len(other) + 1


def test_a_training_shorter_than_an_epoch_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, index = indexed(tmp_path)
    short = ProxySpec.model_validate({"model": "mlp", "seeds": 1, "steps": 2, "batch_size": 32})
    (seal,) = proxy_stage(short, inputs(index), store, SerialPool())
    table = load_part(store, seal.parts[-1])
    unseen = sum(count == 0 for count in table.column("presentations").to_pylist())
    assert seal.meta["never_presented"] == unseen == index.meta["num_train"] - 64
    assert f"{unseen} of {index.meta['num_train']} examples are in no batch" in caplog.text


@pytest.mark.parametrize("given", [{}, {"steps": 3, "epochs": 1}])
def test_exactly_one_of_steps_and_epochs(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="exactly one"):
        ProxySpec.model_validate({"model": "mlp", **given})


def test_stage_modules_import_nothing_heavy() -> None:
    code = (
        "import sys, tasks.proxy, tasks.train, tasks.models, tasks.recipes, tasks.budget;"
        "print([m for m in ('torch', 'pyarrow', 'sklearn', 'scipy', 'PIL') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
