"""Parts and seals: published once, adopted by losers, refused when they are not what they say."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from cluster.errors import CorruptError, LoosePartError
from cluster.fingerprint import sha256
from cluster.record import Part, Parts, Seal, Unit, read_part
from cluster.self_digest import BLANK, MARK, filled
from cluster.storage import Store

KEY = "0123456789abcdef" * 4


def count(data: bytes) -> int:
    """Check a part of lines that ends with END; return the number of lines before it."""
    lines = data.rpartition(MARK)[0].decode().split("\n")
    if lines[-1] != "END":
        raise CorruptError(f"part {lines[0]} is cut short")
    return len(lines) - 1


def whole(data: bytes) -> bytes:
    """Return a part with a place for its digest behind it."""
    return data + MARK + BLANK


def stored(unit: Unit, name: str, data: bytes) -> bytes:
    """Return the bytes that are published of a part."""
    return filled(whole(data), unit.part_name(name))[0]


SIZE = len(MARK + BLANK)


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    return Unit(Store(str(tmp_path)), "score", KEY)


def test_a_unit_from_nothing_to_sealed(unit: Unit) -> None:
    assert unit.seal() is None
    assert unit.find_part("b.txt", count) is None
    second = unit.publish_part("b.txt", whole(b"x\ny\nEND"), count)
    first = unit.publish_part("a.txt", whole(b"x\nEND"), count)
    assert second == Part("stages/score-0123456789ab/parts/b.txt", 2, 7 + SIZE, second.sha256)
    assert unit.find_part("b.txt", count) == second
    seal = unit.publish_seal([second, first], {"num_rows": 3, "at": 1.0})
    assert list(seal.meta.items()) == [("at", 1), ("num_rows", 3)]
    assert seal.parts == (first, second) and seal.parts[-1] == second and list(seal.parts[:1]) == [first]
    assert unit.seal() == seal
    assert read_part(unit.store, first) == stored(unit, "a.txt", b"x\nEND")


def test_the_seal_is_a_function_of_its_content(unit: Unit) -> None:
    parts = [unit.publish_part(name, whole(b"END"), count) for name in ("a", "b")]
    one = Seal("score", KEY, tuple(parts), {"a": 1.0, "b": {"y": 2, "x": [1]}})
    two = Seal("score", KEY, tuple(parts), {"b": {"x": [1], "y": 2}, "a": 1})
    assert one.to_bytes() == two.to_bytes()
    assert Seal.from_bytes(one.to_bytes(), "here").to_bytes() == one.to_bytes()


def test_the_loser_adopts_the_winners_part_even_with_other_bytes(unit: Unit) -> None:
    winner = unit.publish_part("a", whole(b"x\ny\nEND"), count)
    assert unit.publish_part("a", whole(b"p\nq\nEND"), count) == winner
    assert read_part(unit.store, winner) == stored(unit, "a", b"x\ny\nEND")


def test_the_loser_refuses_a_winner_with_other_rows(unit: Unit) -> None:
    unit.publish_part("a", whole(b"x\ny\nEND"), count)
    with pytest.raises(CorruptError, match=r"parts/a has 2 rows, this writer has 1, under one key"):
        unit.publish_part("a", whole(b"x\nEND"), count)


def test_nothing_unreadable_is_published(unit: Unit) -> None:
    with pytest.raises(CorruptError, match="cut short"):
        unit.publish_part("a", whole(b"x\ny"), count)
    assert unit.find_part("a", count) is None


def test_a_part_without_a_place_for_its_digest_is_not_published(unit: Unit) -> None:
    with pytest.raises(ValueError, match="without a place for its own digest"):
        unit.publish_part("a", b"x\nEND", count)
    assert unit.store.list(unit.folder) == []


def test_every_changed_bit_every_cut_and_what_is_added_is_refused_until_a_seal_vouches(unit: Unit) -> None:
    part = unit.publish_part("a", whole(b"x\ny\nEND"), count)
    path = Path(unit.store.uri, part.name)
    sound = path.read_bytes()
    flipped = [
        sound[:at] + bytes([sound[at] ^ 1 << bit]) + sound[at + 1 :] for at in range(len(sound)) for bit in range(8)
    ]
    cut = [sound[:size] for size in range(len(sound))]
    added = [sound + b"\0", b"\0" + sound, sound + sound, sound + whole(b"")[:-1]]
    elsewhere = [stored(unit, "b", b"x\ny\nEND"), stored(Unit(unit.store, "score", KEY[::-1]), "a", b"x\ny\nEND")]
    said = (
        rf"part {unit.store.url(part.name)} does not match the digest it holds: it was cut short or changed after publishing, "
        rf"or belongs elsewhere; "
        rf"its stage is not sealed yet: remove {unit.store.url(part.name)}, and it is computed again\Z"
    )
    for wrong in (*flipped, *cut, *added, *elsewhere):
        path.write_bytes(wrong)
        with pytest.raises(LoosePartError, match=said):
            unit.find_part("a", count)
    with pytest.raises(LoosePartError, match=said):
        unit.publish_part("a", whole(b"x\ny\nEND"), count)
    with pytest.raises(CorruptError, match=rf"{part.name} has \d+ bytes, .* its seal says {part.size} bytes"):
        read_part(unit.store, part)
    path.write_bytes(sound)
    assert unit.find_part("a", count) == part


def test_a_folder_in_the_place_of_a_part_is_named(unit: Unit) -> None:
    Path(unit.store.uri, unit.part_name("a")).mkdir(parents=True)
    with pytest.raises(LoosePartError, match=r"part .*parts/a is a folder; its stage is not sealed yet: remove "):
        unit.find_part("a", count)


def test_a_part_that_is_gone_is_named(unit: Unit) -> None:
    part = unit.publish_part("a", whole(b"END"), count)
    unit.store.remove(part.name)
    with pytest.raises(CorruptError, match=r"parts/a is gone, though its seal names it"):
        read_part(unit.store, part)


def test_the_first_seal_stands(unit: Unit) -> None:
    part = unit.publish_part("a", whole(b"END"), count)
    first = unit.publish_seal([part], {"accuracy": 90})
    assert unit.publish_seal([part], {"accuracy": 91}) == first


def test_a_seal_of_another_key_in_the_same_folder_is_refused(unit: Unit) -> None:
    unit.publish_seal([])
    other = Unit(unit.store, "score", KEY[:-1] + "0")
    assert other.folder == unit.folder
    for act in (other.seal, lambda: other.publish_seal([])):
        with pytest.raises(CorruptError, match=f"is of score {KEY}, not score {other.key}"):
            act()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"stage": "score", "key": "x", "parts": [{"rows": 1}], "meta": {}}'])
def test_a_broken_seal_is_named(unit: Unit, data: bytes) -> None:
    unit.store.create(f"{unit.folder}/seal.json", data)
    with pytest.raises(CorruptError, match=r"seal /.*/stages/score-0123456789ab/seal.json cannot be read"):
        unit.seal()


EDITS = {
    "rows": (b'"rows":2', b'"rows":3'),
    "meta": (b'"num_rows":2', b'"num_rows":1'),
    "stage": (b'"stage":"score"', b'"stage":"sc0re"'),
    "space": (b'"stage":', b'"stage": '),
    "line end": (b"}", b"}\n"),
    "another field": (b'"meta":', b'"extra":1,"meta":'),
    "negative": (b'"rows":2', b'"rows":-2'),
    "huge": (b'"rows":2', b'"rows":' + b"9" * 30),
    "text": (b'"rows":2', b'"rows":"2"'),
    "digits": (b'"sha256":"', b'"sha256":"x'),
    "nesting": (b'"meta":{', b'"meta":{"deep":' + b"[" * 100_000 + b"]" * 100_000 + b","),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_seal_edited_by_hand_is_found(unit: Unit, edit: str) -> None:
    seal = unit.publish_seal([unit.publish_part("a", whole(b"x\ny\nEND"), count)], {"num_rows": 2})
    path = Path(unit.store.uri, unit.folder, "seal.json")
    before, after = EDITS[edit]
    edited = path.read_bytes().replace(before, after)
    assert edited != seal.to_bytes()
    path.write_bytes(edited)
    with pytest.raises(CorruptError, match=r"seal /.*/seal.json .*it was changed after publishing"):
        unit.seal()


def test_a_seal_of_many_parts_is_small_in_memory_and_pickles() -> None:
    digests = sorted(sha256(b"%d" % number) for number in range(2000))
    parts = [Part(f"stages/score-0123456789ab/parts/{each[:12]}.parquet", n, 2**40 + n, each) for n, each in enumerate(digests)]
    seal = Seal("score", KEY, parts[::-1])
    assert list(seal.parts) == parts
    assert all(seal.part(f"{each[:12]}.parquet") == part for each, part in zip(digests, parts))
    assert seal.part("0.parquet") is None and seal.part("g") is None and Seal("score", KEY, []).part("g") is None
    assert len(pickle.dumps(seal)) < 130 * len(parts)
    assert pickle.loads(pickle.dumps(seal)) == seal and hash(seal.parts) == hash(Parts(parts))
    assert Seal.from_bytes(seal.to_bytes(), "here") == seal


def test_texts_that_look_like_a_seal_are_read_as_texts() -> None:
    texts = ['"parts":[', "}", "{", "],", 'a"}', "\\", '\\"', "é"]
    parts = [Part(f"{folder}{text}", 1, 2, sha256(text.encode())) for folder in ("", "a/", "b/") for text in texts]
    meta = {"quarantine": {"parts": [{"name": text} for text in texts]}, "}],": texts}
    for some in (parts, parts[:1], []):
        seal = Seal('"parts":[]', KEY, some, meta)
        assert sorted(seal.parts, key=lambda part: part.name) == sorted(some, key=lambda part: part.name)
        data = seal.to_bytes()
        assert Seal.from_bytes(data, "here") == seal and Seal.from_bytes(data, "here").to_bytes() == data
        for at in range(0, len(data), 3):
            for wrong in (data[:at], data[:at] + data[at + 1 :], data[:at] + b"!" + data[at + 1 :], data[:at] + b"," + data[at:]):
                with pytest.raises(CorruptError, match="it was changed after publishing"):
                    Seal.from_bytes(wrong, "here")


def test_several_seals_share_a_folder_of_parts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    scorer = "f" * 64
    units = [Unit(store, "score", key * 64, f"seal-{key * 12}.json", scorer) for key in "ab"]
    part = units[0].publish_part("p", whole(b"x\nEND"), count)
    assert units[1].find_part("p", count) == part
    units[0].publish_seal([part])
    assert units[1].seal() is None
    assert store.list("stages") == [f"stages/score-{'f' * 12}/parts/p", f"stages/score-{'f' * 12}/seal-{'a' * 12}.json"]


def test_a_seal_holds_no_times_and_reads_as_json(unit: Unit) -> None:
    body = json.loads(unit.publish_seal([unit.publish_part("a", whole(b"END"), count)], {"n": 1}).to_bytes())
    assert set(body) == {"digest", "stage", "key", "parts", "meta"}
    assert set(body["parts"][0]) == {"name", "rows", "size", "sha256"}
