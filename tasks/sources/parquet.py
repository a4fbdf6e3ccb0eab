"""Parquet files: one, a folder, or an S3 prefix, sharded along row groups."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError
from cluster.storage import filesystem
from tasks.imports import nearest
from tasks.sources.arguments import check_texts, take_sizes
from tasks.sources.digest import file_uri, is_remote, list_location
from tasks.sources.protocol import (
    NON_FINITE_FEATURE,
    WRONG_SHAPE,
    BadRow,
    FileRef,
    RawExamples,
    Shard,
    range_shards,
    row_ids,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    import pyarrow.parquet as pq

# Footers read at once: on S3 each takes a round trip or two.
FOOTERS_AT_ONCE = 8
BATCH_ROWS = 8192
# Beyond this a footer lies: constant columns pack well, but features that are all alike are no data.
MAX_ROWS_A_BYTE = 1024


class ParquetSource:
    """Read columns: features from one list column (nested lists of one shape become (N, *shape)) or from a list of
    numeric columns, a label, and ids from `id_column` where given. `shape` arranges the numbers of a flat list."""

    def __init__(
        self,
        uri: str,
        location: str,
        *,
        features: str | Sequence[str] = "features",
        label: str = "label",
        id_column: str | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        self.uri, self.location = uri, location
        if not isinstance(features, str | list | tuple):
            raise InputError(f"{location}: source args features is {features!r}; name one list column or some numeric ones")
        self.features = [features] if isinstance(features, str) else list(features)
        named = {f"features ({place})": name for place, name in enumerate(self.features)}
        check_texts(location, {**named, "label": label}, {"id_column": id_column})
        self.label, self.id_column = label, id_column
        self.shape = take_sizes(location, "shape", shape, "shape; give sizes of 1 or more, [C, H, W]")
        if not self.features:
            raise InputError(f"{location}: features names no column; name one list column or some numeric ones")
        if len(set(self.features)) < len(self.features) or label in self.features or id_column in self.features:
            raise InputError(f"{location}: features {self.features} name a column twice, or the label or id column: "
                             "a model "
                             "would be given the answer; name each feature column once")
        self._files: list[FileRef] | None = None
        self._fs: Any = None

    def files(self) -> list[FileRef]:
        """Return the .parquet files, sorted by relative name; names that begin with an underscore are metadata."""
        if self._files is None:
            self._files = list_location(self.uri, self.location, _is_data)
            if not self._files:
                raise InputError(f"{self.location}: no .parquet file is in {self.uri}; give a file, or a folder of "
                                 "them")
        return self._files

    @contextlib.contextmanager
    def _open(self, uri: str) -> Iterator[pq.ParquetFile]:
        """Open a file; what is wrong with its bytes is an InputError, on the way in and while it is read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._fs is None:
            self._fs = filesystem(self.uri)[0]
        try:
            with self._fs.open(uri, "rb") as stream, pq.ParquetFile(stream, pre_buffer=True) as parquet:
                yield parquet
        except FileNotFoundError as error:
            raise InputError(f"{uri} is gone; the data changed under the run: run again") from error
        except PermissionError as error:
            raise InputError(f"{uri} may not be read ({error}); check its rights or the credentials") from error
        except (pa.ArrowException, OSError) as error:
            # pyarrow says OSError of damaged pages; from S3 it may be the network, which is not the input's fault.
            if is_remote(uri) and not isinstance(error, pa.ArrowException):
                raise
            raise InputError(f"{uri} is not readable Parquet ({error}); make it again or take it away") from error

    def _check_columns(self, schema: pa.Schema, uri: str) -> None:
        import pyarrow as pa

        wanted = {**dict.fromkeys(self.features, "features"), self.label: "label"}
        if self.id_column is not None:
            wanted[self.id_column] = "id_column"
        for name, role in wanted.items():
            count = len(schema.get_all_field_indices(name))
            if count == 0:
                raise InputError(f"{uri} has no column {name!r}; {nearest(name, schema.names)} "
                                 f"(source args {role} names the column)")
            if count > 1:
                raise InputError(f"{uri} has {count} columns {name!r}; each name must be there once")
        if self.id_column is not None and not pa.types.is_integer(schema.field(self.id_column).type):
            raise InputError(f"{uri}: id_column {self.id_column!r} is {schema.field(self.id_column).type}; ids are "
                             "int64: "
                             "name an integer column, or leave id_column out")

    def _group_rows(self, file: FileRef) -> list[int]:
        with self._open(file.uri) as parquet:
            self._check_columns(parquet.schema_arrow, file.uri)
            rows = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        if min(rows, default=0) < 0 or sum(rows) > MAX_ROWS_A_BYTE * file.size:
            raise InputError(
                f"{file.uri} states {sum(rows)} rows in {file.size} bytes, which they cannot hold; make it again or take it away"
            )
        return rows

    def shards(self, shard_rows: int) -> list[Shard]:
        """Return the shards: whole row groups, as many as fit; a group above `shard_rows` is cut evenly."""
        files = self.files()
        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
            groups = list(threads.map(self._group_rows, files))
        out: list[Shard] = []
        position = 0
        for file, rows in zip(files, groups):
            out += range_shards(self.location, file, pack_groups(rows, shard_rows), position)
            position += sum(rows)
        return out

    def _table(self, shard: Shard, columns: list[str]) -> pa.Table:
        """Return the shard's rows of the columns, from the row groups that hold them and no others."""
        import pyarrow as pa

        uri = shard.uri or file_uri(self.uri, shard.relative)
        with self._open(uri) as parquet:
            self._check_columns(parquet.schema_arrow, uri)
            covering: list[int] = []
            skip = first = 0
            for i in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(i).num_rows
                if first + rows > shard.start and first < shard.start + shard.rows and rows:
                    skip = skip if covering else shard.start - first
                    covering.append(i)
                first += rows
            # In batches, so that a piece of a large row group takes the memory of the piece.
            batches, left = [], shard.rows
            for batch in parquet.iter_batches(min(shard.rows, BATCH_ROWS), covering, columns, use_threads=False):
                piece = batch.slice(skip, left)
                skip = max(0, skip - batch.num_rows)
                if piece.num_rows:
                    batches.append(piece)
                    left -= piece.num_rows
                if not left:
                    break
        if left:
            raise InputError(f"{uri} has fewer rows than {shard}; the data changed under the run: run again")
        return pa.Table.from_batches(batches)

    def read(self, shard: Shard) -> RawExamples:
        """Return the shard's rows."""
        import numpy as np

        columns = [*self.features, self.label, *([self.id_column] if self.id_column else [])]
        table = self._table(shard, columns)
        bad: dict[int, BadRow] = {}
        parts = [_numbers(table.column(name), name, shard, bad) for name in self.features]
        if len(parts) == 1:
            x = parts[0] if parts[0].ndim > 1 else parts[0][:, None]
        else:
            for name, part in zip(self.features, parts):
                if part.ndim > 1:
                    raise InputError(f"{shard}: column {name!r} holds lists; features are one list column or numeric "
                                     "columns")
            kinds = {part.dtype for part in parts}
            # Columns of several types meet in float64, where every whole number up to 2^53 survives to be checked.
            x = np.stack(parts if len(kinds) == 1 else [part.astype(np.float64) for part in parts], axis=1)
        if self.shape is not None and len(bad) < shard.rows:
            if math.prod(self.shape) != math.prod(x.shape[1:]):
                raise InputError(f"{shard}: a row has {math.prod(x.shape[1:])} numbers, shape {list(self.shape)} takes "
                                 f"{math.prod(self.shape)}; mend source args shape")
            x = x.reshape(len(x), *self.shape)
        return RawExamples(self._ids(table, shard), x, self._labels(table, shard), list(bad.values()))

    def read_labels(self, shard: Shard) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Return ids and labels, reading no features."""
        table = self._table(shard, [self.label, *([self.id_column] if self.id_column else [])])
        return self._ids(table, shard), self._labels(table, shard)

    def _ids(self, table: pa.Table, shard: Shard) -> npt.NDArray[np.int64]:
        if self.id_column is None:
            return row_ids(self.location, shard.relative, shard.start, shard.rows)
        column = table.column(self.id_column)
        if column.null_count:
            raise InputError(f"{shard}: id_column {self.id_column!r} is null in {column.null_count} rows; every row "
                             "needs one")
        ids: npt.NDArray[np.int64] = column.to_numpy()
        return ids

    def _labels(self, table: pa.Table, shard: Shard) -> npt.NDArray[Any]:
        import pyarrow as pa

        column = table.column(self.label)
        kind = column.type
        if pa.types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        texts = (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
                 or pa.types.is_large_binary(kind) or pa.types.is_string_view(kind))
        if not (plain or texts):
            raise InputError(f"{shard}: column {self.label!r} is {kind}; labels are whole numbers or text")
        labels: npt.NDArray[Any] = column.to_numpy()
        return labels


def _is_data(relative: str) -> bool:
    return relative.endswith(".parquet") and not any(word.startswith("_") for word in relative.split("/"))


def pack_groups(group_rows: Sequence[int], shard_rows: int) -> list[tuple[int, int]]:
    """Return (start, rows) ranges over the rows of a file's groups: small neighbours together, large groups cut
    evenly."""
    out: list[tuple[int, int]] = []
    start = held = 0
    for rows in group_rows:
        if held and held + rows > shard_rows:
            out.append((start, held))
            start, held = start + held, 0
        if rows <= shard_rows:
            held += rows
            continue
        pieces = -(-rows // shard_rows)
        edges = [start + rows * i // pieces for i in range(pieces + 1)]
        out += [(low, high - low) for low, high in pairwise(edges)]
        start = edges[-1]
    return [*out, (start, held)] if held else out


def _numbers(column: pa.ChunkedArray, name: str, shard: Shard, bad: dict[int, BadRow]) -> npt.NDArray[Any]:
    """Return a column as (N,) or, for lists of one length at each level, (N, d1, d2, ..).

    Rows with nulls, or with another length than most have, go into `bad` and are zeros.
    """
    import numpy as np
    import pyarrow as pa

    array: Any = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    rows = len(array)
    # The row that each value of the array in hand belongs to; None while every row is there, in order.
    of: npt.NDArray[np.int64] | None = None
    shape: list[int] = []
    final: tuple[int, ...] | None = None
    while True:
        if isinstance(array.type, pa.FixedShapeTensorType):
            final = tuple(array.type.shape)
            array = array.storage
        kind = array.type
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        width, spoiled = _flaws(array, lists)
        if spoiled is not None:
            array, of = _without(array, spoiled, of, math.prod(shape), lists, bad, name)
        if not lists:
            break
        array = array.flatten()
        if of is not None:
            of = np.repeat(of, width)
        shape.append(width)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise InputError(f"{shard}: column {name!r} holds {kind}; features are numbers, or lists of numbers")
    flat: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    shape = list(final) if final is not None else shape
    if of is None:
        return np.ascontiguousarray(flat).reshape(rows, *shape)
    out = np.zeros((rows, *shape), dtype=flat.dtype)
    if len(flat):
        out[of[:: math.prod(shape)]] = flat.reshape(-1, *shape)
    return out


def _flaws(array: Any, lists: bool) -> tuple[int, npt.NDArray[np.bool_] | None]:
    """Return the length that most lists have, and which values are null or lists of another length (None: none is)."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    nulls = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    if not lists:
        return 0, nulls
    if pa.types.is_fixed_size_list(array.type):
        return array.type.list_size, nulls
    lengths = pc.list_value_length(array)
    if nulls is None and len(pc.unique(lengths)) <= 1:
        return (lengths[0].as_py() if len(lengths) else 0), None
    found = lengths.fill_null(-1).to_numpy(zero_copy_only=False)
    values, counts = np.unique(found[found >= 0], return_counts=True)
    width = int(values[counts.argmax()]) if len(values) else 0
    return width, found != width


def _without(
    array: Any, spoiled: npt.NDArray[np.bool_], of: npt.NDArray[np.int64] | None, each: int, lists: bool,
    bad: dict[int, BadRow], name: str,
) -> tuple[Any, npt.NDArray[np.int64]]:
    """Return the values of the rows without a spoiled one, and the row of each; the others go into `bad`."""
    import numpy as np
    import pyarrow as pa

    of = np.arange(len(array)) // max(each, 1) if of is None else of
    lost = np.unique(of[spoiled])
    cause, what = (WRONG_SHAPE, "null or of another length") if lists else (NON_FINITE_FEATURE, "null")
    for row in lost.tolist():
        bad.setdefault(row, BadRow(row, cause, f"column {name!r} holds what is {what}"))
    left = ~np.isin(of, lost)
    return array.filter(pa.array(left)), of[left]
