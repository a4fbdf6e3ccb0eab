"""`secateur verify` on a run that was killed: what lies where a seal is yet to come is looked at, and what is damaged removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.errors import LoosePartError, StageError
from cluster.record import Unit
from cluster.storage import Store
from flows.attempts import Attempt
from flows.lineage import STAGES, load_lineage
from flows.repair import verify_and_repair
from flows.verify import Findings, verify_run
from tasks.pool import SerialPool
from tasks.work import Work
from tests.flows.serial_run import run_serially
from tests.flows.verify_case import Elsewhere, cut, flip, made, parts, plan, quarantined, seals, stages_of, tree

pytestmark = [pytest.mark.xdist_group("verify"), pytest.mark.timeout(300)]


def verify(store: Path) -> Findings:
    place = Store(str(store))
    return verify_run(load_lineage(plan().run_name, place), place)


def unsealed(store: Path, stage: str) -> None:
    """Take away the seals of the stages from `stage` on, and the report: a run was killed right before it sealed `stage`."""
    for path in (store / "runs" / plan().run_name / "report").iterdir():
        path.unlink()
    for later in STAGES[STAGES.index(stage) :]:
        for path in seals(store, later):
            path.unlink()


def _checked(store: Path) -> Path:
    return next(store.glob("stages/shard-*/work/*/checked.json"))


def _checkpoint(store: Path) -> Path:
    """Leave a checkpoint in the first training's folder, as a killed run does."""
    unit = next(unit for name, unit in plan().units(Store(str(store))) if name == "train")
    work = Work(unit, "model")
    work.save({"step": 3, "weights": torch.arange(8.0)})
    return store / work.names()[0]


@pytest.mark.parametrize(
    ("stage", "find", "what", "harm"),
    [
        *((stage, lambda store, stage=stage: parts(store, stage)[0], "part", harm)
          for stage, harm in (("shard", cut), ("score", flip), ("merge", flip), ("select", cut), ("train", flip))),
        ("proxy", lambda store: parts(store, "proxy", ".pt")[0], "part", flip),
        ("subset", lambda store: parts(store, "subset", ".npy")[0], "part", flip),
        ("features", lambda store: parts(store, "features", ".npy")[0], "part", cut),
        ("shard", _checked, "work", flip),
        ("train", _checkpoint, "work", flip),
    ],
)  # fmt: skip
def test_what_is_not_sealed_yet_is_looked_at_too(
    stage: str, find: Callable[[Path], Path], what: str, harm: Callable[[Path], None], tmp_path: Path
) -> None:
    store = made(tmp_path)
    unsealed(store, stage)
    path = find(store)
    assert verify(store).damage == []
    harm(path)
    before = tree(store)
    found = verify(store)
    name = str(path.relative_to(store))
    assert [(one.stage, one.what, one.name, one.loose) for one in found.damage] == [(stage, what, name, True)]
    assert "is not sealed yet and does not match the digest it holds: it was cut short or changed" in str(found.damage[0])
    assert tree(store) == before


def test_a_part_of_another_key_is_found_before_its_stage_is_sealed(tmp_path: Path) -> None:
    store = made(tmp_path)
    unsealed(store, "merge")
    path = parts(store, "merge")[0]
    path.write_bytes(parts(store, "score")[0].read_bytes())
    [damage] = verify(store).damage
    assert damage.name == str(path.relative_to(store)) and damage.loose
    # The digest that it holds is that of its own name.
    assert damage.problem.endswith("it was cut short or changed, or belongs elsewhere")


def test_parts_that_a_run_publishes_meanwhile_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = made(tmp_path)
    unsealed(store, "merge")
    stages = ("merge", "select", "subset", "train")
    run = Elsewhere(tmp_path / "aside", [path for stage in stages for path in parts(store, stage)])
    place = Store(str(store))
    listed = place.list

    def late(prefix: str) -> list[str]:
        # Named, and gone again when it is read: as work that a run clears after its seal.
        run.write()
        return [*listed(prefix), f"{prefix}/parts/gone.parquet"]

    monkeypatch.setattr(place, "list", late)
    found = verify_run(load_lineage(plan().run_name, place), place)
    assert found.damage == [] and found.not_computed and not run.files


@pytest.mark.parametrize("flag", ["heal", "recompute"])
def test_what_is_damaged_before_a_seal_is_removed_and_computed_again(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = made(tmp_path)
    before = tree(store)
    unsealed(store, "score")
    damaged = [parts(store, "score")[0], parts(store, "merge")[-1], parts(store, "train")[0]]
    for path in damaged:
        flip(path)
    with pytest.raises(LoosePartError, match=r"is not sealed yet: remove .*, and it is computed again"):
        run_serially(plan(), Store(str(store)), SerialPool())
    left = tree(store)
    assert not verify_and_repair(plan().run_name, str(store), heal=False, recompute=False, as_json=True)
    said = json.loads(capsys.readouterr().out)
    names = {str(path.relative_to(store)) for path in damaged}
    assert {one["name"] for one in said["damage"]} == names and "--heal" in said["next"][0]
    assert verify_and_repair(plan().run_name, str(store), heal=flag == "heal", recompute=flag == "recompute", as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert {one["damage"]["name"]: one["said"] for one in said["healed"]} == dict.fromkeys(
        names, "removed: the next run computes it again"
    )
    assert (said["unhealed"], said["retired"], said["next"]) == ([], None, [])
    assert tree(store) == {name: data for name, data in left.items() if name not in names}
    run_serially(plan(), Store(str(store)), SerialPool())
    assert stages_of(tree(store)) == stages_of(before)


def test_nothing_is_removed_while_the_run_goes_on(tmp_path: Path) -> None:
    store = made(tmp_path)
    unsealed(store, "merge")
    flip(parts(store, "merge")[0])
    with Attempt(Store(str(store)), plan().run_name):
        before = tree(store)
        assert len(verify(store).damage) == 1
        for flags in ({"heal": True, "recompute": False}, {"heal": False, "recompute": True}):
            with pytest.raises(StageError, match=f"run {plan().run_name} is running"):
                verify_and_repair(plan().run_name, str(store), as_json=False, **flags)
        assert tree(store) == before


@pytest.mark.parametrize("harm", [flip, Path.unlink])
def test_a_part_goes_with_the_quarantine_that_it_names(
    harm: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, made_of, table = quarantined(tmp_path)
    before = tree(store)
    for path in (*store.glob("stages/*/seal*.json"), *store.glob("runs/*/report/*")):
        path.unlink()
    harm(table)
    part = table.parents[1] / "parts" / table.name
    assert not verify_and_repair(made_of.run_name, str(store), heal=False, recompute=False, as_json=True)
    problems = {one["what"]: one["problem"] for one in json.loads(capsys.readouterr().out)["damage"]}
    assert set(problems) == ({"part", "quarantine"} if harm is flip else {"part"})
    assert f"names the quarantine {table.relative_to(store)}, which " in problems["part"]
    assert verify_and_repair(made_of.run_name, str(store), heal=True, recompute=False, as_json=False)
    assert not part.exists() and not table.exists()
    run_serially(made_of, Store(str(store)), SerialPool())
    assert stages_of(tree(store)) == stages_of(before)


def test_a_part_that_the_seal_of_another_index_lists_is_not_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = made(tmp_path)
    [own] = seals(store, "score")
    unit = next(unit for name, unit in plan().units(Store(str(store))) if name == "score")
    # The folder of score parts holds a seal an index: as if this one were still to come.
    other = Unit(unit.store, "score", "0" * 64, f"seal-{'0' * 12}.json", unit.folder_key)
    sealed = unit.seal()
    assert sealed is not None
    other.publish_seal(list(sealed.parts)[:1], sealed.meta)
    unsealed(store, "score")
    assert not own.exists()
    bad, loose = parts(store, "score")[:2]
    assert {part.name for part in sealed.parts[:2]} == {str(path.relative_to(store)) for path in (bad, loose)}
    for path in (bad, loose):
        flip(path)
    assert not verify_and_repair(plan().run_name, str(store), heal=True, recompute=False, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert [one["damage"]["name"] for one in said["healed"]] == [str(loose.relative_to(store))]
    assert [one["said"] for one in said["unhealed"]] == ["no seal of this run lists it: heal the run whose seal does"]
    assert bad.exists() and not loose.exists()
