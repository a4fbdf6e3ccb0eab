"""NumPy files: arrays of one .npz, or a features .npy beside a labels .npy. Never unpickles."""

from __future__ import annotations

import contextlib
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from cluster.errors import InputError
from cluster.storage import open_uri
from tasks.imports import nearest
from tasks.sources.arguments import check_texts
from tasks.sources.digest import is_remote, join_uri, list_named, local_path
from tasks.sources.protocol import TEST_LOCATION, FileRef, RawExamples, Shard, cut_rows, range_shards, row_ids

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Deflate packs at most 1032 bytes into one; a header that states more lies, and nothing of that size is set aside.
MOST_PACKED = 1032


@contextlib.contextmanager
def _reading(uri: str) -> Iterator[IO[bytes]]:
    try:
        with open_uri(uri if is_remote(uri) else str(local_path(uri))) as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"there is no file {uri}; check its path") from error
    except IsADirectoryError as error:
        raise InputError(f"{uri} is a folder; a file is needed") from error
    except (
        zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, PermissionError, NotImplementedError, RuntimeError,
        struct.error, OverflowError, UnicodeDecodeError,
    ) as error:  # fmt: skip
        # RuntimeError is zipfile's word for an encrypted member, NotImplementedError for a packing it does not know.
        raise InputError(f"{uri} cannot be read ({error}); give a whole .npy or .npz file that may be read") from error


def _header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type, leaving the stream at the first item."""
    from numpy.lib import format as npy

    try:
        version = npy.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = npy.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = npy.read_array_header_2_0(stream)
        else:
            raise ValueError(f"format version {version}")
    except (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError) as error:
        raise InputError(f"{where} is no NumPy array of plain numbers or text ({error})") from error
    if dtype.hasobject or dtype.names is not None:
        raise InputError(f"{where} holds {dtype}, which takes pickle or fields; save one plain array of numbers or "
                         "text")
    if any(not isinstance(size, int) or isinstance(size, bool) or size < 0 for size in shape):
        raise InputError(f"{where} has the shape {shape}: sizes are whole numbers of 0 or more; make it again")
    if fortran and len(shape) > 1:
        raise InputError(f"{where} is in Fortran order, so its rows are not contiguous; save "
                         "np.ascontiguousarray(array)")
    return tuple(int(size) for size in shape), dtype


def _rows(stream: IO[bytes], where: str, start: int, rows: int) -> npt.NDArray[Any]:
    import numpy as np

    shape, dtype = _header(stream, where)
    item = dtype.itemsize * math.prod(shape[1:])
    # A member of a zip is decompressed up to here and thrown away: time, but no memory.
    stream.seek(start * item, 1)
    data = stream.read(rows * item)
    if len(data) != rows * item:
        raise InputError(f"{where} ends before row {start + rows} of the {shape} its header states; make it again")
    return np.frombuffer(data, dtype=dtype).reshape(rows, *shape[1:]).astype(dtype.newbyteorder("="))


class NumpySource:
    """Read arrays: features (N, ...) uint8 or float, labels (N,).

    A .npz holds both under the names `x` and `y`, and ids under `id_column` where given. A .npy of features takes the
    path of its labels, relative to its folder, as `labels`, and as `test_labels` for the test location.
    """

    def __init__(
        self,
        uri: str,
        location: str,
        *,
        x: str = "x",
        y: str = "y",
        id_column: str | None = None,
        labels: str | None = None,
        test_labels: str | None = None,
    ) -> None:
        check_texts(location, {"x": x, "y": y}, {"id_column": id_column, "labels": labels, "test_labels": test_labels})
        self.uri, self.location = uri, location
        self.packed = uri.endswith(".npz")
        self.names = {"x": x, "y": y, **({"id": id_column} if id_column else {})}
        self._files: list[FileRef] | None = None
        if self.packed:
            if labels or test_labels:
                raise InputError(f"{location}: {uri} holds its labels itself; name their array with y, leave labels "
                                 "out")
            self.uris = [uri]
            return
        if not uri.endswith(".npy"):
            raise InputError(f"{location}: {uri!r} is neither .npz nor .npy; the numpy source reads these two")
        own, name = (test_labels, "test_labels") if location == TEST_LOCATION else (labels, "labels")
        if own is None:
            raise InputError(f"{location}: {uri} holds features only; name the file of its labels with source args "
                             f"{name}")
        if id_column:
            raise InputError(f"{location}: id_column names an array of a .npz; {uri} is a .npy, its ids are made "
                             "from rows")
        folder = uri.rpartition("/")[0] or "."
        absolute = "://" in own or own.startswith(("/", "~"))
        self.uris = [uri, own if absolute else join_uri(folder, own)]

    def files(self) -> list[FileRef]:
        """Return the .npz, or the features' and the labels' file."""
        if self._files is None:
            self._files = list_named(self.uris, self.location)
        return self._files

    @contextlib.contextmanager
    def _array(self, role: str) -> Iterator[tuple[IO[bytes], str]]:
        if not self.packed:
            uri = self.uris[0 if role == "x" else 1]
            with _reading(uri) as file:
                yield file, uri
            return
        name = self.names[role]
        with _reading(self.uri) as file, zipfile.ZipFile(file) as archive:
            members = [member.removesuffix(".npy") for member in archive.namelist()]
            if f"{name}.npy" not in archive.namelist():
                raise InputError(f"{self.uri} has no array {name!r}; {nearest(name, members)}")
            with archive.open(f"{name}.npy") as stream:
                yield stream, f"{self.uri}[{name}]"

    def shards(self, shard_rows: int) -> list[Shard]:
        """Return the shards. Raises InputError unless all arrays have as many rows."""
        found: dict[str, tuple[tuple[int, ...], int]] = {}
        held = sum(file.size for file in self.files()) * (MOST_PACKED if self.packed else 1)
        for role in self.names:
            with self._array(role) as (stream, where):
                shape, dtype = _header(stream, where)
                found[role] = shape, dtype.itemsize
            if math.prod(shape) * dtype.itemsize > held:
                raise InputError(f"{where} has fewer bytes than the {shape} items its header states; make it again")
        shape, item = found["x"]
        lengths = {role: other for role, (other, _) in found.items() if role != "x"}
        if not shape or any(other != (shape[0],) for other in lengths.values()):
            got = ", ".join(f"{self.names[role]} {other}" for role, other in {"x": shape, **lengths}.items())
            raise InputError(f"{self.location}: {self.uri} has {got}; the rule is (N, ...) features and (N,) beside "
                             "them")
        for size in shape[1:]:
            item *= size
        files = self.files()
        content = " ".join(file.digest for file in files)
        return range_shards(self.location, files[0], cut_rows(shape[0], shard_rows, item), 0, content)

    def _read(self, role: str, shard: Shard) -> npt.NDArray[Any]:
        with self._array(role) as (stream, where):
            return _rows(stream, where, shard.start, shard.rows)

    def read(self, shard: Shard) -> RawExamples:
        """Return the shard's rows."""
        ids, labels = self.read_labels(shard)
        return RawExamples(ids, self._read("x", shard), labels)

    def read_labels(self, shard: Shard) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Return ids and labels."""
        labels = self._read("y", shard)
        if "id" in self.names:
            return self._read("id", shard), labels
        return row_ids(self.location, shard.relative, shard.start, shard.rows), labels
