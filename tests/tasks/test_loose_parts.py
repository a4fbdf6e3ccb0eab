"""What a resume takes over before a seal vouches for it: any changed bit, any cut, is found then, and says what to do."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cluster.errors import CorruptError, LoosePartError
from cluster.record import Unit
from cluster.storage import Store
from tasks.checkpoints import checkpoint_check, encode_checkpoint
from tasks.pool import SerialPool
from tasks.quarantine import BadExample, PartCheck, publish_quarantine
from tasks.schemas import scores_schema
from tasks.shard import shard_stage
from tasks.sharding import Plan
from tasks.shift import features
from tasks.subset_worker import _indices_check, indices_bytes
from tasks.tables import encode_table, part_check
from tasks.work import Work
from tests.tasks.stage_case import DATA, part_bytes

KEY = "k" * 64
BAD = [BadExample(8, "bad_label", "there is no label 11"), BadExample(9, "bad_label", "there is no label 12")]


@dataclass
class Kind:
    """Hold the sound bytes of a published object, where it lies, and what takes it over."""

    path: Path
    adopt: Callable[[], object]

    def __post_init__(self) -> None:
        self.sound = self.path.read_bytes()


def _published(unit: Unit, name: str, data: bytes, check: Callable[[str], Callable[[bytes], int]]) -> Kind:
    accepts = check(unit.store.url(unit.part_name(name)))
    part = unit.publish_part(name, data, accepts)

    def adopt() -> object:
        assert unit.find_part(name, accepts) == part
        return part

    return Kind(Path(unit.store.uri, part.name), adopt)


def _scores() -> pa.Table:
    columns = [np.arange(8), np.linspace(0, 1, 8, dtype=np.float32)]
    return pa.table([pa.array(one) for one in columns], schema=scores_schema(["el2n"]))


def _table(unit: Unit) -> Kind:
    ids = np.arange(8)
    return _published(unit, "a.parquet", encode_table(_scores(), KEY), lambda where: part_check(KEY, where, ids))


def _with_nulls_and_words(unit: Unit) -> Kind:
    table = pa.table({
        "example_id": [1, 2, 3, 4], "word": pa.array(["a", None, "b", "a"]).dictionary_encode(), "maybe": [1.5, None, 2.5, None],
    })  # fmt: skip
    # No stage keeps floats without a value: what is tried here are pages of validity and dictionaries.
    table = table.set_column(2, "maybe", table.column("maybe").cast(pa.decimal128(5, 2)))
    return _published(unit, "a.parquet", encode_table(table, KEY, files=["a"]), lambda where: part_check(KEY, where))


def _quarantine(unit: Unit) -> Kind:
    part, _ = publish_quarantine(unit, KEY, "a.parquet", BAD)
    assert part is not None

    accepts = part_check(KEY, unit.store.url(part.name))

    def adopt() -> object:
        # What publish_quarantine does with one that is there; to make a table each time takes minutes.
        found = unit.adopt(part.name, accepts)
        assert found is not None and found[0] == part
        return part

    return Kind(Path(unit.store.uri, part.name), adopt)


def _weights(unit: Unit) -> Kind:
    data = encode_checkpoint(KEY, 3, {"weight": torch.arange(6.0).reshape(2, 3)})
    return _published(unit, "model.pt", data, lambda where: checkpoint_check(KEY, where))


def _positions(unit: Unit) -> Kind:
    positions = np.arange(20, 30)
    return _published(unit, "indices.npy", indices_bytes(positions), lambda where: _indices_check(positions, where))


def _components(unit: Unit) -> Kind:
    array = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    return _published(unit, "basis.npy", features._array_bytes(array), lambda where: features._array_check(array, where))


def _checked(unit: Unit) -> Kind:
    shard_stage(DATA, unit.store, SerialPool())
    path = next(Path(unit.store.uri).glob("stages/shard-*/work/*/checked.json"))
    name = path.relative_to(unit.store.uri).as_posix()
    return Kind(path, lambda: Plan.from_bytes(path.read_bytes(), name, str(path)))


KINDS: dict[str, Callable[[Unit], Kind]] = {
    "table": _table, "nulls and words": _with_nulls_and_words, "quarantine": _quarantine, "weights": _weights,
    "positions": _positions, "components": _components, "what the check of the data found": _checked,
}  # fmt: skip


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    return KINDS[request.param](Unit(Store(str(tmp_path)), "score", KEY))


def changed(sound: bytes) -> Iterator[bytes]:
    """Yield the object with each of its bytes changed, cut at each length, and longer."""
    data = bytearray(sound)
    for at in range(len(data)):
        # Each bit is tried in every eighth byte, every bit of a small object in tests/cluster/test_record.py.
        data[at] ^= 1 << 3 * at % 8
        yield bytes(data)
        data[at] = sound[at]
    yield from (sound[:size] for size in range(len(sound)))
    yield from (sound + b"\0", b"\n" + sound, sound + sound)


def test_every_changed_byte_and_every_cut_is_refused_with_the_way_out(kind: Kind) -> None:
    kind.adopt()
    for wrong in changed(kind.sound):
        kind.path.write_bytes(wrong)
        with pytest.raises(LoosePartError) as caught:
            kind.adopt()
        said = str(caught.value)
        assert "\n" not in said and str(kind.path) in said and "remove " in said, said
    kind.path.write_bytes(kind.sound)
    kind.adopt()


def test_a_checkpoint_with_a_changed_byte_is_passed_over(tmp_path: Path) -> None:
    work = Work(Unit(Store(str(tmp_path)), "train", KEY), "model")
    for step in (1, 2):
        work.save({"step": step, "weights": torch.arange(3.0)})
    newest, older = work.names()
    path = tmp_path / newest
    for wrong in changed(path.read_bytes()):
        path.write_bytes(wrong)
        with pytest.raises(CorruptError, match=f"checkpoint {path} does not match the digest it holds"):
            work.load(newest)
    found = work.newest()
    assert found is not None and found[0] == older and found[1]["step"] == 1


def test_a_checkpoint_under_the_name_of_another_step_is_passed_over(tmp_path: Path) -> None:
    work = Work(Unit(Store(str(tmp_path)), "proxy", KEY), "model")
    work.save({"step": 5, "weights": torch.arange(3.0)})
    (tmp_path / work.names()[0]).rename(tmp_path / work.names()[0].replace("05.pt", "09.pt"))
    assert work.newest() is None


@pytest.mark.parametrize("called", [called for called in KINDS if called != "what the check of the data found"])
def test_a_whole_object_of_another_unit_is_refused(called: str, tmp_path: Path) -> None:
    here, there = (KINDS[called](Unit(Store(str(tmp_path)), "score", key)) for key in (KEY, "other" * 12))
    assert here.path != there.path and len(here.sound) == len(there.sound)
    here.path.write_bytes(there.sound)
    with pytest.raises(LoosePartError, match="belongs elsewhere"):
        here.adopt()


def test_what_the_check_of_other_data_found_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    found = []
    for spec in (DATA, DATA.model_copy(update={"validation": 0.25})):
        seal = shard_stage(spec, store, SerialPool())
        found.append(next((tmp_path / Unit(store, "shard", seal.key).folder).glob("work/*/checked.json")))
        (tmp_path / Unit(store, "shard", seal.key).folder / "seal.json").unlink()
    found[0].write_bytes(found[1].read_bytes())
    with pytest.raises(LoosePartError, match=f"{found[0]} cannot be read .it does not match the digest it holds.; remove it"):
        shard_stage(DATA, store, SerialPool())


def test_a_part_that_another_pyarrow_wrote_is_adopted_and_any_change_of_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = Unit(Store(str(tmp_path)), "score", KEY)
    check = part_check(KEY, "here", np.arange(8))
    other = pq.ParquetWriter

    def older(sink: Any, schema: pa.Schema, **options: Any) -> pq.ParquetWriter:
        return other(sink, schema, version="1.0", compression="snappy", data_page_version="2.0", use_dictionary=False)

    here = encode_table(_scores(), KEY)
    monkeypatch.setattr(pq, "ParquetWriter", older)
    there = encode_table(_scores(), KEY)
    monkeypatch.undo()
    assert here != there
    part = unit.publish_part("a.parquet", there, check)
    assert unit.publish_part("a.parquet", here, check) == part == unit.find_part("a.parquet", check)
    path = tmp_path / part.name
    path.write_bytes(path.read_bytes().replace(b"parquet-cpp-arrow", b"parquet-cpp-Arrow"))
    with pytest.raises(LoosePartError):
        unit.find_part("a.parquet", check)


def test_a_quarantine_that_was_changed_goes_with_the_part_that_names_it(tmp_path: Path) -> None:
    unit = Unit(Store(str(tmp_path)), "score", KEY)
    table, fact = publish_quarantine(unit, KEY, "a.parquet", BAD)
    assert table is not None
    part = unit.publish_part("a.parquet", encode_table(_scores(), KEY, **fact), PartCheck(unit, KEY, "a.parquet", np.arange(10)))
    assert publish_quarantine(unit, KEY, "a.parquet", BAD)[0] == table
    path = tmp_path / table.name
    path.write_bytes(path.read_bytes().replace(b"PAR1", b"PAR2"))
    with pytest.raises(LoosePartError, match=rf"{table.name} .*remove it too; its stage is not sealed yet: remove .*{part.name}"):
        unit.find_part("a.parquet", PartCheck(unit, KEY, "a.parquet", np.arange(10)))
    with pytest.raises(LoosePartError, match=rf"{table.name} does not match the digest.* remove .*{table.name}, and it is"):
        publish_quarantine(unit, KEY, "a.parquet", BAD)


def test_objects_with_their_digest_are_read_by_anyone(tmp_path: Path) -> None:
    table, again = encode_table(_scores(), KEY), encode_table(_scores(), KEY)
    assert table == again and pq.read_table(pa.BufferReader(table)).equals(_scores())
    # The digest goes into no other table: what is read and written again has one of its own.
    assert encode_table(pq.read_table(pa.BufferReader(table)), KEY) == table
    weights = encode_checkpoint(KEY, 3, {"weight": torch.arange(6.0)})
    assert torch.load(io.BytesIO(weights), weights_only=True)["model"]["weight"].tolist() == [0, 1, 2, 3, 4, 5]
    (tmp_path / "indices.npy").write_bytes(indices_bytes(np.arange(5)))
    for mapped in (None, "r"):
        assert np.load(tmp_path / "indices.npy", mmap_mode=mapped).tolist() == [0, 1, 2, 3, 4]


def test_a_stage_that_takes_over_its_parts_seals_the_bytes_of_an_undisturbed_run(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    seal = shard_stage(DATA, store, SerialPool())
    before = part_bytes(store, seal)
    unit = Unit(store, "shard", seal.key)
    (tmp_path / unit.folder / "seal.json").unlink()
    path = tmp_path / seal.parts[1].name
    # The least that Parquet's own readers do not see: a bound in the statistics.
    bounds = pq.ParquetFile(path).metadata.row_group(0).column(1).statistics
    low = int(bounds.min).to_bytes(8, "little")
    data = path.read_bytes()
    at = data.rfind(low, 0, data.rfind(b"ARROW:schema"))
    path.write_bytes(data[:at] + (int(bounds.min) + 1).to_bytes(8, "little") + data[at + 8 :])
    assert pq.read_table(path).num_rows == seal.parts[1].rows
    assert pq.ParquetFile(path).metadata.row_group(0).column(1).statistics.min == bounds.min + 1
    with pytest.raises(LoosePartError, match=f"{seal.parts[1].name} does not match the digest"):
        shard_stage(DATA, store, SerialPool())
    assert unit.seal() is None
    path.unlink()
    assert part_bytes(store, shard_stage(DATA, store, SerialPool())) == before
