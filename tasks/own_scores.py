"""The user's own scores: Parquet files with an id and numeric columns, matched with the index by id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError
from cluster.fingerprint import canonical_json, sha256
from cluster.storage import open_uri

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from tasks.sources.protocol import FileRef

    I64 = npt.NDArray[np.int64]

LABEL = "label"


def _files(uri: str) -> list[FileRef]:
    from tasks.sources.digest import list_location

    files = list_location(uri, "scores", lambda name: name.endswith(".parquet"))
    if not files:
        raise InputError(f"scores {uri}: no .parquet file is in this folder; give a Parquet file or a folder of them")
    return files


def digest_of(uri: str) -> str:
    """Return the digest of the contents of all files, whatever their names: rows are matched by id, not by place."""
    return sha256(canonical_json(sorted(file.digest for file in _files(uri)), "scores"))


@dataclass(frozen=True)
class OwnScores:
    """Hold the user's scores in ascending order of `ids` (N,) int64, distinct; `columns` are float32 and finite."""

    ids: I64
    columns: dict[str, npt.NDArray[np.float32]]
    labels: I64 | None
    ignored: tuple[str, ...]


def read_own_scores(uri: str, id_column: str = "example_id") -> OwnScores:
    """Return the scores in a Parquet file or folder: every numeric column but the id and `label` is one.

    Raises InputError where the id column is missing or not whole numbers, where there is no score, where files
    disagree, where ids occur twice, and, with counts, where values are null, NaN, or beyond float32.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tasks.sources.digest import is_remote

    tables: list[pa.Table] = []
    first: tuple[list[str], tuple[str, ...], bool] | None = None
    for file in _files(uri):
        with open_uri(file.uri) as data:
            try:
                parquet = pq.ParquetFile(data)
                chosen = _chosen(parquet.schema_arrow, id_column, file.uri)
                if first is not None and chosen != first:
                    raise InputError(f"scores {uri}: {file.relative} has other columns than the files before it")
                first = chosen
                wanted = [id_column, *chosen[0], *([LABEL] if chosen[2] else [])]
                tables.append(parquet.read(columns=wanted))
            except (pa.ArrowException, OSError) as error:
                # pyarrow says OSError of damaged pages; from S3 it may be the network, which is not the input's fault.
                if is_remote(file.uri) and not isinstance(error, pa.ArrowException):
                    raise
                raise InputError(f"scores {file.uri} is not readable Parquet ({error})") from error
    assert first is not None
    names, ignored, labelled = first
    ids = np.concatenate([_whole(table, id_column, uri) for table in tables])
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    twice = int(np.count_nonzero(ids[1:] == ids[:-1]))
    if twice:
        example = int(ids[1:][ids[1:] == ids[:-1]][0])
        raise InputError(
            f"scores {uri}: {twice} of {len(ids)} rows repeat an id (the first is {id_column} {example}); "
            "give each id once"
        )
    columns = {name: np.concatenate([_finite(table, name, uri) for table in tables])[order] for name in names}
    labels = np.concatenate([_whole(table, LABEL, uri) for table in tables])[order] if labelled else None
    return OwnScores(ids, columns, labels, ignored)


def _chosen(schema: pa.Schema, id_column: str, where: str) -> tuple[list[str], tuple[str, ...], bool]:
    """Return the score columns, the ignored ones, and whether there is a label column that can be checked."""
    import pyarrow as pa

    from tasks.imports import nearest

    if id_column not in schema.names:
        raise InputError(
            f"scores {where} has no id column {id_column!r}; {nearest(id_column, schema.names)} "
            "Name the column of ids with id_column"
        )
    scores: list[str] = []
    ignored: list[str] = []
    labelled = False
    for field in schema:
        if field.name == id_column:
            continue
        if field.name == LABEL and pa.types.is_integer(field.type):
            labelled = True
        elif field.name not in ("example_id", LABEL) and _numeric(field.type):
            scores.append(field.name)
        else:
            ignored.append(field.name)
    if not scores:
        raise InputError(
            f"scores {where} has no numeric column beside {id_column!r}; its columns: {', '.join(schema.names)}"
        )
    return scores, tuple(ignored), labelled


def _numeric(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _no_nulls(column: pa.ChunkedArray, name: str, where: str) -> None:
    if column.null_count:
        raise InputError(
            f"scores {where}: {column.null_count} of {len(column)} values of {name!r} are null; fill them in"
        )


def _whole(table: pa.Table, name: str, where: str) -> I64:
    import pyarrow as pa

    column = table.column(name)
    if not pa.types.is_integer(column.type):
        raise InputError(
            f"scores {where}: column {name!r} is {column.type}; it must hold whole numbers, since floats and text "
            "lose rows"
        )
    _no_nulls(column, name, where)
    try:
        out: I64 = column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise InputError(f"scores {where}: column {name!r} does not fit int64 ({error})") from error
    return out


def _finite(table: pa.Table, name: str, where: str) -> npt.NDArray[np.float32]:
    import numpy as np
    import pyarrow as pa

    column = table.column(name)
    _no_nulls(column, name, where)
    # Halves have no cast to double in every kernel; whole numbers may round, as any float32 score does.
    values: npt.NDArray[Any] = column.to_numpy() if pa.types.is_float16(column.type) else column.cast(
        pa.float64(), safe=False
    ).to_numpy()
    with np.errstate(over="ignore"):
        out = values.astype(np.float32)
    bad = int(np.count_nonzero(~np.isfinite(out)))
    if bad:
        raise InputError(
            f"scores {where}: {bad} of {len(out)} values of {name!r} are NaN, infinite or beyond float32; "
            "mend them: every example needs a finite score"
        )
    return out
