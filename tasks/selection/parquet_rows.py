"""The user's own Parquet files as rows of a selection: read by row groups, as often as asked."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import InputError
from cluster.storage import filesystem
from tasks.hashing import I64
from tasks.imports import nearest
from tasks.selection.order import check_exact
from tasks.selection.repeats import find_repeats
from tasks.selection.rows import BATCH_ROWS, Batch, over_pieces

ID_COLUMNS = ("example_id", "id")

# More distinct values than this is an id, not a group.
MAX_GROUPS = 65536

# A sample is the first rows of some row groups; reading in small steps, it does not read those to their ends.
_SAMPLE_GROUPS, _SAMPLE_ROWS, _SAMPLE_BUFFER = 12, 2**16, 2**18

Piece = tuple[int, int]

_NO_ID = np.zeros(1, dtype=np.int64)


class ParquetRows:
    """Give id, score and group columns of a Parquet file, or of every .parquet file below a folder.

    `id_column` None means example_id, else id. `by` names the column whose values are the codes, numbered in the order
    of the values; `groups` are those values. Raises InputError where files or columns are missing or of the wrong kind.
    """

    has_scores = True

    def __init__(
        self, uri: str, id_column: str | None, score: str, *, by: str | None = None, threads: int = 1
    ) -> None:
        self.uri, self.score, self.by, self.threads = uri, score, by, threads
        self._files = self._list_s3() if uri.startswith("s3://") else self._list_local()
        self._metadata = [self._open_metadata(file) for file in self._files]
        self.id_column = self._check_columns(id_column)
        self.num_rows = sum(metadata.num_rows for metadata in self._metadata)
        self.groups: list[Any] = []
        self.num_codes = 0
        self.code_counts: I64 | None = None
        self._values: pa.Array | None = None
        # The first and the last id of each row group that was read, None where its ids do not ascend.
        self._spans: dict[Piece, tuple[int, int] | None] = {}
        if by is not None:
            self._find_groups(by, threads)

    def _list_s3(self) -> list[str]:
        fs, path = filesystem(self.uri)
        try:
            if fs.isdir(path):
                return self._parquet_of(path, fs.find(path))
            there = fs.exists(path)
        except PermissionError as error:
            raise self._unreadable(error) from error
        return self._one(path, there)

    def _list_local(self) -> list[str]:
        path = Path(self.uri.removeprefix("file://")).absolute()
        if not path.is_dir():
            return self._one(str(path), path.exists())
        found: list[str] = []

        def stop(error: OSError) -> None:
            raise self._unreadable(error) from error

        for folder, _, names in os.walk(path, onerror=stop, followlinks=True):
            found += [f"{folder}/{name}" for name in names]
        return self._parquet_of(str(path), found)

    def _one(self, path: str, there: bool) -> list[str]:
        if not there:
            raise InputError(f"scores {self.uri} is not there; give a Parquet file, a folder of them, or a URI")
        return [path]

    def _unreadable(self, error: OSError) -> InputError:
        return InputError(f"scores {self.uri} may not be read ({error}); check its permissions")

    def _parquet_of(self, path: str, found: list[str]) -> list[str]:
        cut = len(path.rstrip("/")) + 1
        files = [
            name for name in sorted(found)
            if name.endswith(".parquet") and not any(step[0] in "._" for step in name[cut:].split("/") if step)
        ]
        if not files:
            raise InputError(f"scores {self.uri} holds no .parquet file; give a Parquet file or a folder of them")
        return files

    @contextlib.contextmanager
    def _open(self, file: str, metadata: Any = None, buffer: int = 0) -> Iterator[pq.ParquetFile]:
        with self._open_bytes(file) as data:
            try:
                yield pq.ParquetFile(data, metadata=metadata, buffer_size=buffer)
            except (pa.ArrowException, OSError) as error:
                # pyarrow says OSError of damaged pages; from S3 it may be the network, which is not the input's fault.
                if self.uri.startswith("s3://") and not isinstance(error, pa.ArrowException):
                    raise
                raise InputError(f"scores {file} is not readable Parquet ({error}); write it again") from error

    def _open_bytes(self, file: str) -> Any:
        if self.uri.startswith("s3://"):
            return filesystem(self.uri)[0].open(file, "rb")
        try:
            # Read without Python's lock, which two readers would otherwise wait for.
            return pa.OSFile(file)
        except OSError as error:
            raise self._unreadable(error) from error

    def _open_metadata(self, file: str) -> Any:
        with self._open(file) as parquet:
            metadata = parquet.metadata
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
            raise InputError(f"scores {file} states {metadata.num_rows} rows, its row groups {sum(rows)}; write it again")
        return metadata

    def _check_columns(self, id_column: str | None) -> str:
        chosen = id_column
        for file, metadata in zip(self._files, self._metadata):
            schema = metadata.schema.to_arrow_schema()
            names = schema.names
            if chosen is None:
                chosen = next((name for name in ID_COLUMNS if name in names), None)
                if chosen is None:
                    raise InputError(
                        f"scores {file} has no id column: neither {' nor '.join(ID_COLUMNS)} is among "
                        f"{', '.join(names)}; name it with --id-column"
                    )
            for name, what in ((chosen, "id"), (self.score, "score"), (self.by, "group")):
                if name is not None and name not in names:
                    raise InputError(f"scores {file} has no {what} column {name!r}; {nearest(name, names)}")
            kind = schema.field(chosen).type
            if not pa.types.is_integer(kind):
                raise InputError(
                    f"scores {file}: id column {chosen!r} is {kind}; the rule is whole numbers (int64), since floats "
                    "lose rows beyond 2^53; write integer ids, or name another column with --id-column"
                )
            kind = schema.field(self.score).type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
                raise InputError(f"scores {file}: column {self.score!r} is {kind}; name a numeric column with --score")
        assert chosen is not None
        return chosen

    def pieces(self) -> Sequence[Piece]:
        """Return (file number, row group) of every row group with rows."""
        return [
            (number, group)
            for number, metadata in enumerate(self._metadata)
            for group in range(metadata.num_row_groups)
            if metadata.row_group(group).num_rows
        ]

    def check_unique(self) -> None:
        """Raise InputError when an id occurs twice.

        Ascending ids in disjoint row groups, the usual case, are seen to be unique as they are read, at no cost where `read` has
        read them all; others are compared on disk, 8 bytes a row in the temporary folder.
        """
        spans: list[tuple[int, int]] = []
        for piece in self.pieces():
            if piece not in self._spans:
                for _ in self.read(piece):
                    pass
            span = self._spans[piece]
            if span is None:
                break
            spans.append(span)
        else:
            spans.sort()
            if all(one[1] < other[0] for one, other in pairwise(spans)):
                return
        count, least = find_repeats(self._all_ids(), self.num_rows, threads=self.threads)
        if count:
            raise InputError(
                f"scores {self.uri}: {count} ids occur more than once in {self.id_column!r}, {least} for example; every example "
                "has one row"
            )

    def sample(self) -> list[Batch]:
        """Return the first rows of row groups from all over the table: some 800,000 rows, of as little reading."""
        pieces = self.pieces()
        taken = min(_SAMPLE_GROUPS, len(pieces))
        chosen = [pieces[number * len(pieces) // taken] for number in range(taken)]
        return list(over_pieces(chosen, lambda piece: self._read(piece, [self.id_column], _SAMPLE_ROWS), next, self.threads))

    def _all_ids(self) -> Iterator[I64]:
        for piece in self.pieces():
            for column in self._column(piece, self.id_column):
                yield self._ids(column)

    def _batches(self, piece: Piece, columns: list[str], first: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a row group; the `first` rows only, where that is given, read in small steps."""
        number, group = piece
        with self._open(self._files[number], self._metadata[number], _SAMPLE_BUFFER if first else 0) as parquet:
            # A column may be asked for in two roles; it is read once.
            wanted = list(dict.fromkeys(columns))
            left = self._metadata[number].row_group(group).num_rows
            for batch in parquet.iter_batches(first or BATCH_ROWS, row_groups=[group], columns=wanted, use_threads=False):
                left -= batch.num_rows
                yield batch
        if left:
            raise InputError(f"scores {self._files[number]} has other rows than its footer states; write it again")

    def read(self, piece: Piece) -> Iterator[Batch]:
        """Yield the rows of a row group, with null scores as NaN, and note whether their ids ascend."""
        ascending, first, last = True, None, None
        for batch in self._read(piece, [self.id_column]):
            ids = batch.example_id
            if ascending and len(ids):
                ascending = bool((ids[1:] > ids[:-1]).all()) and (last is None or int(ids[0]) > last)
                first, last = int(ids[0]) if first is None else first, int(ids[-1])
            yield batch
        self._spans[piece] = (first, last) if ascending and first is not None and last is not None else None

    def read_keys(self, piece: Piece) -> Iterator[Batch]:
        """Yield the rows of a row group without their ids, which take as long to read as the rest."""
        return self._read(piece, [])

    def _read(self, piece: Piece, columns: list[str], first: int | None = None) -> Iterator[Batch]:
        wanted = [*columns, self.score] + ([self.by] if self.by is not None else [])
        for batch in self._batches(piece, wanted, first):
            code = None
            if self.by is not None:
                import pyarrow.compute as pc

                code = pc.index_in(_plain(batch.column(self.by)), value_set=self._values).to_numpy()
            ids = self._ids(batch.column(self.id_column)) if columns else np.broadcast_to(_NO_ID, batch.num_rows)
            yield Batch(ids, _scores(batch.column(self.score)), code)

    def read_columns(self, piece: Piece, names: Sequence[str]) -> Iterator[list[npt.NDArray[Any]]]:
        """Yield numeric columns of a row group side by side, nulls as NaN."""
        for batch in self._batches(piece, list(names)):
            yield [_scores(batch.column(name)) for name in names]

    def _ids(self, column: pa.Array) -> I64:
        if column.null_count:
            raise InputError(
                f"scores {self.uri}: {column.null_count} ids of {len(column)} rows are null in {self.id_column!r}; "
                "every example needs an id"
            )
        try:
            wide = column if pa.types.is_int64(column.type) else column.cast(pa.int64())
            return np.asarray(np.from_dlpack(wide), dtype=np.int64)
        except pa.ArrowInvalid as error:
            raise InputError(f"scores {self.uri}: ids in {self.id_column!r} do not fit int64 ({error})") from error

    def _column(self, piece: Piece, name: str) -> Iterator[pa.Array]:
        for batch in self._batches(piece, [name]):
            yield _plain(batch.column(name))

    def _find_groups(self, by: str, threads: int) -> None:
        kinds = {str(_value_type(metadata.schema.to_arrow_schema().field(by).type)) for metadata in self._metadata}
        kind = _value_type(self._metadata[0].schema.to_arrow_schema().field(by).type)
        if len(kinds) > 1:
            raise InputError(f"scores {self.uri}: column {by!r} differs between files: {', '.join(sorted(kinds))}")
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
                or pa.types.is_boolean(kind)):
            raise InputError(f"scores {self.uri}: column {by!r} is {kind}; groups are integers, text or booleans")
        counts: Counter[Any] = Counter()
        for found in over_pieces(self.pieces(), lambda piece: self._column(piece, by), _count_values, threads):
            counts.update(found)
            if len(counts) > MAX_GROUPS:
                raise InputError(
                    f"scores {self.uri}: column {by!r} has more than {MAX_GROUPS} distinct values; that is an id, not "
                    "a group: name another column with --by"
                )
        missing = counts.pop(None, 0)
        if missing:
            raise InputError(
                f"scores {self.uri}: {missing} of {self.num_rows} values of {by!r} are null; give every row a group"
            )
        self.groups = sorted(counts)
        self.num_codes = len(self.groups)
        self.code_counts = np.array([counts[value] for value in self.groups], dtype=np.int64)
        self._values = pa.array(self.groups, type=kind)


def _count_values(columns: Iterator[pa.Array]) -> Counter[Any]:
    import pyarrow.compute as pc

    counts: Counter[Any] = Counter()
    for column in columns:
        for pair in pc.value_counts(column):
            counts[pair["values"].as_py()] += pair["counts"].as_py()
        if len(counts) > MAX_GROUPS + 1:
            break
    return counts


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _scores(column: pa.Array) -> npt.NDArray[Any]:
    kind = column.type
    if pa.types.is_decimal(kind):
        column = _floats_of(column)
    if not column.null_count:
        # to_numpy would first import pandas where it is installed: 0.3 s, and 40 MB.
        return np.from_dlpack(column)
    if pa.types.is_integer(kind):
        # Nulls make floats of them, in which it is not seen that they were too large.
        check_exact(column.drop_null().to_numpy())
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _floats_of(column: pa.Array) -> pa.Array:
    """Return decimals as float64. Raises InputError where these do not tell them apart: more than 15 digits can be too many.

    Of the decimals with one and the same float only that with the fewest digits is accepted, so no two are.
    """
    if column.type.precision <= 15:
        return column.cast(pa.float64())
    import pyarrow.compute as pc

    # The direct cast is some last bits off the nearest float.
    floats = column.cast(pa.string()).cast(pa.float64())
    try:
        same = pc.equal(floats.cast(pa.string()).cast(column.type), column)
    except pa.ArrowInvalid:
        # A float with more digits than the column has is of a decimal that has too many.
        same = pa.scalar(False)
    if not pc.all(same, min_count=0).as_py():
        raise InputError(
            f"scores are {column.type}, and some have more digits than float64 holds: their order would be lost; write floats, "
            "or decimals of 15 digits at most"
        )
    return floats
