"""results.parquet: the results of a run as one table, a row for each arm, keep and replicate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from tasks.budget import batches_of
from tasks.report.inputs import ArmResult
from tasks.selection.spec import SelectionSpec

if TYPE_CHECKING:
    import pyarrow as pa

    from cluster.record import Seal

TABLE = "results.parquet"
# Columns of their own, or told by another.
_FIXED = ("score", "protocol", "direction", "missing", "keep", "alpha")
PARAMETERS = tuple(name for name in SelectionSpec.model_fields if name not in _FIXED)


def results_table(
    run: str, arms: Sequence[ArmResult], settings: Mapping[tuple[str, float], Mapping[str, Any]], num_train: int
) -> pa.Table:
    """Return the rows of all arms, in their order and that of the replicates; see `schemas.results_schema`.

    `settings` holds the selection's settings as they apply by (arm, keep), for the arms that have selections.
    """
    import pyarrow as pa

    from tasks.schemas import results_schema

    schema = results_schema({name: _kind(name) for name in PARAMETERS})
    rows = [
        _row(run, arm, settings.get((arm.name, arm.keep), {}), number, num_train)
        for arm in arms
        for number in range(len(arm.trains))
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def table_bytes(table: pa.Table) -> bytes:
    """Return the table as Parquet. The same table gives the same bytes with one version of pyarrow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _kind(name: str) -> pa.DataType:
    """Return the column type of a setting of selections."""
    import pyarrow as pa

    annotation = SelectionSpec.model_fields[name].annotation
    kinds = {kind for kind in get_args(annotation) or (annotation,) if kind is not type(None)}
    types: dict[type, pa.DataType] = {float: pa.float64(), int: pa.int64(), bool: pa.bool_(), str: pa.string()}
    if len(kinds) != 1 or not kinds <= set(types):
        raise TypeError(f"SelectionSpec.{name} is of type {annotation}: results.parquet has no column type for it; add one")
    return types[kinds.pop()]


def _row(run: str, arm: ArmResult, settings: Mapping[str, Any], number: int, num_train: int) -> dict[str, Any]:
    train: Seal = arm.trains[number]
    meta = train.meta
    kept, steps, batch = int(meta["num_kept"]), int(meta["steps"]), int(meta["batch_size"])
    row = {name: settings.get(name) for name in PARAMETERS}
    row |= {
        "run": run,
        "arm": arm.name,
        "score": arm.score,
        "protocol": arm.protocol,
        "direction": settings.get("direction"),
        "missing": settings.get("missing"),
        "keep": arm.keep,
        "alpha": arm.alpha,
        "replicate": number,
        "train_seed": meta["seed"],
        "n": num_train,
        "n_kept": kept,
        "steps": steps,
        "batch_size": batch,
        "epochs": steps / batches_of(kept, batch),
        "examples_touched": meta["examples_touched"],
        "scoring_steps": arm.scoring_steps,
        "accuracy": float(meta["accuracy"]),
        "validation_accuracy": meta.get("validation_accuracy"),
        "worst_class_accuracy": min(value for value in meta["class_accuracy"] if value is not None),
        "train_key": train.key,
    }
    if arm.selections is not None:
        chosen = arm.selections[number]
        facts = {"selection_seed": "seed", "n": "n", "n_signal": "num_signal", "ess": "ess", "design_effect": "design_effect"}
        row |= {column: chosen.meta.get(name) for column, name in facts.items()} | {"selection_key": chosen.key}
    return row
