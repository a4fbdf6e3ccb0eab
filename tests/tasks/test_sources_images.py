"""The image folder: classes by folder, sizes and modes, and files that are no images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_case import TEST, TRAIN, index, own_cache, pictures, refused, table_of
from PIL import Image

from tasks.seeding import hash63
from tasks.sources import DataSpec

__all__ = ["own_cache"]

CLASSES = ("cat", "dog", "eel")


def spec_of(path: Path, **args: Any) -> DataSpec:
    return DataSpec(source={"use": "images", "args": args}, train=str(path), shard_rows=20)


def paint(
    folder: Path, each: int = 20, seed: int = 0, classes: tuple[str, ...] = CLASSES
) -> dict[str, np.ndarray[Any, Any]]:
    """Write `each` grey 5x5 PNGs a class; return their pixels by relative name."""
    pixels = pictures(each * len(classes), seed)
    out = {}
    for i, picture in enumerate(pixels):
        name = f"{classes[i % len(classes)]}/{seed}-{i:03d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / name)
        out[name] = picture
    return out


def test_pixels_classes_and_ids(tmp_path: Path) -> None:
    names = paint(tmp_path / "d")
    seal, dataset, _ = index(tmp_path, spec_of(tmp_path / "d"))
    assert seal.meta["class_names"] == list(CLASSES) and seal.meta["shape"] == [1, 5, 5] and len(seal.parts) == 3
    by_id = {hash63(name): (CLASSES.index(name[:3]), pixels) for name, pixels in names.items()}
    assert set(table_of(dataset)) == set(by_id)
    loaded = dataset.load(TRAIN)
    for example_id, x, y in zip(loaded.example_id.tolist(), loaded.x, loaded.y):
        assert y == by_id[example_id][0] and np.array_equal(x[0], by_id[example_id][1])


def test_rows_keep_id_and_split_when_images_are_added(tmp_path: Path) -> None:
    paint(tmp_path / "d", seed=5)
    before = table_of(index(tmp_path, spec_of(tmp_path / "d"))[1])
    paint(tmp_path / "d", seed=1, each=3)
    after = table_of(index(tmp_path, spec_of(tmp_path / "d"))[1])
    assert len(after) == 69 and {i: row[:2] for i, row in before.items()} == {i: after[i][:2] for i in before}


def test_sharding_changes_nothing(tmp_path: Path) -> None:
    paint(tmp_path / "d")
    whole = index(tmp_path, spec_of(tmp_path / "d").model_copy(update={"shard_rows": 1000}), "whole")[1]
    cut = index(tmp_path, spec_of(tmp_path / "d").model_copy(update={"shard_rows": 7}), "cut")[1]
    assert table_of(whole) == table_of(cut) and np.array_equal(whole.load(TEST).x, cut.load(TEST).x)


def test_a_test_folder(tmp_path: Path) -> None:
    paint(tmp_path / "train")
    paint(tmp_path / "test", each=5, classes=CLASSES[1:])
    spec = spec_of(tmp_path / "train").model_copy(update={"test": str(tmp_path / "test")})
    dataset = index(tmp_path, spec)[1]
    assert dataset.num_test == 10 and set(dataset.load(TEST).y.tolist()) == {1, 2}
    paint(tmp_path / "test", each=1, classes=("fox",))
    refused(tmp_path, spec, "data.test", "'fox'", "'cat', 'dog', 'eel'")


def test_size_and_mode(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "d" / CLASSES[i % 2] / f"{i}.{('png', 'jpg', 'bmp')[i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6 + i % 4, 8, 3), dtype=np.uint8)).save(path)
    refused(tmp_path, spec_of(tmp_path / "d"), "size: [H, W]", "(3, 6, 8)")
    dataset = index(tmp_path, spec_of(tmp_path / "d", size=[4, 6]))[1]
    assert dataset.shape == (3, 4, 6) and dataset.load(TRAIN).x.dtype == np.uint8
    assert index(tmp_path, spec_of(tmp_path / "d", size=[4, 6], mode="L"))[1].shape == (1, 4, 6)
    Image.fromarray(np.zeros((6, 8), dtype=np.uint8)).save(tmp_path / "d/cat/grey.png")
    refused(tmp_path, spec_of(tmp_path / "d", size=[4, 6]), "mode: RGB", "grey.png")
    assert index(tmp_path, spec_of(tmp_path / "d", size=[4, 6], mode="RGB"))[1].shape == (3, 4, 6)


def test_sizes_that_differ_between_shards(tmp_path: Path) -> None:
    paint(tmp_path / "d")
    for i in range(60):
        (tmp_path / "d/zoo").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((6, 6), dtype=np.uint8)).save(tmp_path / f"d/zoo/{i:03d}.png")
    refused(tmp_path, spec_of(tmp_path / "d"), "(1, 5, 5)", "(1, 6, 6)")


def test_a_class_folder_may_begin_with_an_underscore(tmp_path: Path) -> None:
    paint(tmp_path / "d", classes=("_background_", "cat"))
    assert index(tmp_path, spec_of(tmp_path / "d"))[0].meta["class_names"] == ["_background_", "cat"]


def test_label_map_joins_folders(tmp_path: Path) -> None:
    paint(tmp_path / "d")
    spec = spec_of(tmp_path / "d").model_copy(update={"label_map": {"cat": 0, "dog": 0, "eel": 1}})
    assert index(tmp_path, spec)[0].meta["class_names"] == ["cat|dog", "eel"]


@pytest.mark.parametrize("data", [b"", b"not an image", None])
def test_an_image_that_cannot_be_decoded(tmp_path: Path, data: bytes | None) -> None:
    paint(tmp_path / "d")
    path = tmp_path / "d/eel/0-059.png"
    path.write_bytes(path.read_bytes()[:50] if data is None else data)
    refused(tmp_path, spec_of(tmp_path / "d"), "eel/0-059.png", "cannot be decoded")


def test_deep_images_are_refused(tmp_path: Path) -> None:
    paint(tmp_path / "d")
    Image.fromarray(np.zeros((5, 5), dtype=np.uint16)).save(tmp_path / "d/eel/deep.png")
    refused(tmp_path, spec_of(tmp_path / "d"), "deep.png", "8 bits")


def test_files_that_belong_to_no_class(tmp_path: Path) -> None:
    paint(tmp_path / "d")
    for name in ("README.md", ".DS_Store", "cat/Thumbs.db", "cat/.DS_Store"):
        (tmp_path / "d" / name).write_text("x")
    assert index(tmp_path, spec_of(tmp_path / "d"))[0].meta["num_rows"] == 60
    (tmp_path / "d/cat/notes.txt").write_text("x")
    refused(tmp_path, spec_of(tmp_path / "d"), "cat/notes.txt", "no image")
    (tmp_path / "d/cat/notes.txt").unlink()
    Image.fromarray(pictures(1)[0]).save(tmp_path / "d/lost.png")
    refused(tmp_path, spec_of(tmp_path / "d"), "lost.png", "outside a class folder")


@pytest.mark.parametrize("name", [".bird/a.png", "cat/.a.PNG", "cat/.more/b.png"])
def test_an_image_that_a_dot_hides_is_refused(tmp_path: Path, name: str) -> None:
    paint(tmp_path / "d")
    # What programs keep for themselves is no example.
    for litter in ("cat/._0.png", ".cache/index.json", ".git"):
        (tmp_path / "d" / litter).parent.mkdir(exist_ok=True)
        (tmp_path / "d" / litter).write_text("x")
    assert index(tmp_path, spec_of(tmp_path / "d"))[0].meta["num_rows"] == 60
    (tmp_path / "d" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "d" / name).write_bytes(b"x")
    refused(tmp_path, spec_of(tmp_path / "d"), name, "(1 such images); rename what begins with a dot")


def test_places_and_arguments(tmp_path: Path) -> None:
    refused(tmp_path, spec_of(tmp_path / "none"), "no file or folder")
    (tmp_path / "bare").mkdir()
    refused(tmp_path, spec_of(tmp_path / "bare"), "no image")
    paint(tmp_path / "one", classes=("cat",))
    refused(tmp_path, spec_of(tmp_path / "one"), "at least 2 classes")
    refused(tmp_path, spec_of(tmp_path / "one", size=[3]), "[H, W]")
    refused(tmp_path, spec_of(tmp_path / "one", size=["a", "b"]), "['a', 'b']", "[H, W]")
    refused(tmp_path, spec_of(tmp_path / "one", size=[5, 16_385]), "[5, 16385]", "from 1 to 16384")
    refused(tmp_path, spec_of(tmp_path / "one", mode="CMYK"), "'CMYK'")
    refused(tmp_path, spec_of(tmp_path / "one", sise=[3, 3]), "'sise'", "did you mean 'size'?")


def test_an_image_taken_away_under_the_run(tmp_path: Path) -> None:
    paint(tmp_path / "d")
    dataset = index(tmp_path, spec_of(tmp_path / "d"))[1]
    (tmp_path / "d/cat/0-000.png").unlink()
    with pytest.raises(Exception, match=r"0-000\.png"):
        dataset.load(TRAIN)
