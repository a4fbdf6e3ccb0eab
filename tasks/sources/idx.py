"""IDX files, the format of MNIST and its relatives: plain or gzipped, in a folder or under a path prefix."""

from __future__ import annotations

import contextlib
import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from cluster.errors import InputError
from cluster.storage import open_uri
from tasks.sources.digest import exists, is_remote, join_uri, list_named, local_path
from tasks.sources.protocol import TEST_LOCATION, FileRef, RawExamples, Shard, cut_rows, range_shards, row_ids

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

IMAGES, LABELS = "-images-idx3-ubyte", "-labels-idx1-ubyte"
# Type byte of the header -> numpy's big-endian type.
TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def _pair(prefix: str) -> tuple[str, str] | None:
    for ending in ("", ".gz"):
        for label_ending in (ending, "" if ending else ".gz"):
            pair = (prefix + IMAGES + ending, prefix + LABELS + label_ending)
            if exists(pair[0]) and exists(pair[1]):
                return pair
    return None


def has_test_pair(uri: str) -> bool:
    """Return whether the folder `uri` holds a t10k pair."""
    return _is_folder(uri) and _pair(join_uri(uri, "t10k")) is not None


def _is_folder(uri: str) -> bool:
    if not is_remote(uri):
        return local_path(uri).is_dir()
    return _pair(uri) is None


@contextlib.contextmanager
def _open(uri: str) -> Iterator[BinaryIO]:
    try:
        file = open_uri(uri if is_remote(uri) else str(local_path(uri)))
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(f"{uri} cannot be opened ({error}); give a file that exists and may be read") from error
    with file:
        if not uri.endswith(".gz"):
            yield file
            return
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield cast(BinaryIO, unpacked)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{uri} cannot be decompressed ({error}); fetch it again") from error


def _header(file: BinaryIO, uri: str) -> tuple[str, tuple[int, ...]]:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in TYPES or start[3] == 0:
        raise InputError(f"{uri} is no IDX file: it begins with {start.hex() or 'nothing'}, the rule is 0000, type, "
                         "rank")
    sizes = file.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise InputError(f"{uri} ends within its IDX header; fetch it again")
    return TYPES[start[2]], struct.unpack(f">{start[3]}I", sizes)


def _check_size(file: FileRef, kind: str, shape: tuple[int, ...]) -> None:
    """Raise InputError where a file cannot hold what its header states: nothing of that size is ever set aside."""
    stated = 4 + 4 * len(shape) + math.prod(shape) * int(kind[2:])
    packed = file.uri.endswith(".gz")
    # gzip packs at most 1032 bytes into one.
    if stated > file.size * 1032 + 1032 if packed else stated != file.size:
        more = "fewer" if packed or stated > file.size else "more"
        raise InputError(f"{file.uri} has {more} bytes than the {shape} items its header states; fetch it again")


def read_idx(uri: str, start: int, rows: int) -> npt.NDArray[Any]:
    """Return `rows` items from `start`, shape (rows, ...). Raises InputError for a file that is damaged or too
    short."""
    import numpy as np

    with _open(uri) as file:
        kind, shape = _header(file, uri)
        item = np.dtype(kind).itemsize * math.prod(shape[1:])
        file.seek(4 + 4 * len(shape) + start * item)
        data = file.read(rows * item)
        rest = file.read(1) if start + rows == shape[0] else b""
    if len(data) != rows * item or rest:
        raise InputError(f"{uri} has {'more' if rest else 'fewer'} bytes than the {shape} items its header states; "
                         "fetch it again")
    return np.frombuffer(data, dtype=kind).reshape(rows, *shape[1:]).astype(np.dtype(kind).newbyteorder("="))


class IdxSource:
    """Read an IDX pair: images (N, H, W) become (N, 1, H, W).

    `uri` is a folder, whose pair is train-* for train and t10k-* for test, or the path up to -images-idx3-ubyte.
    """

    def __init__(self, uri: str, location: str) -> None:
        self.uri, self.location = uri, location
        self._files: list[FileRef] | None = None
        self._found: tuple[str, str] | None = None

    def _uris(self) -> tuple[str, str]:
        if self._found is not None:
            return self._found
        stem = "t10k" if self.location == TEST_LOCATION else "train"
        prefix = join_uri(self.uri, stem) if _is_folder(self.uri) else self.uri
        pair = _pair(prefix)
        if pair is None:
            raise InputError(
                f"{self.location}: there is no {prefix}{IMAGES}[.gz] with {prefix}{LABELS}[.gz]; "
                f"give the folder that holds them, or their path up to {IMAGES!r}, as data.{self.location}"
            )
        self._found = pair
        return pair

    def files(self) -> list[FileRef]:
        """Return the images' and the labels' file. The names are without .gz: packing a file changes no id."""
        if self._files is None:
            refs = list_named(self._uris(), self.location)
            self._files = [FileRef(ref.relative.removesuffix(".gz"), ref.uri, ref.digest, ref.size) for ref in refs]
        return self._files

    def shards(self, shard_rows: int) -> list[Shard]:
        """Return the shards. Raises InputError unless there are as many labels as images."""
        images, labels = self.files()
        shapes = []
        for file in (images, labels):
            with _open(file.uri) as stream:
                kind, shape = _header(stream, file.uri)
            _check_size(file, kind, shape)
            shapes.append(shape)
        if len(shapes[0]) < 2 or len(shapes[1]) != 1 or shapes[0][0] != shapes[1][0]:
            raise InputError(f"{images.uri} holds {shapes[0]} and {labels.uri} {shapes[1]}; the rule is (N, ...) and "
                             "(N,)")
        row_bytes = 8
        for size in shapes[0][1:]:
            row_bytes *= size
        ranges = cut_rows(shapes[0][0], shard_rows, row_bytes)
        return range_shards(self.location, images, ranges, 0, f"{images.digest} {labels.digest}")

    def read(self, shard: Shard) -> RawExamples:
        """Return the shard's rows."""
        ids, labels = self.read_labels(shard)
        x = read_idx(self._uris()[0], shard.start, shard.rows)
        return RawExamples(ids, x[:, None] if x.ndim == 3 else x, labels)

    def read_labels(self, shard: Shard) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Return ids and labels."""
        labels = read_idx(self._uris()[1], shard.start, shard.rows)
        return row_ids(self.location, shard.relative, shard.start, shard.rows), labels
