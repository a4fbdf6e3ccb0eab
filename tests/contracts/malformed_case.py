"""Builders of malformed data, by name: each spoils one thing of a small sound dataset and returns its specification."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tasks.sources.spec import DataSpec

Build = Callable[[Path], DataSpec]
ROWS = 60
REFUSED: dict[str, Build] = {}
"""Ends in one InputError, and nothing is written."""
QUARANTINED: dict[str, tuple[Build, dict[str, int]]] = {}
"""Ends in the quarantine, with these causes."""
BUDGET = 0.2


def spec(source: str, path: Path, **more: Any) -> DataSpec:
    args = more.pop("args", {})
    return DataSpec(source={"use": source, "args": args}, train=str(path), shard_rows=16, max_bad_fraction=BUDGET, **more)


def refused(name: str, build: Build) -> None:
    assert name not in REFUSED
    REFUSED[name] = build


def quarantined(name: str, build: Build, **causes: int) -> None:
    QUARANTINED[name] = build, causes


def features(rows: int = ROWS) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)


def labels(rows: int = ROWS) -> list[Any]:
    return (np.arange(rows) % 3).tolist()


def spread(count: int, size: int) -> Iterator[int]:
    """Yield `count` lengths from 0 to below `size`, evenly spread, the last one short by one byte."""
    yield from (size * i // (count - 1) for i in range(count - 1))
    yield size - 1


# Parquet


def parquet(path: Path, **columns: Any) -> DataSpec:
    path.mkdir(exist_ok=True)
    data = {"features": list(features()), "label": labels(), "id": np.arange(ROWS), **columns}
    pq.write_table(pa.table({n: v for n, v in data.items() if v is not None}), path / "a.parquet", row_group_size=20)
    return spec("parquet", path, num_classes=3, args={"id_column": "id"})


def parquet_bytes(change: Callable[[bytes], bytes]) -> Build:
    def build(path: Path) -> DataSpec:
        made = parquet(path)
        (path / "a.parquet").write_bytes(change((path / "a.parquet").read_bytes()))
        return made

    return build


def columns(**changed: Any) -> Build:
    return lambda path: parquet(path, **changed)


for length in range(10):
    refused(f"parquet cut to {length} tenths", parquet_bytes(lambda data, length=length: data[: len(data) * length // 10]))
refused("parquet short of one byte", parquet_bytes(lambda data: data[:-1]))
refused("parquet with another magic", parquet_bytes(lambda data: b"PARX" + data[4:-4] + b"PARX"))
refused("parquet with a footer of 2 GB", parquet_bytes(lambda data: data[:-8] + struct.pack("<I", 2**31 - 1) + data[-4:]))
refused("parquet with zeros for pages", parquet_bytes(lambda data: data[:4] + bytes(1200) + data[1204:]))
refused("parquet that is text", parquet_bytes(lambda data: b"features,label\n1,2\n"))
refused("parquet without labels", columns(label=None))
refused("parquet without features", columns(features=None))
refused("parquet without its ids", columns(id=None))
refused("parquet ids that are floats", columns(id=np.arange(ROWS) + 0.5))
refused("parquet ids that are text", columns(id=[str(i) for i in range(ROWS)]))
refused("parquet ids that are null", columns(id=pa.array([*range(ROWS - 1), None])))
refused("parquet ids that repeat", columns(id=np.arange(ROWS) // 2))
refused("parquet ids beyond int64", columns(id=np.arange(ROWS, dtype=np.uint64) + np.uint64(2**63)))
refused("parquet features that are text", columns(features=["a"] * ROWS))
refused("parquet features that are empty lists", columns(features=pa.array([[]] * ROWS, pa.list_(pa.float32()))))
refused("parquet features that are structs", columns(features=[{"a": 1.0}] * ROWS))
refused("parquet features that are all null", columns(features=pa.nulls(ROWS, pa.list_(pa.float32()))))
refused("parquet features that are all NaN", columns(features=[[float("nan")] * 4] * ROWS))
refused("parquet whole numbers beyond 2^24", columns(features=[[2**24 + 1, 0]] * ROWS))
refused("parquet labels that are lists", columns(label=[[i % 3] for i in range(ROWS)]))
refused("parquet labels that are dates", columns(label=pa.array(range(ROWS), pa.date32())))
refused("parquet labels that are all null", columns(label=pa.nulls(ROWS, pa.int64())))
refused("parquet labels of one class", columns(label=[0] * ROWS))
refused("parquet labels that are fractions", columns(label=np.linspace(0, 1, ROWS)))


def options(source: str, path: Path, **args: Any) -> DataSpec:
    """Return the specification of a sound dataset with reading options that are none."""
    makers: dict[str, Build] = {"parquet": parquet, "numpy": numpy_file(), "images": images}
    return spec(source, Path(makers[source](path).train), args=args)


def npy_options(path: Path, **args: Any) -> DataSpec:
    return spec("numpy", Path(npy("{}")(path).train), args=args)


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "parquet": [
        {"shape": ["x"]}, {"shape": "ab"}, {"shape": [2, "2x"]}, {"shape": [2, True]}, {"shape": [4.0]}, {"shape": []},
        {"shape": [1] * 70}, {"shape": [2**63, 2**63]}, {"shape": {"a": 1}}, {"shape": 4},
        {"label": ["a"]}, {"label": 5}, {"label": {}}, {"label": None}, {"label": ""},
        {"id_column": 5}, {"id_column": ["a"]}, {"id_column": True}, {"features": 5}, {"features": [5]}, {"features": None},
        {"features": {"features": 1}},
    ],
    "numpy": [{"x": 5}, {"y": None}, {"id_column": 5}, {"labels": ["a"]}, {"x": {}}],
    "images": [{"size": ["a", "b"]}, {"size": "ab"}, {"size": 5}, {"size": [5]}, {"size": [16_385, 5]}, {"size": [5, 2.0]},
               {"mode": ["L"]}],
}  # fmt: skip
for source, cases in OPTIONS.items():
    for case in cases:
        refused(f"{source} with {case}"[:60], lambda path, source=source, case=case: options(source, path, **case))
refused("npy with labels in a list", lambda path: npy_options(path, labels=["a"]))


def two_shapes(path: Path) -> DataSpec:
    made = parquet(path)
    table = pa.table({"features": [[1.0, 2.0]] * ROWS, "label": labels(), "id": np.arange(ROWS) + 1000})
    pq.write_table(table, path / "b.parquet")
    return made


def empty_files(path: Path) -> DataSpec:
    path.mkdir()
    (path / "a.parquet").write_bytes(b"")
    return spec("parquet", path)


def empty_folder(path: Path) -> DataSpec:
    path.mkdir()
    return spec("parquet", path)


refused("parquet of two widths", two_shapes)
refused("parquet of no bytes", empty_files)
refused("parquet of no files", empty_folder)
refused("parquet that is a folder", lambda path: (parquet(path), (path / "b.parquet").mkdir(), parquet(path / "b.parquet"))[0])
negative = columns(id=-1 - np.arange(ROWS))
quarantined("parquet ids that are negative, which is no fault", negative)
quarantined("parquet one feature NaN", columns(features=[[float("nan")] * 4, *features()[1:]]), non_finite_feature=1)
quarantined("parquet one feature infinite", columns(features=[*features()[1:], [float("-inf")] * 4]), non_finite_feature=1)
quarantined("parquet one feature null", columns(features=[[1.0, None, 2.0, 3.0], *features()[1:].tolist()]),
            non_finite_feature=1)  # fmt: skip
quarantined("parquet one list short", columns(features=[[1.0], *features()[1:].tolist()]), wrong_shape=1)
quarantined("parquet one list null", columns(features=[None, *features()[1:].tolist()]), wrong_shape=1)
quarantined("parquet one label null", columns(label=[None, *labels()[1:]]), bad_label=1)
quarantined("parquet labels beyond num_classes", columns(label=[3, -1, 2**40, *labels()[3:]]), bad_label=3)
quarantined("parquet one label a fraction", columns(label=[0.5, *labels()[1:]]), bad_label=1)


# IDX


def idx_file(array: np.ndarray[Any, Any], shape: tuple[int, ...] | None = None, kind: int = 8) -> bytes:
    sizes = array.shape if shape is None else shape
    return b"\0\0" + bytes([kind, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + array.tobytes()


PIXELS = np.random.default_rng(1).integers(0, 256, (ROWS, 3, 3), dtype=np.uint8)
DIGITS = np.array(labels(), dtype=np.uint8)


def idx(images: bytes | None = None, digits: bytes | None = None, ending: str = "") -> Build:
    def build(path: Path) -> DataSpec:
        path.mkdir()
        (path / f"train-images-idx3-ubyte{ending}").write_bytes(idx_file(PIXELS) if images is None else images)
        (path / f"train-labels-idx1-ubyte{ending}").write_bytes(idx_file(DIGITS) if digits is None else digits)
        return spec("idx", path, num_classes=3)

    return build


PACKED = gzip.compress(idx_file(PIXELS))
for length in spread(8, len(idx_file(PIXELS))):
    refused(f"idx cut to {length} bytes", idx(idx_file(PIXELS)[:length]))
for length in spread(5, len(PACKED)):
    refused(f"idx packed and cut to {length} bytes", idx(PACKED[:length], gzip.compress(idx_file(DIGITS)), ".gz"))
refused("idx with another magic", idx(b"\x01" + idx_file(PIXELS)[1:]))
refused("idx of an unknown type", idx(idx_file(PIXELS, kind=7)))
refused("idx of rank 0", idx(b"\0\0\x08\0" + PIXELS.tobytes()))
refused("idx of rank 255", idx(b"\0\0\x08\xff" + PIXELS.tobytes()))
refused("idx of 4 billion images", idx(idx_file(PIXELS, (2**32 - 1, 3, 3))))
refused("idx of terabytes", idx(idx_file(PIXELS, (2**32 - 1, 2**32 - 1, 2**32 - 1))))
refused("idx of one image of terabytes", idx(idx_file(PIXELS, (1, 2**31, 2**31))))
refused("idx packed, of terabytes", idx(gzip.compress(idx_file(PIXELS, (2**20, 2**12, 2**12))), None, ".gz"))
refused("idx of no images", idx(idx_file(PIXELS[:0]), idx_file(DIGITS[:0])))
refused("idx images without pixels", idx(idx_file(PIXELS[:, :0])))
refused("idx with fewer labels than images", idx(None, idx_file(DIGITS[:-1])))
refused("idx with labels of rank 2", idx(None, idx_file(DIGITS[:, None])))
refused("idx with bytes behind its end", idx(idx_file(PIXELS) + b"more"))
refused("idx with labels in a packing that is none", idx(gzip.compress(idx_file(PIXELS)), b"\x1f\x8bno", ".gz"))
FLOATS = np.where(np.arange(9 * ROWS).reshape(ROWS, 3, 3) == 5, np.nan, 1.0).astype(">f4")
quarantined("idx floats with one NaN", idx(idx_file(FLOATS, kind=0x0D)), non_finite_feature=1)
quarantined("idx labels beyond num_classes", idx(None, idx_file(np.r_[[200, 3], DIGITS[2:]].astype(np.uint8))), bad_label=2)


# NumPy


def numpy_file(**arrays: Any) -> Build:
    def build(path: Path) -> DataSpec:
        path.mkdir()
        np.savez(path / "a.npz", **{"x": features(), "y": np.array(labels()), **arrays})
        return spec("numpy", path / "a.npz", num_classes=3)

    return build


def numpy_bytes(change: Callable[[bytes], bytes]) -> Build:
    def build(path: Path) -> DataSpec:
        made = numpy_file()(path)
        (path / "a.npz").write_bytes(change((path / "a.npz").read_bytes()))
        return made

    return build


def npy(header: str, body: bytes = bytes(960)) -> Build:
    """Return a .npy whose header says what it likes, beside sound labels."""

    def build(path: Path) -> DataSpec:
        path.mkdir()
        text = header.encode().ljust(118) + b"\n"
        (path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body)
        np.save(path / "y.npy", np.array(labels()))
        return spec("numpy", path / "x.npy", args={"labels": "y.npy"})

    return build


def zipped(**members: bytes) -> Build:
    def build(path: Path) -> DataSpec:
        path.mkdir()
        with zipfile.ZipFile(path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name.replace("_npy", ".npy"), data)
        return spec("numpy", path / "a.npz")

    return build


def npy_bytes(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


for length in spread(6, 1500):
    refused(f"npz cut to {length} bytes", numpy_bytes(lambda data, length=length: data[:length]))
refused("npz with a flipped byte", numpy_bytes(lambda data: data[:400] + bytes([data[400] ^ 255]) + data[401:]))
refused("npz of objects, which would take pickle", numpy_file(x=np.array([{}] * ROWS, dtype=object)))
refused("npz of text features", numpy_file(x=np.full((ROWS, 2), "a")))
refused("npz of complex features", numpy_file(x=features().astype(complex)))
refused("npz with too few labels", numpy_file(y=np.arange(9)))
refused("npz with labels of rank 2", numpy_file(y=np.zeros((ROWS, 1), dtype=np.int64)))
refused("npz without x", zipped(y_npy=npy_bytes(np.array(labels()))))
refused("npz with members that are no arrays", zipped(x=b"x", y=b"y"))
refused("npy of negative size", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-60, 4), }"))
refused("npy of terabytes", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (60, 4000000000000), }"))
refused("npy of items of terabytes", npy("{'descr': '<U2000000000', 'fortran_order': False, 'shape': (60, 4), }"))
refused("npy of a type that is none", npy("{'descr': 'what', 'fortran_order': False, 'shape': (60, 4), }"))
refused("npy with code for a header", npy("__import__('os').system('true')"))
refused("npy with sizes that are no numbers", npy("{'descr': '<f4', 'fortran_order': False, 'shape': ('60', 4), }"))
quarantined("npz features beyond float32", numpy_file(x=np.r_[np.full((2, 4), 1e300), features()[2:]]), non_finite_feature=2)
quarantined("npz labels that are missing", numpy_file(y=np.r_[[np.nan, np.inf], labels()[2:]]), bad_label=2)
quarantined("npz labels that are text in part", numpy_file(y=np.array([str(x) for x in labels()])[::1].astype(float)))


# Images


def bomb() -> bytes:
    """Return a PNG of a few hundred bytes that states 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")


def images(path: Path, files: dict[str, bytes] | None = None, folders: tuple[str, ...] = ("cat", "dog")) -> DataSpec:
    for number, picture in enumerate(PIXELS):
        place = path / folders[number % len(folders)] / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place)
    for name, data in (files or {}).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return spec("images", path)


def with_files(files: dict[str, bytes]) -> Build:
    return lambda path: images(path, files)


def linked(link: str, target: Callable[[Path], Path]) -> Build:
    def build(path: Path) -> DataSpec:
        made = images(path)
        (path / link).symlink_to(target(path))
        return made

    return build


def outside(path: Path) -> Path:
    place = path.parent / "secret"
    place.write_text("nobody's business")
    return place


def piped(path: Path) -> DataSpec:
    made = images(path)
    os.mkfifo(path / "cat" / "pipe.png")
    return made


def every_image_cut(path: Path) -> DataSpec:
    made = images(path)
    for file in path.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:20])
    return made


SOUND = io.BytesIO()
Image.fromarray(PIXELS[0]).save(SOUND, "png")
OTHER = io.BytesIO()
Image.fromarray(PIXELS[0]).save(OTHER, "pcx")
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 3 3\n%%EndComments\nshowpage\n%%EOF\n"
refused("images in no class", with_files({"lost.png": SOUND.getvalue()}))
refused("images beside what is none", with_files({"cat/notes.txt": b"x"}))
refused("images of one class", lambda path: images(path, folders=("cat",)))
refused("images that are all cut short", every_image_cut)
refused("images behind a pipe", piped)
refused("images in a folder linked into itself", linked("cat/again", lambda path: path / "cat"))
refused("images in a folder linked to the one above", linked("cat/up", lambda path: path.parent))
refused("images behind a link to nothing", linked("cat/gone.png", lambda path: path / "nothing.png"))
# Up to where the pixels begin: of what is cut later a decoder may make a picture.
for length in spread(6, 45):
    quarantined(f"image cut to {length} bytes", with_files({"cat/bad.png": SOUND.getvalue()[:length]}), undecodable=1)
quarantined("image that is a bomb", with_files({"cat/bomb.png": bomb()}), undecodable=1)
quarantined("image that is text", with_files({"dog/text.jpg": b"<script>alert(1)</script>"}), undecodable=1)
quarantined("image that is PostScript", with_files({"cat/page.png": POSTSCRIPT}), undecodable=1)
quarantined("image of a format that no ending names", with_files({"cat/pcx.png": OTHER.getvalue()}), undecodable=1)
quarantined("image that is a link to something else", linked("cat/link.png", outside), undecodable=1)
