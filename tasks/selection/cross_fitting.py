"""Which columns of a score table rank, and which give the gradient norm, where alpha is found from the table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cluster.record import Part, Seal
    from cluster.storage import Store
    from tasks.selection.allocation import Allocation, Pair
    from tasks.selection.parquet_rows import ParquetRows
    from tasks.selection.spec import SelectionSpec

NORMS = ("grand", "grand_last", "el2n")
"""Scores that are norms of a gradient: of all parameters, of the last layer, of the logits."""

_COLUMN = re.compile(r"(?P<base>(?P<name>[a-z0-9_]+?)(@(?P<at>[0-9.eE+-]+))?)(_s(?P<seed>[0-9]+))?\Z")


@dataclass(frozen=True)
class Fold:
    """Name the columns whose mean ranks, and those whose mean square is the second moment of the gradient norm."""

    rank: tuple[str, ...]
    norm: tuple[str, ...]


@dataclass(frozen=True)
class Folds:
    """Hold the folds; `cross_fitted` where no proxy both ranks and measures in one of them."""

    folds: tuple[Fold, ...]
    cross_fitted: bool

    def facts(self) -> dict[str, Any]:
        """Return what the record of a selection says of them."""
        return {
            "rank_columns": [list(fold.rank) for fold in self.folds],
            "norm_columns": [list(fold.norm) for fold in self.folds],
            "cross_fitted": self.cross_fitted,
        }


def folds_of(score: str, columns: Sequence[str]) -> Folds:
    """Return the folds for a selection that ranks by `score`, from the columns of the score table.

    The norm is the best that the table has: grand, grand_last, el2n, at the checkpoint of the ranking score where it is
    there, else at the last. With P > 1 proxies there are P folds: each ranks by the mean of the other proxies and measures
    by its own. A column of one proxy ranks alone and the others measure. With one proxy nothing is cross-fitted.

    Raises InputError where the table has no gradient norm.
    """
    ranked, norm = _parse(score), _norm(score, columns)
    rank_seeds, norm_seeds = _seeds(ranked["base"], columns), _seeds(norm, columns)
    proxies = range(min(len(rank_seeds), len(norm_seeds)))
    if ranked["seed"] is not None and score in columns:
        others = [column for number, column in enumerate(norm_seeds) if number != int(ranked["seed"])]
        if others:
            return Folds((Fold((score,), tuple(others)),), True)
    elif len(proxies) > 1:
        return Folds(tuple(
            Fold(tuple(rank_seeds[other] for other in proxies if other != number), (norm_seeds[number],))
            for number in proxies
        ), True)  # fmt: skip
    # The score `random` ranks by no proxy.
    return Folds((Fold((score,), tuple(norm_seeds) or (norm,)),), ranked["name"] == "random")


def _norm(score: str, columns: Sequence[str]) -> str:
    ranked = _parse(score)
    for name in NORMS:
        found = [match for match in map(_parse, columns) if match["name"] == name and match["seed"] is None]
        if found:
            best = max(found, key=lambda match: (match["at"] == ranked["at"], float(match["at"] or 1)))
            return str(best["base"])
    raise InputError(
        f"alpha auto for {score!r}: the score table has no gradient norm ({', '.join(NORMS)}), from which alpha follows; "
        "add el2n to score.scores, or give alpha as a number"
    )


def _seeds(base: str, columns: Sequence[str]) -> list[str]:
    found = [(int(match["seed"]), name) for name in columns if (match := _parse(name))["base"] == base and match["seed"]]
    return [name for _, name in sorted(found)]


def _parse(column: str) -> dict[str, Any]:
    match = _COLUMN.match(column)
    return match.groupdict() if match else {"base": column, "name": column, "at": None, "seed": None}


def table_allocation(spec: SelectionSpec, merge: Seal, store: Store, threads: int) -> tuple[SelectionSpec, dict[str, Any]]:
    """Return the selection with alpha resolved from a score table, and the facts of how: `allocation`, `variance_curve`.

    Examples without a score are no part of the population (`missing: explore` with alpha auto is refused).
    """
    from tasks.samplers.design import total_budget
    from tasks.selection.allocation import allocate

    assert spec.score is not None
    folds = folds_of(spec.score, list(merge.meta["columns"]))
    rows = [FoldRows(store, merge, fold) for fold in folds.folds]
    found = allocate(rows, total_budget(spec.keep, rows[0].num_rows), spec.kept_end or "high", threads)
    return resolved(spec, found, folds)


def file_allocation(spec: SelectionSpec, rows: ParquetRows, norm: str, threads: int) -> tuple[SelectionSpec, dict[str, Any]]:
    """Return the selection with alpha resolved from a user's own file whose column `norm` is a gradient norm.

    Not cross-fitted as far as can be known: where the two columns come from is not.
    """
    from tasks.samplers.design import total_budget
    from tasks.selection.allocation import allocate
    from tasks.selection.missing import EXCLUDE, count_missing

    gone = count_missing(rows, threads).rows if spec.missing == EXCLUDE else 0
    pairs = FileRows(rows, norm, rows.num_rows - gone)
    found = allocate([pairs], total_budget(spec.keep, pairs.num_rows), spec.kept_end or "high", threads)
    return resolved(spec, found, Folds((Fold((rows.score,), (norm,)),), False))


def resolved(spec: SelectionSpec, found: Allocation, folds: Folds) -> tuple[SelectionSpec, dict[str, Any]]:
    """Return the selection at alpha*, and the facts `allocation` and `variance_curve`."""
    facts = {"allocation": {**found.facts(), **folds.facts()}, "variance_curve": found.drawn()}
    return spec.model_copy(update={"alpha": found.alpha}), facts


def allocation_note(allocation: Mapping[str, Any]) -> str:
    """Return what was found for alpha auto, in one sentence."""
    if allocation["ratio"] is None:
        return "alpha auto is 0: no division of the budget has any design variance here, so there is nothing to choose"
    low, high = allocation["flat"]
    said = (
        f"alpha auto is {allocation['alpha']:.3g}: Var(alpha*)/Var_random is {allocation['ratio']:.3g}, and within "
        f"{100 * allocation['flat_within']:g} % of the least from alpha {low:.3g} to {high:.3g}"
    )
    if not allocation["alpha"]:
        said += "; exploration alone has the least variance, so this is a random draw"
    if not allocation["cross_fitted"]:
        said += "; not cross-fitted (the ranking is not known to be of other proxies than the norms), so the ratio is optimistic"
    return said


class FoldRows:
    """Give the columns of one fold from a merged score table."""

    def __init__(self, store: Store, merge: Seal, fold: Fold) -> None:
        self._store, self._parts, self._fold = store, merge.parts, fold
        self.num_rows = int(merge.meta["num_rows"])

    def pieces(self) -> Sequence[Part]:
        """Return the parts."""
        return self._parts

    def read(self, piece: Part) -> Iterator[Pair]:
        """Yield the rows of a part: the mean score and the root of the mean square norm, added in column order."""
        import numpy as np

        from tasks.selection.allocation import Pair
        from tasks.selection.rows import BATCH_ROWS
        from tasks.tables import load_part

        fold = self._fold
        table = load_part(self._store, piece, list(dict.fromkeys([*fold.rank, *fold.norm])))
        columns = {name: table.column(name).to_numpy() for name in table.column_names}
        for start in range(0, table.num_rows, BATCH_ROWS):
            part = {name: values[start : start + BATCH_ROWS].astype(np.float64) for name, values in columns.items()}
            yield Pair(_mean([part[name] for name in fold.rank]), _root_mean_square([part[name] for name in fold.norm]))


class FileRows:
    """Give score and norm of a user's own file, without the rows that have no score where `num_rows` leaves them out."""

    def __init__(self, rows: ParquetRows, norm: str, num_rows: int) -> None:
        self._rows, self._norm, self.num_rows = rows, norm, num_rows

    def pieces(self) -> Sequence[Any]:
        """Return the row groups."""
        return self._rows.pieces()

    def read(self, piece: Any) -> Iterator[Pair]:
        """Yield the rows of a row group."""
        from tasks.selection.allocation import Pair
        from tasks.selection.missing import is_missing

        for score, norm in self._rows.read_columns(piece, (self._rows.score, self._norm)):
            there = ~is_missing(score) if self.num_rows < self._rows.num_rows else slice(None)
            yield Pair(score[there], norm[there])


def _mean(columns: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    total = columns[0]
    for column in columns[1:]:
        total = total + column
    return total / len(columns)


def _root_mean_square(columns: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    import numpy as np

    if len(columns) == 1:
        return columns[0]
    return np.sqrt(_mean([column * column for column in columns]))
