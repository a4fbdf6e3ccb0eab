"""Selection for people who bring their own scores: Parquet with an id and a numeric column in, one file out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError, StageError
from tasks.samplers.registry import protocol_info
from tasks.selection.cross_fitting import allocation_note, file_allocation
from tasks.selection.spec import AUTO, EXCLUDE, EXPLORE, PARAMS, REFUSE, SelectionSpec, check_alpha, missing_note

if TYPE_CHECKING:
    from tasks.selection.table import SelectionTable

MOMENT = "moment"
"""The parameter that names the column of gradient norms of alpha auto."""

# Rows a row group: what is in memory beside the selected ids.
_GROUP_ROWS = 2**20


def select_file(
    scores: str,
    *,
    score: str,
    keep: float,
    out: str,
    direction: str | None = None,
    protocol: str = "exact",
    alpha: float | str | None = None,
    params: Mapping[str, Any] | None = None,
    seed: int = 0,
    id_column: str | None = None,
    by: str | None = None,
    missing: str = "refuse",
    threads: int | None = None,
) -> dict[str, Any]:
    """Write the selection of a Parquet file, folder or URI (local, file://, s3://) to `out` and return its summary.

    `score` is a numeric column, `direction` (high or low) the end that is kept as signal. `params` are the protocol's
    further settings: gamma (tempered), beta and strata and weights (ccs), beta and width (band), floor (pps), bins and margins
    and bound (raked), and classes. `by` gives the groups of a column budgets of their own, proportional to them by largest
    remainder, or equal with `classes=balanced`; the protocol is then carried out in each group (of ccs and band, only the draw:
    the ranking that drops is one). For raked the groups are classes, whose totals the weights meet. With alpha `auto` (exact
    only) the parameter `moment` names the column of gradient norms, `score` itself by default; the summary's `allocation` says
    what was found. Scores of protocol random are checked, not used. `missing` says what is done with NaN and null scores:
    refuse, exclude, or explore; the last two take one pass more.

    `out` is one Parquet file (schemas.SELECTION, ascending example_id), replaced atomically; on any error it is left
    as it was. It may be neither `scores` nor inside it. Raises InputError for wrong settings or wrong data.
    """
    params = dict(params or {})
    moment = params.pop(MOMENT, None)
    spec = _spec(score, direction, keep, protocol, alpha, params=params, missing=missing)
    _check_moment(spec, moment, by)
    if spec.classes is not None and by is None:
        raise InputError(f"classes is {spec.classes!r}, but no column of classes is named; give it with by (--by COLUMN)")
    _check_out(scores, out)
    from tasks.selection.calibrated import calibrated_selection
    from tasks.selection.parquet_rows import ParquetRows

    # More than 4 readers gain nothing: the rest of a pass is arithmetic under one lock.
    workers = threads or min(4, os.cpu_count() or 1)
    rows = ParquetRows(scores, id_column, score, by=by, threads=workers)
    allocation: dict[str, Any] = {}
    if spec.alpha == AUTO:
        norm = score if moment is None else ParquetRows(scores, id_column, str(moment)).score
        spec, allocation = file_allocation(spec, rows, norm, workers)
    selection = calibrated_selection(rows, spec, seed, by=by, threads=workers, sample=rows.sample)
    selection.facts.update(allocation)
    # The selection's last pass has read every id.
    rows.check_unique()
    try:
        _write(selection, out)
    except OSError as error:
        raise InputError(f"out {out!r} cannot be written ({error}); name another place") from error
    facts = dict(selection.facts)
    counts = facts.pop("class_counts")
    summary = {"scores": scores, "out": out, "column": score, "id_column": rows.id_column, **facts}
    if by is not None and counts is not None:
        summary["groups"] = [
            {"value": value, "n": n, "signal": signal, "exploration": exploration, "kept": signal + exploration}
            for value, n, signal, exploration in zip(
                rows.groups, counts["full"], counts["signal"], counts["exploration"], strict=True
            )
        ]
    summary["notes"] = _notes(facts)
    return summary


def _spec(
    score: str, direction: str | None, keep: float, protocol: str, alpha: float | str | None, *, params: dict[str, Any],
    missing: str,
) -> SelectionSpec:
    from pydantic import ValidationError

    known = [*(name for name in PARAMS if name != "alpha"), MOMENT]
    for name in params:
        if name not in known:
            from tasks.imports import nearest

            raise InputError(f"protocol {protocol} has no parameter {name!r}; {nearest(name, known)}")
    info = protocol_info(protocol)
    if info.rotates:
        raise InputError(
            f"protocol {protocol} draws its subset anew in every epoch of a training, and a file holds one subset; give it as an "
            f"arm of a configuration (select.arms), or use {'exact' if info.ranks else 'random'} here"
        )
    if "features" in info.params:
        raise InputError(
            f"protocol {protocol} reads the inputs of the examples, and a table of scores has none; give it as an arm of a "
            "configuration (select.arms), or use band here, which draws from the same members"
        )
    ranks = info.ranks
    if direction not in (None, "high", "low"):
        raise InputError(f"direction is {direction!r}; give high or low, the end of {score!r} that is kept")
    if missing not in (REFUSE, EXCLUDE, EXPLORE):
        raise InputError(f"missing is {missing!r}; give refuse, exclude or explore: what is done with examples without a score")
    try:
        return SelectionSpec(
            score=score if ranks else None,
            direction=direction if ranks else None,
            keep=keep,
            protocol=protocol,
            alpha=check_alpha(alpha),
            missing=missing,
            **params,
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise InputError(f"{where} is {first['input']!r}: {first['msg']}") from error


def _check_moment(spec: SelectionSpec, moment: Any, by: str | None) -> None:
    if moment is not None and spec.alpha != AUTO:
        raise InputError(f"moment is {str(moment)!r}, and only alpha auto reads it; leave moment out, or give alpha auto")
    if spec.alpha == AUTO and by is not None:
        raise InputError(f"alpha auto with groups by {by!r}: it is one share for one ranking; leave `by` out, or give a number")


def _check_out(scores: str, out: str) -> None:
    if scores.startswith("s3://") or out.startswith("s3://"):
        if "://" in out and not out.startswith(("s3://", "file://")):
            raise InputError(f"out {out!r}: its scheme is not known; give a local path, file:// or s3://")
        source, target = scores.rstrip("/"), out.rstrip("/")
        if out.endswith("/"):
            raise InputError(f"out {out!r} is a folder; name the Parquet file to write")
        if target == source or target.startswith(source + "/"):
            raise InputError(f"out {out!r} is the scores or lies inside them; write the selection somewhere else")
        if not out.startswith("s3://"):
            _check_local(out)
        return
    if "://" in out and not out.startswith("file://"):
        raise InputError(f"out {out!r}: its scheme is not known; give a local path, file:// or s3://")
    target_path = _check_local(out)
    source_path = Path(scores.removeprefix("file://")).resolve()
    same = target_path.exists() and source_path.exists() and target_path.samefile(source_path)
    if same or target_path == source_path or source_path in target_path.parents:
        raise InputError(f"out {out!r} is the scores or lies inside them; write the selection somewhere else")


def _check_local(out: str) -> Path:
    path = Path(out.removeprefix("file://")).resolve()
    if path.is_dir() or out.endswith("/"):
        raise InputError(f"out {out!r} is a folder; name the Parquet file to write")
    parent = next(folder for folder in path.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"out {out!r} cannot be written: {parent} is not a writable folder; name another place")
    return path


def _write(selection: SelectionTable, out: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    import pyarrow.parquet as pq

    from cluster.storage import replacing_uri

    tables = selection.tables(_GROUP_ROWS)
    # The first group is made, and so checked, before anything is opened.
    table: Any = next(tables)
    try:
        with replacing_uri(out) as path, pq.ParquetWriter(
            path,
            table.schema,
            compression="zstd",
            use_dictionary=["arm", "inclusion_prob", "weight"],
            # Least and greatest arm: an eighth of the time to encode, for nothing that anyone asks.
            write_statistics=["example_id", "inclusion_prob", "weight"],
            # Ascending ids: differences of neighbours take a fraction of the bytes and of the time.
            column_encoding={"example_id": "DELTA_BINARY_PACKED"},
        ) as writer, ThreadPoolExecutor(1, thread_name_prefix="write") as executor:
            # A group is made while the one before it is encoded: three parts of the time are encoding.
            while table is not None:
                written = executor.submit(writer.write_table, table)
                table = next(tables, None)
                written.result()
    except OSError as error:
        raise StageError(f"out {out} could not be written ({error}); what was there is untouched. Mend it, run again"
                         ) from error


def _notes(facts: Mapping[str, Any]) -> list[str]:
    notes = []
    if "allocation" in facts:
        notes.append(allocation_note(facts["allocation"]))
    if facts["alpha"] and not facts["num_signal"]:
        notes.append(f"alpha {facts['alpha']:g} of {facts['num_kept']} kept rounds to no signal: all of it is drawn at random")
    if facts["n_missing"]:
        notes.append(missing_note(facts["missing"], facts["n_missing"], facts["n"]))
    if facts["protocol"] == "band" and facts["classes"] is None:
        notes.append("no column of classes is named (--by COLUMN), so the draw from the band is not balanced over classes")
    if "calibration" in facts:
        from tasks.selection.raking import raking_note

        notes.append(raking_note(facts["calibration"], facts["bins"]))
    never = facts["n"] - facts.get("drawn_from", facts["n"])
    if never:
        notes.append(
            f"{never} of {facts['n']} examples are never drawn, {facts['dropped']} of them the hardest: no weight speaks for them"
        )
    if facts["uncovered_groups"]:
        notes.append(
            f"{facts['uncovered_groups']} groups are too small for a share of the budget: nothing of them is kept, and the "
            f"weights speak for the other {facts['covered']} of {facts['n']} examples only"
        )
    return notes
