"""Bad rows of the data: counted, published before the index that leaves them out, and refused where there are too many."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from data_case import TEST, TRAIN, index, own, own_cache, pictures, refused, table_of, vectors, write_idx, write_parquet
from own_source import Ring
from PIL import Image

from cluster.errors import CorruptError, InputError
from cluster.record import Part, Seal
from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.pool import SerialPool
from tasks.quarantine import allowed_rows, plain_message
from tasks.schemas import QUARANTINED
from tasks.shard import shard_stage
from tasks.sources import DataSpec
from tasks.sources.protocol import BadRow, RawExamples, Shard
from tasks.tables import facts_in, load_part
from tests.tasks.stage_case import Killed, dying_at

__all__ = ["own_cache"]


def rows_in(store: Store, seal: Seal) -> dict[int, tuple[str, str]]:
    """Return {example_id: (error class, message)} of all quarantine tables, checked against the seal and the parts."""
    fact = seal.meta["quarantine"]
    out: dict[int, tuple[str, str]] = {}
    for record in fact["parts"]:
        part = Part(**record)
        table = load_part(store, part)
        assert set(table.column("stage").to_pylist()) == {seal.stage}
        out.update({row["example_id"]: (row["error_class"], row["message"]) for row in table.to_pylist()})
        of = part.name.replace("/quarantine/", "/parts/")
        assert facts_in(store.read(of), of)["quarantine"] == {"rows": part.rows, "sha256": part.sha256}
    assert len(out) == fact["rows"] == sum(fact["causes"].values())
    return out


def holds(dataset: Dataset, store: Store, rows: int, causes: dict[str, int]) -> dict[int, tuple[str, str]]:
    """Check what was left out of an index of `rows` rows, and that every split holds the others."""
    seal = dataset.index
    found = rows_in(store, seal)
    assert seal.meta["quarantine"]["causes"] == causes and seal.meta["num_quarantined"] == sum(causes.values())
    table = table_of(dataset)
    assert len(table) == rows == seal.meta["num_rows"]
    assert {i for i, row in table.items() if row[0] == QUARANTINED} == set(found)
    assert all(table[i][1] == -1 for i in found)
    used = sum(seal.meta[f"num_{name}"] for name in ("train", "validation", "test", "unused"))
    assert used + len(found) == rows
    loaded = dataset.load(TRAIN)
    assert len(loaded) == dataset.num_train and not set(loaded.example_id.tolist()) & set(found)
    assert np.isfinite(loaded.x).all() and (loaded.y >= 0).all()
    return found


def spoiled(path: Path, rows: int = 400, **columns: Any) -> DataSpec:
    write_parquet(path, rows, **{"id": np.arange(rows) * 3 + 1, **columns})
    source = {"use": "parquet", "args": {"id_column": "id"}}
    return DataSpec(source=source, train=str(path), shard_rows=64, num_classes=3, max_bad_fraction=0.05)


def test_bad_rows_of_a_table_are_left_out_and_named(tmp_path: Path) -> None:
    x: list[Any] = [row.tolist() for row in vectors(400)]
    x[3][2], x[70][0], x[71], x[200], x[201][5] = float("nan"), float("inf"), x[71][:4], None, None
    labels: list[Any] = (np.arange(400) % 3).tolist()
    labels[10], labels[11], labels[300] = 3, -1, None
    # A row with two faults counts once.
    labels[3] = 9
    spec = spoiled(tmp_path / "a.parquet", features=x, label=pa.array(labels, pa.int64()))
    _, dataset, store = index(tmp_path, spec)
    causes = {"bad_label": 3, "non_finite_feature": 3, "wrong_shape": 2}
    found = holds(dataset, store, 400, causes)
    assert sorted(found) == [3 * row + 1 for row in (3, 10, 11, 70, 71, 200, 201, 300)]
    assert found[1 + 3 * 10] == ("bad_label", "a.parquet row 10: the label '3' is no class")
    assert found[1 + 3 * 3][0] == "non_finite_feature" and found[1 + 3 * 71][0] == "wrong_shape"


def test_a_bad_row_moves_no_other_row(tmp_path: Path) -> None:
    x = vectors(400)
    clean = table_of(index(tmp_path, spoiled(tmp_path / "a.parquet", features=list(x)), "clean")[1])
    x[5, 0] = np.nan
    other = table_of(index(tmp_path, spoiled(tmp_path / "a.parquet", features=list(x)), "other")[1])
    assert other.pop(16)[0] == QUARANTINED and clean.pop(16)[0] != QUARANTINED
    assert clean == other


@pytest.mark.parametrize("shard_rows", [1, 7, 400])
def test_the_quarantine_does_not_depend_on_the_sharding(tmp_path: Path, shard_rows: int) -> None:
    x = vectors(400)
    x[[5, 6, 390], 1] = np.inf
    spec = spoiled(tmp_path / "a.parquet", features=list(x)).model_copy(update={"limit": 300})
    one, two = index(tmp_path, spec, "one"), index(tmp_path, spec.model_copy(update={"shard_rows": shard_rows}), "two")
    assert rows_in(one[2], one[0]) == rows_in(two[2], two[0]) and table_of(one[1]) == table_of(two[1])
    assert one[0].meta["num_train"] + one[0].meta["num_validation"] + one[0].meta["num_test"] == 300


def test_images_that_cannot_be_read_or_are_of_another_size(tmp_path: Path) -> None:
    for i, picture in enumerate(pictures(120)):
        path = tmp_path / "d" / ("cat", "dog")[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    # The first of the list, and all of one shard, are bad.
    for name, data in (("cat/000.png", b""), ("cat/002.png", b"\x89PNG\r\n\x1a\n"), ("dog/119.png", b"GIF89a")):
        (tmp_path / "d" / name).write_bytes(data)
    whole = (tmp_path / "d/cat/004.png").read_bytes()
    (tmp_path / "d/cat/006.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(tmp_path / "d/dog/117.png")
    Image.fromarray(np.zeros((5, 5), dtype=np.uint16)).save(tmp_path / "d/dog/115.png")
    spec = DataSpec(source="images", train=str(tmp_path / "d"), shard_rows=2, max_bad_fraction=0.05)
    _, dataset, store = index(tmp_path, spec)
    found = holds(dataset, store, 120, {"undecodable": 5, "wrong_shape": 1})
    assert all(str(tmp_path) not in message and "0x" not in message for _, message in found.values())
    assert any(message.startswith("cat/000.png: it cannot be decoded as an image") for _, message in found.values())


def test_labels_of_idx_files_beyond_num_classes(tmp_path: Path) -> None:
    labels = (np.arange(100) % 3).astype(np.uint8)
    labels[[4, 50]] = 200
    write_idx(tmp_path / "d", "train", pictures(100), labels, pack=False)
    spec = DataSpec(source="idx", train=str(tmp_path / "d"), num_classes=3, shard_rows=30, max_bad_fraction=0.02)
    _, dataset, store = index(tmp_path, spec)
    holds(dataset, store, 100, {"bad_label": 2})


def test_numpy_features_and_test_labels_that_train_has_not(tmp_path: Path) -> None:
    x = vectors(100).astype(np.float64)
    x[7, 3], x[8, 0] = 1e39, np.nan
    np.savez(tmp_path / "train.npz", x=x, y=np.arange(100) % 3)
    y = np.arange(60) % 3
    y[9] = 3
    np.savez(tmp_path / "test.npz", x=vectors(60, 5), y=y)
    spec = DataSpec(source="numpy", train=str(tmp_path / "train.npz"), test=str(tmp_path / "test.npz"), shard_rows=30,
                    max_bad_fraction=0.02)  # fmt: skip
    _, dataset, store = index(tmp_path, spec)
    holds(dataset, store, 160, {"bad_label": 1, "non_finite_feature": 2})
    assert len(dataset.load(TEST)) == 59


class Spoiled(Ring):
    """Be a user's source that knows of rows it could not read."""

    def read(self, shard: Shard) -> RawExamples:
        raw = super().read(shard)
        kind = "lost" if self.spoil == "class" else "undecodable"
        row = shard.rows if self.spoil == "row" else 0
        return RawExamples(raw.example_id, raw.x, raw.labels, [BadRow(row, kind, "torn")] if shard.start == 15 else [])


def test_a_source_of_the_users_own_names_its_bad_rows(tmp_path: Path) -> None:
    def spec(spoil: str) -> DataSpec:
        source = {"use": f"{__name__}:Spoiled", "args": {"spoil": spoil}}
        return DataSpec(source=source, train="ring", shard_rows=15, max_bad_fraction=0.05)

    _, dataset, store = index(tmp_path, spec(""))
    assert holds(dataset, store, 40, {"undecodable": 1}) == {15: ("undecodable", "ring row 15: torn")}
    refused(tmp_path, spec("class"), "'lost'", "undecodable, wrong_shape, non_finite_feature, bad_label")
    refused(tmp_path, spec("row"), "row 15")


class Leaky(Ring):
    """Be a user's source that says what its service answered, credentials and all."""

    def read(self, shard: Shard) -> RawExamples:
        raw = super().read(shard)
        said = f"GET https://bob:c4n4ry-pass@feat/x.png?token=c4n4ry-query denied for {os.environ['FEATURE_STORE_TOKEN']}"
        return RawExamples(raw.example_id, raw.x, raw.labels, [BadRow(0, "undecodable", said)] if shard.start == 15 else [])


def test_what_a_source_or_a_label_says_loses_its_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "c4n4ry-feature-token-0123"
    monkeypatch.setenv("FEATURE_STORE_TOKEN", token)
    leaky = DataSpec(source=f"{__name__}:Leaky", train="ring", shard_rows=15, max_bad_fraction=0.05)
    labels = [*("cat", "dog") * 30]
    labels[7] = token
    # A message shows 60 characters of a label: half of a secret would not be found in them.
    labels[8] = "x" * 50 + token
    spec = own(tmp_path, label=labels).model_copy(update={"label_map": {"cat": 0, "dog": 1}, "max_bad_fraction": 0.05})
    told = [f"bad.parquet row {row}: the label {label!r} is no class" for row, label in
            ((7, "<FEATURE_STORE_TOKEN>"), (8, "x" * 50 + "<FEATURE_S"))]  # fmt: skip
    for number, (each, said) in enumerate(
        [
            (leaky, ["ring row 15: GET https://<credentials>@feat/x.png?token=<signed> denied for <FEATURE_STORE_TOKEN>"]),
            (spec, told),
        ]
    ):
        seal, _, store = index(tmp_path, each, f"store-{number}")
        assert [message for _, message in rows_in(store, seal).values()] == said
        held = {name: store.read(name) for name in store.list("stages")}
        assert any(name.endswith("checked.json") for name in held)
        assert not [name for name, data in held.items() if b"c4n4ry" in data]
        assert "c4n4ry" not in refused(tmp_path, each.model_copy(update={"max_bad_fraction": 0.0}), f"{len(said)} of ")


class Named(Ring):
    """Be a user's source that names its classes, or its labels, after what its service told it."""

    def class_names(self) -> list[str] | None:
        return ["cat", os.environ["FEATURE_STORE_TOKEN"]] if self.spoil == "class" else None

    def label_map(self) -> dict[str, int] | None:
        return {"0": 0, "1": 1, os.environ["FEATURE_STORE_TOKEN"]: 1} if self.spoil == "label" else None


@pytest.mark.parametrize("spoil", ["class", "label"])
def test_a_name_of_a_class_or_a_label_that_is_a_secret_is_refused(
    spoil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_STORE_TOKEN", "c4n4ry-feature-token-0123")
    spec = DataSpec(source={"use": f"{__name__}:Named", "args": {"spoil": spoil}}, train="ring", shard_rows=15)
    assert "c4n4ry" not in refused(tmp_path, spec, "names of classes and labels holds", "variable FEATURE_STORE_TOKEN")


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_class_without_a_good_train_row_is_refused(tmp_path: Path, lost: int, elsewhere: bool) -> None:
    x, labels = vectors(300), np.arange(300) % 3
    x[labels == lost, 1] = np.nan
    spec = spoiled(tmp_path / "a.parquet", 300, features=list(x)).model_copy(update={"max_bad_fraction": 0.4})
    if elsewhere:
        # Good rows of the class in the test location do not teach it.
        write_parquet(tmp_path / "test.parquet", 90, id=np.arange(90) * 3)
        spec = spec.model_copy(update={"test": str(tmp_path / "test.parquet")})
    unsaid = spec.model_copy(update={"num_classes": None})
    message = refused(tmp_path, unsaid, f"no good row of class {lost}: 100 rows", "data.num_classes", "a.parquet row ")
    assert message.splitlines()[1].split()[:2] == ["non_finite_feature", "100"]
    # Who says how many classes there are may miss some.
    assert index(tmp_path, spec)[0].meta["num_classes"] == 3


def test_a_class_lost_by_shape_or_folder_is_refused_by_its_name(tmp_path: Path) -> None:
    labels = [*("cat", "dog") * 96, *["emu"] * 64]
    x = [row.tolist()[: 4 if label == "emu" else 6] for row, label in zip(vectors(256), labels, strict=True)]
    spec = spoiled(tmp_path / "a.parquet", 256, features=x, label=labels)
    known = {"label_map": {"cat": 0, "dog": 1, "emu": 2}, "num_classes": None, "max_bad_fraction": 0.5}
    refused(tmp_path, spec.model_copy(update=known), "no good row of class 'emu': 64 rows", "wrong_shape")
    for i, picture in enumerate(pictures(60)):
        path = tmp_path / "d" / ("cat", "dog", "emu")[i % 3] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
        if i % 3 == 1:
            path.write_bytes(b"GIF89a")
    images = DataSpec(source="images", train=str(tmp_path / "d"), shard_rows=16, max_bad_fraction=0.5)
    refused(tmp_path, images, "no good row of class 'dog': 20 rows", "undecodable")


def test_labels_that_are_bad_themselves_make_no_class(tmp_path: Path) -> None:
    x, labels = vectors(300), np.arange(300) % 3
    x[labels == 2, 1], labels[labels == 2] = np.nan, -5
    spec = spoiled(tmp_path / "a.parquet", 300, features=list(x), label=labels)
    spec = spec.model_copy(update={"num_classes": None, "max_bad_fraction": 0.4})
    seal = index(tmp_path, spec)[0]
    assert (seal.meta["num_classes"], seal.meta["num_quarantined"]) == (2, 100)


def test_more_bad_rows_than_the_budget_are_refused_with_a_table_of_causes(tmp_path: Path) -> None:
    x = vectors(400)
    x[:5, 0] = np.nan
    labels = np.arange(400) % 3
    labels[100] = 7
    spec = spoiled(tmp_path / "a.parquet", features=list(x), label=labels)
    message = refused(
        tmp_path, spec.model_copy(update={"max_bad_fraction": 0.01}), "6 of 400 rows are bad",
        "data.max_bad_fraction 0.01 allows 4", "a.parquet row 0", "a.parquet row 100",
    )  # fmt: skip
    lines = [line.split()[:2] for line in message.splitlines()[1:]]
    assert lines == [["non_finite_feature", "5"], ["bad_label", "1"]]
    assert InputError.exit_code == 2


def test_a_finished_index_is_measured_by_the_budget_of_who_asks(tmp_path: Path) -> None:
    x = vectors(400)
    x[:5, 0] = np.nan
    spec = spoiled(tmp_path / "a.parquet", features=list(x))
    seal, _, store = index(tmp_path, spec)
    with pytest.raises(InputError, match=r"5 of 400 rows are bad[\s\S]*non_finite_feature +5  example_id 1 "):
        shard_stage(spec.model_copy(update={"max_bad_fraction": 0.01}), store, SerialPool())
    assert shard_stage(spec, store, SerialPool()) == seal, "the budget is no part of the key"


@pytest.mark.parametrize("after", [False, True])
def test_every_crash_point_of_an_index_with_a_quarantine(tmp_path: Path, after: bool) -> None:
    x = vectors(400)
    x[[5, 6, 390], 1] = np.inf
    spec = spoiled(tmp_path / "a.parquet", features=list(x)).model_copy(update={"shard_rows": 200})
    whole = index(tmp_path, spec, "whole")[0]
    # checked.json, then the parts of three shards, two of them after a quarantine, then the seal.
    for number in range(1, 8):
        store = Store(str(tmp_path / f"{after}-{number}"))
        with pytest.raises(Killed):
            shard_stage(spec, dying_at(store, number, after=after), SerialPool())
        names = store.list("stages")
        for name in names:
            if "/parts/" in name and "quarantine" in facts_in(store.read(name), name):
                assert name.replace("/parts/", "/quarantine/") in names, "a part before its quarantine"
        assert shard_stage(spec, store, SerialPool()) == whole


def test_a_quarantine_that_is_gone_or_changed_is_noticed(tmp_path: Path) -> None:
    x = vectors(400)
    x[5, 1] = np.inf
    spec = spoiled(tmp_path / "a.parquet", features=list(x))
    seal, _, store = index(tmp_path, spec)
    part = Part(**seal.meta["quarantine"]["parts"][0])
    store.remove(f"stages/shard-{seal.key[:12]}/seal.json")
    store.replace(part.name, store.read(part.name)[:-1])
    with pytest.raises(CorruptError, match="is not the one that part"):
        shard_stage(spec, store, SerialPool())
    store.remove(part.name)
    with pytest.raises(CorruptError, match="is gone, though part"):
        shard_stage(spec, store, SerialPool())


def test_messages_are_the_same_in_every_process() -> None:
    assert plain_message(OSError("cannot identify image file <_io.BytesIO object at 0x7f0a>")) == (
        "OSError: cannot identify image file"
    )
    assert len(plain_message(ValueError("x" * 999))) == 200
    assert [allowed_rows(0.001, rows) for rows in (999, 1000, 3000)] == [0, 1, 3]
