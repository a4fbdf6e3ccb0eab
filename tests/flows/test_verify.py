"""`secateur verify`: every kind of damage is found and named, and a sound run is called sound."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import CorruptError
from cluster.storage import Store
from flows.lineage import load_lineage
from flows.repair import verify_and_repair
from flows.verify import Findings, verify_run
from tests.flows.verify_case import cut, edit_seal, flip, made, parts, plan, seals, tree

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


def test_an_edited_run_json_is_found(tmp_path: Path) -> None:
    store = made(tmp_path)
    path = store / "runs" / plan().run_name / "run.json"
    text = path.read_text()
    assert '"seed":0' in text
    path.write_text(text.replace('"seed":0', '"seed":1'))
    found = verify(store)
    assert "run" in {damage.what for damage in found.damage}
    path.write_text(text.replace(plan().merge, plan().shard))
    assert "keys that do not follow" in str(verify(store).damage[0])
    path.write_text(text + " ")
    with pytest.raises(CorruptError, match="not as it was written"):
        verify(store)


def test_large_parts_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.verify.WHOLE_BYTES", 100)
    monkeypatch.setattr("flows.verify.PIECE_BYTES", 64)
    store = made(tmp_path)
    assert verify(store).damage == []
    flip(parts(store, "score")[0])
    assert len(verify(store).damage) == 1
