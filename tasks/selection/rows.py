"""Where a selection's rows come from: re-iterable pieces of (id, score, code), never the whole table at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from cluster.errors import InputError
from tasks.hashing import I64

if TYPE_CHECKING:
    from cluster.record import Part, Seal
    from cluster.storage import Store

I32 = npt.NDArray[np.int32]
Result = TypeVar("Result")
Read = TypeVar("Read")
Piece = TypeVar("Piece")

# Arrays of 2^17 rows stay in a core's cache between the steps of a pass.
BATCH_ROWS = 2**17


@dataclass(frozen=True)
class Batch:
    """Hold some rows: example_id (N,) int64, score (N,) of any numeric dtype or None, code (N,) int32 or None.

    A code is the number of the row's class or group, 0..num_codes-1.
    """

    example_id: I64
    score: npt.NDArray[Any] | None
    code: I32 | None


class RowSource(Protocol):
    """Give the rows of one selection, as often as asked, in pieces that may be read in any order and at once."""

    @property
    def num_rows(self) -> int: ...

    @property
    def num_codes(self) -> int: ...

    @property
    def has_scores(self) -> bool: ...

    @property
    def code_counts(self) -> I64 | None: ...

    def pieces(self) -> Sequence[Any]: ...

    def read(self, piece: Any) -> Iterator[Batch]: ...

    def read_keys(self, piece: Any) -> Iterator[Batch]:
        """Yield as `read` does, for a pass that looks at no id: where ids cost time, zeros will do."""
        ...


def over_pieces(
    pieces: Sequence[Piece],
    read: Callable[[Piece], Iterator[Read]],
    work: Callable[[Iterator[Read]], Result],
    threads: int,
) -> Iterator[Result]:
    """Yield work(read(piece)) for every piece, in order, at most `threads` at once and as many waiting."""
    if threads <= 1 or len(pieces) <= 1:
        for piece in pieces:
            yield work(read(piece))
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="rows") as executor:
        waiting: deque[Future[Result]] = deque()
        try:
            for piece in pieces:
                waiting.append(executor.submit(lambda piece: work(read(piece)), piece))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def check_ids(ids: npt.NDArray[Any], where: str) -> I64:
    """Return ids as int64, or raise InputError: ids of any other kind have lost rows, or will."""
    if ids.dtype != np.int64:
        raise InputError(
            f"{where}: ids are {ids.dtype}; the rule is int64, since narrower integers and floats cannot tell apart "
            "the rows of a large set; write the id column as int64"
        )
    return ids


@dataclass
class ArrayRows:
    """Give rows that are in memory: example_id (N,) int64, score (N,) or None, code (N,) or None."""

    example_id: I64
    score: npt.NDArray[Any] | None = None
    code: npt.NDArray[Any] | None = None
    num_codes: int = 0

    def __post_init__(self) -> None:
        """Check that the arrays are rows of one table."""
        check_ids(self.example_id, "rows")
        for name, column in (("score", self.score), ("code", self.code)):
            if column is not None and column.shape != self.example_id.shape:
                raise InputError(f"{name} is {column.shape}, example_id {self.example_id.shape}: one row, one value")
        if self.code is not None and not self.num_codes:
            self.num_codes = int(self.code.max()) + 1 if self.code.size else 0

    @property
    def num_rows(self) -> int:
        """Return the number of rows."""
        return len(self.example_id)

    @property
    def has_scores(self) -> bool:
        """Return whether there is a score."""
        return self.score is not None

    @property
    def code_counts(self) -> I64 | None:
        """Return the number of rows of each code (num_codes,)."""
        return None if self.code is None else np.bincount(self.code, minlength=self.num_codes)

    def pieces(self) -> Sequence[int]:
        """Return the first row of each piece."""
        return range(0, self.num_rows, BATCH_ROWS)

    def read(self, piece: int) -> Iterator[Batch]:
        """Yield the rows of a piece."""
        part = slice(piece, piece + BATCH_ROWS)
        yield Batch(
            self.example_id[part],
            None if self.score is None else self.score[part],
            None if self.code is None else self.code[part].astype(np.int32),
        )

    def read_keys(self, piece: int) -> Iterator[Batch]:
        """Yield the rows of a piece."""
        return self.read(piece)


@dataclass
class _PartRows:
    """Read_co sealed parts, verified against their seal the first time each is read in this process."""

    store: Store
    parts: Sequence[Part]
    num_rows: int
    num_codes: int
    # Known only after a pass.
    code_counts: I64 | None = None
    _verified: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def pieces(self) -> Sequence[Part]:
        """Return the parts."""
        return self.parts

    def _table(self, part: Part, columns: list[str]) -> Any:
        from cluster.record import read_part
        from tasks.tables import decode_table

        with self._lock:
            known = part.name in self._verified
        if known:
            # Create-only objects do not change between the passes of one selection; hashing costs as much as reading.
            data = self.store.read(part.name)
        else:
            data = read_part(self.store, part)
            with self._lock:
                self._verified.add(part.name)
        return decode_table(data, self.store.url(part.name), columns)


def _batches(ids: I64, score: npt.NDArray[Any] | None, code: I32) -> Iterator[Batch]:
    for start in range(0, len(ids), BATCH_ROWS):
        part = slice(start, start + BATCH_ROWS)
        yield Batch(ids[part], None if score is None else score[part], code[part])


class IndexRows(_PartRows):
    """Give the train split of an index: ids and labels, no score."""

    has_scores = False

    def __init__(self, store: Store, index: Seal) -> None:
        super().__init__(store, index.parts, int(index.meta["num_train"]), int(index.meta["num_classes"]))

    def read(self, piece: Part) -> Iterator[Batch]:
        """Yield the train rows of an index part."""
        from tasks.schemas import TRAIN

        table = self._table(piece, ["example_id", "split", "label"])
        train = table.column("split").to_numpy() == TRAIN
        yield from _batches(
            table.column("example_id").to_numpy()[train], None, table.column("label").to_numpy()[train].astype(np.int32)
        )

    def read_keys(self, piece: Part) -> Iterator[Batch]:
        """Yield the train rows of an index part."""
        return self.read(piece)


class ScoreTableRows(_PartRows):
    """Give one column of a merged score table, with ids and labels; then the train rows that have no score, as NaN."""

    has_scores = True

    def __init__(self, store: Store, merge: Seal, column: str, index: Seal) -> None:
        from tasks.quarantine import left_out, tables_of

        columns = list(merge.meta["columns"])
        if column not in columns:
            from tasks.imports import nearest

            raise InputError(f"score table has no column {column!r}; {nearest(column, columns)}")
        unscored = tables_of(left_out(merge))
        rows = int(merge.meta["num_rows"]) + sum(part.rows for part in unscored)
        parts = (*merge.parts, *unscored) if unscored else merge.parts
        super().__init__(store, parts, rows, int(index.meta["num_classes"]))
        self.column = column
        self.unscored = {part.name for part in unscored}
        # Parts of one shard have one last name in every stage.
        self.index = {part.name.rpartition("/")[2]: part for part in index.parts} if unscored else {}

    def read(self, piece: Part) -> Iterator[Batch]:
        """Yield the rows of a score table part, or of a quarantine table."""
        if piece.name in self.unscored:
            yield self._without_score(piece)
            return
        table = self._table(piece, ["example_id", "label", self.column])
        yield from _batches(
            table.column("example_id").to_numpy(),
            table.column(self.column).to_numpy(),
            table.column("label").to_numpy().astype(np.int32),
        )

    def read_keys(self, piece: Part) -> Iterator[Batch]:
        """Yield the rows of a score table part."""
        return self.read(piece)

    def _without_score(self, piece: Part) -> Batch:
        ids = self._table(piece, ["example_id"]).column("example_id").to_numpy()
        table = self._table(self.index[piece.name.rpartition("/")[2]], ["example_id", "label"])
        every, labels = table.column("example_id").to_numpy(), table.column("label").to_numpy()
        order = np.argsort(every)
        code = labels[order[np.searchsorted(every, ids, sorter=order)]].astype(np.int32)
        return Batch(ids, np.full(len(ids), np.nan, dtype=np.float32), code)
