"""`secateur verify --heal` and `--recompute`: what is put back is byte for byte what was there, and nothing else moves."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cluster.errors import StageError
from cluster.fingerprint import sha256
from cluster.record import Unit
from cluster.storage import Store
from flows import cli, retiring
from flows.attempts import Attempt
from flows.repair import verify_and_repair
from tasks.pool import SerialPool
from tests.flows.serial_run import run_serially
from tests.flows.verify_case import OTHER, cut, edit_seal, flip, made, parts, plan, quarantined, seals, stages_of, tree

pytestmark = [pytest.mark.xdist_group("verify"), pytest.mark.timeout(300)]


def repair(store: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, dict[str, object]]:
    """Run `secateur verify` in this process; return its exit code and its JSON document."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["secateur", "verify", plan().run_name, "--store", str(store), "--json", *flags])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0), json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("stage", "suffix", "how"),
    [
        ("shard", ".parquet", flip),
        ("proxy", ".parquet", Path.unlink),
        ("proxy", ".pt", flip),
        ("score", ".parquet", cut),
        ("merge", ".parquet", flip),
        ("select", ".parquet", Path.unlink),
        ("subset", ".parquet", flip),
        ("subset", ".npy", cut),
        ("features", ".parquet", flip),
        ("features", ".npy", Path.unlink),
        ("train", ".parquet", flip),
    ],
)
def test_a_damaged_part_is_made_again_and_put_back(
    stage: str, suffix: str, how: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = made(tmp_path)
    before = tree(store)
    how(parts(store, stage, suffix)[0])  # type: ignore[operator]
    code, said = repair(store, capsys, "--heal")
    assert code == 0 and len(said["healed"]) == 1 and said["unhealed"] == []  # type: ignore[arg-type]
    assert tree(store) == before


def test_many_damages_are_healed_in_the_order_of_the_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = made(tmp_path)
    before = tree(store)
    for stage in ("shard", "score", "merge", "subset"):
        flip(parts(store, stage)[0])
    (store / "runs" / plan().run_name / "report" / "results.json").unlink()
    code, said = repair(store, capsys, "--heal")
    assert code == 0 and len(said["healed"]) == 5  # type: ignore[arg-type]
    after = tree(store)
    page = f"runs/{plan().run_name}/report/"
    assert {name: data for name, data in after.items() if not name.startswith(page)} == {
        name: data for name, data in before.items() if not name.startswith(page)
    }
    assert after[f"{page}results.json"] == before[f"{page}results.json"]
    assert repair(store, capsys)[0] == 0


@pytest.mark.parametrize("stage", ["shard", "proxy", "score", "merge", "select", "subset", "features", "shift", "train"])
def test_an_edited_seal_is_made_again_from_its_parts(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = made(tmp_path)
    before = tree(store)
    edit_seal(seals(store, stage)[0], lambda body: body["meta"].update(made_up=1))
    code, said = repair(store, capsys, "--heal")
    assert code == 0, said
    assert tree(store) == before


def test_a_seal_edited_to_hide_a_damaged_part_hides_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = made(tmp_path)
    before = tree(store)
    flip(parts(store, "score")[0])
    edit_seal(seals(store, "score")[0], lambda body: body["meta"].update(made_up=1))
    code, _ = repair(store, capsys, "--heal")
    assert code == 0 and tree(store) == before


@pytest.mark.parametrize("what", ["forged", "lost"])
def test_a_damaged_seal_vouches_for_no_part(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = made(tmp_path)
    sound = tree(store)
    part, seal = parts(store, "score")[0], seals(store, "score")[0]
    table = pq.read_table(part)
    at = table.schema.get_field_index("el2n")
    pq.write_table(table.set_column(at, table.schema.field(at), pc.negate(table.column(at))), part)
    data = part.read_bytes()
    if what == "forged":
        edit_seal(seal, lambda body: body["parts"][0].update(sha256=sha256(data), size=len(data)))
    else:
        seal.unlink()
    before = tree(store)
    code, said = repair(store, capsys, "--heal")
    assert code == 1 and said["healed"] == [] and "the part was changed too" in str(said["unhealed"])
    assert tree(store) == before
    assert repair(store, capsys, "--recompute")[0] == 0 and not part.exists()
    run_serially(plan(), Store(str(store)), SerialPool())
    run_serially(plan(OTHER), Store(str(store)), SerialPool())
    assert stages_of(tree(store)) == stages_of(sound)


def test_a_lost_seal_and_a_lost_part_are_both_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = made(tmp_path)
    before = tree(store)
    seals(store, "score")[0].unlink()
    parts(store, "score")[0].unlink()
    assert repair(store, capsys, "--heal")[0] == 0 and tree(store) == before


def test_a_torn_and_a_lost_seal_are_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = made(tmp_path)
    before = tree(store)
    cut(seals(store, "merge")[0])
    seals(store, "select")[0].unlink()
    code, _ = repair(store, capsys, "--heal")
    assert code == 0 and tree(store) == before


def test_what_cannot_match_is_told_and_left_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = made(tmp_path)
    # The seal, whole and by its digest unchanged, names bytes that nothing here makes: as if sealed on another device.
    edit_seal(seals(store, "score")[0], lambda body: body["parts"][0].update(sha256="0" * 64), forge=True)
    before = tree(store)
    code, said = repair(store, capsys, "--heal")
    assert code == 1 and "another device" in str(said["unhealed"])
    assert any("--recompute" in line for line in said["next"])  # type: ignore[attr-defined]
    assert tree(store) == before


def downstream(key: str) -> set[tuple[str, str]]:
    """Return the first run's units that a damaged selection takes along: itself, and all that was computed from it."""
    made_of = plan()
    return {
        ("select", key), ("subset", made_of.subset(key)),
        *(("shift", one.key) for one in made_of.shifts if one.selection == key),
        *(("train", one.key) for one in made_of.trainings if one.selection == key),
    }  # fmt: skip


def nodes(store: Path) -> dict[tuple[str, str], Unit]:
    return {(unit.stage, unit.key): unit for _, unit in plan().units(Store(str(store)))}


def test_recompute_retires_what_is_downstream_and_a_run_computes_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = made(tmp_path)
    before = tree(store)
    # A selection that everything behind it reads: it has a shift too, which only the first replicate has.
    key = plan().shifts[0].selection
    going = {node: unit.folder for node, unit in nodes(store).items() if node in downstream(key)}
    assert {stage for stage, _ in going} == {"select", "subset", "shift", "train"}
    flip(next(store.glob(f"{going['select', key]}/parts/*.parquet")))
    code, said = repair(store, capsys, "--recompute")
    assert code == 0
    after = tree(store)
    moved = {name for name in before if name not in after}
    assert {f"{said['retired']['folder']}/{name}" for name in moved} == set(after) - set(before)  # type: ignore[index]
    # Every object of these units and the report go, nothing else does: no seal is left whose source is not.
    folders, report = tuple(f"{folder}/" for folder in going.values()), f"runs/{plan().run_name}/report/"
    assert moved == {name for name in before if name.startswith((*folders, report))}
    assert all(f"{folder}/seal.json" in moved for folder in going.values())
    assert sorted(said["retired"]["units"]) == sorted(f"{stage} {key[:12]}" for stage, key in going)  # type: ignore[index]
    assert said["next"] == [f"secateur resume {plan().run_name} --store {store}"]
    run_serially(plan(), Store(str(store)), SerialPool())
    assert stages_of(tree(store)) == stages_of(before)


def test_recompute_keeps_sound_parts_and_takes_along_every_run_that_depends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = made(tmp_path)
    before = tree(store)
    first, *sound = parts(store, "score")
    flip(first)
    code, said = repair(store, capsys, "--recompute")
    assert code == 0 and not first.exists() and all(path.exists() for path in sound)
    assert not any(path.exists() for path in parts(store, "merge"))
    assert all(path.exists() for stage in ("shard", "proxy") for path in (*parts(store, stage), *seals(store, stage)))
    names = {plan().run_name, plan(OTHER).run_name}
    assert {line.split()[2] for line in said["next"]} == names  # type: ignore[attr-defined]
    # Random selections read no score: they and what follows from them stay.
    kept = [path for path in seals(store, "select") if path.exists()]
    assert len(kept) == 2
    run_serially(plan(), Store(str(store)), SerialPool())
    run_serially(plan(OTHER), Store(str(store)), SerialPool())
    assert stages_of(tree(store)) == stages_of(before)


@pytest.mark.parametrize("last", ["the damaged part", "its seal", "another part"])
def test_a_retirement_cut_short_lets_no_damaged_part_back_in(
    last: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = made(tmp_path)
    before = tree(store)
    first, *_, broken = parts(store, "score")
    seal = seals(store, "score")[0]
    flip(broken)
    if last == "another part":
        seal.unlink()
    ends_with = {"the damaged part": broken, "its seal": seal, "another part": first}[last].relative_to(store)
    move = retiring._move

    def die(below: Store, folder: str, name: str) -> int:
        moved = move(below, folder, name)
        if name == str(ends_with):
            raise KeyboardInterrupt
        return moved

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(retiring, "_move", die)
        verify_and_repair(plan().run_name, str(store), heal=False, recompute=True, as_json=False)
    capsys.readouterr()
    # Once the seal is gone nothing is left to find: what it stood for is retired by then.
    assert repair(store, capsys)[0] == (0 if last == "its seal" else 1)
    assert repair(store, capsys, "--recompute")[0] == 0 and not broken.exists()
    run_serially(plan(), Store(str(store)), SerialPool())
    run_serially(plan(OTHER), Store(str(store)), SerialPool())
    assert stages_of(tree(store)) == stages_of(before)


@pytest.mark.parametrize("harm", [flip, Path.unlink])
def test_a_part_is_retired_with_its_quarantine_table(harm: Callable[[Path], None], tmp_path: Path) -> None:
    store, made_of, table = quarantined(tmp_path)
    before = tree(store)
    harm(table)
    assert verify_and_repair(made_of.run_name, str(store), heal=False, recompute=True, as_json=False) is True
    assert not table.exists() and not (table.parents[1] / "parts" / table.name).exists()
    run_serially(made_of, Store(str(store)), SerialPool())
    assert stages_of(tree(store)) == stages_of(before)


def test_quarantine_tables_are_verified_and_healed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, made_of, table = quarantined(tmp_path)
    before = tree(store)
    for harm in (flip, cut, Path.unlink):
        harm(table)
        assert verify_and_repair(made_of.run_name, str(store), heal=False, recompute=False, as_json=True) is False
        said = json.loads(capsys.readouterr().out)
        assert [one["what"] for one in said["damage"]] == ["quarantine"]
        assert verify_and_repair(made_of.run_name, str(store), heal=True, recompute=False, as_json=False) is True
        assert tree(store) == before
        capsys.readouterr()


def test_on_s3_objects_are_verified_healed_and_retired_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from moto.server import ThreadedMotoServer

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing-only")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setattr("flows.verify.WHOLE_BYTES", 1000)
        local = made(tmp_path)
        store = Store("s3://verify-bucket/prefix")
        store.objects.fs.mkdir("verify-bucket")  # type: ignore[attr-defined]
        before = tree(local)
        for name, data in before.items():
            assert store.create(name, data)
        assert verify_and_repair(plan().run_name, store.uri, heal=False, recompute=False, as_json=False)
        bad, gone = (str(parts(local, stage)[0].relative_to(local)) for stage in ("score", "select"))
        store.replace(bad, before[bad][:-3] + b"xyz")
        store.remove(gone)
        assert not verify_and_repair(plan().run_name, store.uri, heal=False, recompute=False, as_json=False)
        said = capsys.readouterr().out
        assert f"{bad} has sha256" in said and f"{gone} is gone" in said
        assert verify_and_repair(plan().run_name, store.uri, heal=True, recompute=False, as_json=False)
        assert {name: store.read(name) for name in (bad, gone)} == {name: before[name] for name in (bad, gone)}
        store.remove(gone)
        assert verify_and_repair(plan().run_name, store.uri, heal=False, recompute=True, as_json=False)
        assert not store.exists(f"{gone.partition('/parts/')[0]}/seal.json") and store.list("retired")
    finally:
        server.stop()


def test_neither_touches_a_run_that_goes_on(tmp_path: Path) -> None:
    store = made(tmp_path)
    flip(parts(store, "score")[0])
    with Attempt(Store(str(store)), plan(OTHER).run_name):
        before = tree(store)
        with pytest.raises(StageError, match=f"run {plan(OTHER).run_name} is running"):
            verify_and_repair(plan().run_name, str(store), heal=False, recompute=True, as_json=False)
        assert tree(store) == before
    with Attempt(Store(str(store)), plan().run_name):
        before = tree(store)
        with pytest.raises(StageError, match="is running"):
            verify_and_repair(plan().run_name, str(store), heal=True, recompute=False, as_json=False)
        assert tree(store) == before


@pytest.mark.parametrize("what", ["part", "seal", "report"])
def test_a_folder_in_an_objects_place_is_named_and_left(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = made(tmp_path)
    report = store / "runs" / plan().run_name / "report" / "results.json"
    path = {"part": parts(store, "score")[0], "seal": seals(store, "select")[0], "report": report}[what]
    data = path.read_bytes()
    path.unlink()
    path.mkdir()
    before = tree(store)
    code, said = repair(store, capsys, "--heal")
    assert code == 1 and said["healed"] == [] and len(said["unhealed"]) == 1  # type: ignore[arg-type]
    assert "a folder lies in its place" in said["unhealed"][0]["said"]  # type: ignore[index]
    monkeypatch.setattr("sys.argv", ["secateur", "verify", plan().run_name, "--store", str(store), "--recompute"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, error = capsys.readouterr()
    assert (ended.value.code, out, error.count("\n")) == (1, "", 1) and "take it away" in error
    assert tree(store) == before
    path.rmdir()
    path.write_bytes(data)
    assert repair(store, capsys)[0] == 0
