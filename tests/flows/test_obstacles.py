"""What lies in an object's or a folder's place: it is named, left, and the way out is to move it away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import LoosePartError, StageError, StoreError
from cluster.storage import Store
from flows.advice import needs_mending, said_of
from flows.lineage import load_lineage
from flows.repair import verify_and_repair
from flows.verify import verify_run
from tasks.pool import SerialPool
from tests.flows.serial_run import run_serially
from tests.flows.test_loose_parts import unsealed
from tests.flows.verify_case import flip, made, parts, plan, quarantined, seals, stages_of, tree

pytestmark = [pytest.mark.xdist_group("verify"), pytest.mark.timeout(300)]


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def dead_link(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere")


def verify(store: Path, run: str, capsys: pytest.CaptureFixture[str], *, heal: bool) -> tuple[bool, dict[str, list[object]]]:
    sound = verify_and_repair(run, str(store), heal=heal, recompute=False, as_json=True)
    return sound, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("find", "put", "said"),
    [
        (lambda store: parts(store, "score")[0], folder, "a folder where an object belongs"),
        (lambda store: parts(store, "score")[0], dead_link, "a link that leads nowhere where an object belongs"),
        (lambda store: next(store.glob("stages/shard-*/work/*/checked.json")), folder, "a folder where an object belongs"),
        (lambda store: store / Path(next(store.glob("stages/merge-*"))) / "seal.json", dead_link, "a link that leads nowhere"),
    ],
    ids=["part folder", "part link", "check folder", "seal link"],
)  # fmt: skip
def test_it_is_named_before_a_seal_and_left_to_its_owner(
    find: Callable[[Path], Path], put: Callable[[Path], None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, run = made(tmp_path), plan().run_name
    sound = tree(store)
    unsealed(store, "shard")
    path = find(store)
    put(path)
    before = tree(store)
    name = str(path.relative_to(store))
    for heal in (False, True):
        ok, found = verify(store, run, capsys, heal=heal)
        assert not ok and [one["name"] for one in found["damage"]] == [name]  # type: ignore[index]
        assert f"is {said}" in found["damage"][0]["problem"] and "--heal" in str(found["next"])  # type: ignore[index]
        assert len(found["next"]) == 1 and found["healed"] == []
    assert [one["damage"]["name"] for one in found["unhealed"]] == [name]  # type: ignore[index]
    assert not verify_and_repair(run, str(store), heal=True, recompute=False, as_json=False)
    assert f"move away first: {path}" in capsys.readouterr().out
    with pytest.raises(StageError, match=r"in the way .* take it away"):
        verify_and_repair(run, str(store), heal=False, recompute=True, as_json=False)
    assert tree(store) == before and path.is_dir() == (put is folder) and path.is_symlink() == (put is dead_link)
    with pytest.raises((StoreError, IsADirectoryError)) as refused:
        run_serially(plan(), Store(str(store)), SerialPool())
    error = refused.value
    told = said_of(error) if isinstance(error, OSError) else str(error)
    # What to remove is said: `--heal` would be no help.
    assert str(path) in told and ("remove" in told or "move that folder away" in told) and not needs_mending(error)
    path.unlink() if path.is_symlink() else path.rmdir()
    assert verify(store, run, capsys, heal=True)[0]
    run_serially(plan(), Store(str(store)), SerialPool())
    assert stages_of(tree(store)) == stages_of(sound)


def test_the_part_goes_and_a_folder_for_its_quarantine_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, made_of, table = quarantined(tmp_path)
    before = tree(store)
    for path in (*store.glob("stages/*/seal*.json"), *store.glob("runs/*/report/*")):
        path.unlink()
    folder(table)
    ok, found = verify(store, made_of.run_name, capsys, heal=True)
    problems = {one["what"]: one["problem"] for one in found["damage"]}  # type: ignore[index]
    assert not ok and set(problems) == {"part", "quarantine"}
    assert "which is a folder" in problems["part"] and "is a folder where an object belongs" in problems["quarantine"]
    assert [one["damage"]["what"] for one in found["unhealed"]] == ["quarantine"] and table.is_dir()  # type: ignore[index]
    table.rmdir()
    run_serially(made_of, Store(str(store)), SerialPool())
    assert stages_of(tree(store)) == stages_of(before)


def test_a_file_in_the_place_of_a_folder_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, run = made(tmp_path), plan().run_name
    place = Store(str(store))
    unsealed(store, "merge")
    held = parts(store, "merge")[0].parent
    held.rename(tmp_path / "aside")
    held.write_text("a note")
    ok, found = verify(store, run, capsys, heal=True)
    assert not ok and [one["damage"]["name"] for one in found["unhealed"]] == [str(held.relative_to(store))]  # type: ignore[index]
    assert "is a file where a folder belongs: move it away" in found["damage"][0]["problem"]  # type: ignore[index]
    with pytest.raises(StoreError, match=f"{held} is no folder, and a folder of the store belongs there: move it away"):
        run_serially(plan(), place, SerialPool())
    held.unlink()
    stage = held.parent
    stage.rename(tmp_path / "aside of the stage")
    stage.write_text("a note")
    with pytest.raises(StoreError, match=f"{stage} is no folder, and a folder of the store belongs there: move it away"):
        verify_run(load_lineage(run, place), place)
    with pytest.raises(StoreError, match=f"{stage} is no folder"):
        run_serially(plan(), place, SerialPool())


def test_a_damaged_part_says_itself_what_to_remove(tmp_path: Path) -> None:
    store = made(tmp_path)
    unsealed(store, "score")
    flip(parts(store, "score")[0])
    with pytest.raises(LoosePartError, match="remove") as refused:
        run_serially(plan(), Store(str(store)), SerialPool())
    assert not needs_mending(refused.value)


def test_a_folder_in_a_seals_place_is_to_be_moved_before_anything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, run = made(tmp_path), plan().run_name
    path = seals(store, "select")[0]
    folder(path)
    assert not verify_and_repair(run, str(store), heal=True, recompute=False, as_json=False)
    out = capsys.readouterr().out
    assert f"move away first: {path}" in out and "--recompute" not in out
    path.rmdir()
    assert verify(store, run, capsys, heal=True)[0]
