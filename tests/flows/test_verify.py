"""`secateur verify`: every kind of damage is found and named, and a sound run is called sound."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import CorruptError
from cluster.fingerprint import canonical_json, sha256
from cluster.storage import Store
from flows.attempts import Attempt
from flows.lineage import load_lineage
from flows.repair import verify_and_repair
from flows.verify import Findings, verify_run
from tests.flows.verify_case import Elsewhere, cut, edit_seal, flip, made, parts, plan, seals, tree

pytestmark = [pytest.mark.xdist_group("verify"), pytest.mark.timeout(300)]

Damaging = Callable[[Path], Path]


def verify(store: Path) -> Findings:
    place = Store(str(store))
    return verify_run(load_lineage(plan().run_name, place), place)


def test_a_sound_run_is_sound_and_nothing_is_written(tmp_path: Path) -> None:
    store = made(tmp_path)
    before = tree(store)
    found = verify(store)
    assert found.damage == [] and found.not_computed == [] and found.run == plan().run_name
    units = len({unit.key for _, unit in plan().units(Store(str(store)))})
    assert found.units == units and found.parts > units and found.bytes > 10_000
    assert verify_and_repair(found.run, str(store), heal=True, recompute=True, as_json=False)
    assert tree(store) == before


def _flipped(stage: str, suffix: str = ".parquet") -> Damaging:
    def damage(store: Path) -> Path:
        path = parts(store, stage, suffix)[0]
        flip(path)
        return path

    return damage


def _truncated(store: Path) -> Path:
    path = parts(store, "score")[1]
    cut(path)
    return path


def _deleted(store: Path) -> Path:
    path = parts(store, "merge")[0]
    path.unlink()
    return path


def _from_another_key(store: Path) -> Path:
    mine = parts(store, "merge")[0]
    mine.write_bytes(parts(store, "score")[0].read_bytes())
    return mine


def _from_another_shard(store: Path) -> Path:
    first, second = parts(store, "shard")[:2]
    first.write_bytes(second.read_bytes())
    return first


def _edited(store: Path) -> Path:
    path = seals(store, "score")[0]
    edit_seal(path, lambda body: body["meta"].update(num_rows=1))
    return path


def _forged_digest(store: Path) -> Path:
    path = seals(store, "score")[0]
    edit_seal(path, lambda body: body["parts"][0].update(sha256="0" * 64), forge=True)
    return parts(store, "score")[0]


def _forged_rows(store: Path) -> Path:
    path = seals(store, "score")[0]
    edit_seal(path, lambda body: body["parts"][0].update(rows=3), forge=True)
    return parts(store, "score")[0]


def _forged_name(store: Path) -> Path:
    path = seals(store, "merge")[0]
    other = str(parts(store, "score")[0].relative_to(store))
    edit_seal(path, lambda body: body["parts"][0].update(name=other), forge=True)
    return path


def _escaping_name(store: Path) -> Path:
    path = seals(store, "merge")[0]
    edit_seal(path, lambda body: body["parts"][0].update(name="stages/../../../etc/passwd"), forge=True)
    return path


def _from_another_unit(store: Path) -> Path:
    first, second = seals(store, "select")[:2]
    first.write_bytes(second.read_bytes())
    return first


def _spaced(store: Path) -> Path:
    path = seals(store, "shard")[0]
    path.write_bytes(json.dumps(json.loads(path.read_bytes()), indent=1).encode())
    return path


def _torn_seal(store: Path) -> Path:
    path = seals(store, "shard")[0]
    cut(path)
    return path


def _lost_seal(store: Path) -> Path:
    path = seals(store, "proxy")[0]
    path.unlink()
    return path


def _report(store: Path) -> Path:
    path = store / "runs" / plan().run_name / "report" / "index.html"
    path.write_text(path.read_text().replace("verdict", "Verdict"))
    return path


def _lost_results(store: Path) -> Path:
    path = store / "runs" / plan().run_name / "report" / "results.json"
    path.unlink()
    return path


@pytest.mark.parametrize(
    ("damaging", "what", "said"),
    [
        (_flipped("shard"), "part", "was changed"),
        (_flipped("proxy"), "part", "was changed"),
        (_flipped("proxy", ".pt"), "part", "was changed"),
        (_flipped("subset", ".npy"), "part", "was changed"),
        (_truncated, "part", "cut short"),
        (_deleted, "part", "is gone"),
        (_from_another_key, "part", "part of key"),
        (_from_another_shard, "part", "shard"),
        (_edited, "seal", "does not match its own digest"),
        (_forged_digest, "part", "its seal says 000000000000"),
        (_forged_rows, "part", "its seal says 3: the seal was changed"),
        (_forged_name, "seal", "its own parts lie in"),
        (_escaping_name, "seal", "its own parts lie in"),
        (_from_another_unit, "seal", "is of select"),
        (_spaced, "seal", "changed after publishing"),
        (_torn_seal, "seal", "changed after publishing"),
        (_lost_seal, "seal", "is gone"),
        (_report, "report", "it was changed"),
        (_lost_results, "report", "is gone"),
    ],
)  # fmt: skip
def test_every_damage_is_found_and_named(damaging: Damaging, what: str, said: str, tmp_path: Path) -> None:
    store = made(tmp_path)
    name = str(damaging(store).relative_to(store))
    before = tree(store)
    found = verify(store)
    assert [(damage.what, damage.name) for damage in found.damage] == [(what, name)]
    assert said in str(found.damage[0]) and str(found.damage[0]).startswith(found.damage[0].stage)
    assert tree(store) == before


def test_all_damages_are_found_in_one_pass(tmp_path: Path) -> None:
    store = made(tmp_path)
    names = {str(damaging(store).relative_to(store)) for damaging in (_flipped("proxy", ".pt"), _truncated, _deleted, _report)}
    assert {damage.name for damage in verify(store).damage} == names


def test_what_is_not_computed_yet_is_no_damage(tmp_path: Path) -> None:
    store = made(tmp_path)
    for path in (store / "runs" / plan().run_name / "report").iterdir():
        path.unlink()
    for path in seals(store, "train"):
        path.unlink()
    found = verify(store)
    assert found.damage == [] and len(found.not_computed) == len(set(plan().keys()["train"]))


def _edit_record(path: Path, change: Callable[[dict[str, Any]], object], *, forge: bool = False) -> None:
    """Change fields of run.json and write it canonically; a forger also makes the digest match."""
    body = json.loads(path.read_bytes())
    digest = body.pop("digest")
    change(body)
    path.write_bytes(canonical_json({**body, "digest": sha256(canonical_json(body)) if forge else digest}))


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["config"]["data"].update(train="/etc/hosts"),
        lambda body: body["config"].update(code=["/tmp/other.py"]),
        lambda body: body["config"]["train"]["resources"].update(workers=7),
        lambda body: body["config"]["data"].update(max_bad_fraction=0.5),
        lambda body: body["config"]["train"].update(steps=11),
        lambda body: body["versions"].update(torch="9.9.9"),
        lambda body: body["keys"].update(merge=body["keys"]["shard"]),
    ],
    ids=["data", "code", "workers", "max_bad_fraction", "steps", "torch", "keys"],
)
def test_every_edit_of_run_json_is_found_by_its_digest(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    store = made(tmp_path)
    path = store / "runs" / plan().run_name / "run.json"
    before = path.read_bytes()
    _edit_record(path, lambda body: None, forge=True)
    assert path.read_bytes() == before
    _edit_record(path, change)
    with pytest.raises(CorruptError, match="not as it was written"):
        verify(store)


def test_a_run_json_that_is_forged_contradicts_its_name_or_its_keys(tmp_path: Path) -> None:
    store = made(tmp_path)
    path = store / "runs" / plan().run_name / "run.json"
    before = path.read_bytes()
    _edit_record(path, lambda body: body["config"]["train"].update(steps=11), forge=True)
    assert "run" in {damage.what for damage in verify(store).damage}
    path.write_bytes(before)
    _edit_record(path, lambda body: body["keys"].update(merge=body["keys"]["shard"]), forge=True)
    assert "keys that do not follow" in str(verify(store).damage[0])
    path.write_bytes(before + b" ")
    with pytest.raises(CorruptError, match="not as it was written"):
        verify(store)


def _report_files(store: Path) -> list[Path]:
    return sorted((store / "runs" / plan().run_name / "report").iterdir())


def test_a_run_that_ends_after_its_seals_were_read_has_lost_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = made(tmp_path)
    units = verify(store).units
    run = Elsewhere(tmp_path / "aside", [*seals(store, "train"), *_report_files(store)])
    place = Store(str(store))
    exists = place.exists

    def late(name: str) -> bool:
        run.write()
        return exists(name)

    monkeypatch.setattr(place, "exists", late)
    found = verify_run(load_lineage(plan().run_name, place), place)
    assert (found.damage, found.not_computed, found.units) == ([], [], units)


@pytest.mark.parametrize("threads", [1, 8])
def test_a_run_that_goes_on_while_its_seals_are_read_has_lost_none(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.verify.THREADS", threads)
    store = made(tmp_path)
    stages = ("merge", "select", "subset", "shift", "train")
    run = Elsewhere(tmp_path / "aside", [path for stage in stages for path in seals(store, stage)])
    for path in _report_files(store):
        path.unlink()
    place = Store(str(store))
    read = place.read

    def late(name: str) -> bytes:
        try:
            return read(name)
        except FileNotFoundError:
            # The first that is not there yet is sealed right after it was asked for, and so is all that follows.
            run.write()
            raise

    monkeypatch.setattr(place, "read", late)
    assert verify_run(load_lineage(plan().run_name, place), place).damage == []


def test_a_report_is_not_judged_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = made(tmp_path)
    sound = (store / "runs" / plan().run_name / "report" / "index.html").read_bytes()
    page = _report(store)
    with Attempt(Store(str(store)), plan().run_name):
        found = verify(store)
        assert found.damage == [] and [line.split(",")[0] for line in found.not_computed] == ["report"]
    assert [damage.name for damage in verify(store).damage] == [str(page.relative_to(store))]
    # The writer ends between the look at the files and the look at the attempts.
    place = Store(str(store))
    listed = place.list

    def late(prefix: str) -> list[str]:
        page.write_bytes(sound)
        return listed(prefix)

    monkeypatch.setattr(place, "list", late)
    assert verify_run(load_lineage(plan().run_name, Store(str(store))), place).damage == []


def test_large_parts_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.verify.WHOLE_BYTES", 100)
    monkeypatch.setattr("flows.verify.PIECE_BYTES", 64)
    store = made(tmp_path)
    assert verify(store).damage == []
    flip(parts(store, "score")[0])
    assert len(verify(store).damage) == 1
