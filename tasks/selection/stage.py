"""The work of the select stage: one pool item a selection, published in files of 2^22 rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from cluster.errors import InputError, ItemsError
from cluster.record import Part, Seal, Unit
from cluster.storage import Store
from tasks.pool import FunctionWorker, Pool
from tasks.quarantine import causes_table, left_out, read_examples, tables_of
from tasks.selecting import SelectInputs, SelectionUnit
from tasks.selection.calibrated import calibrated_selection
from tasks.selection.cross_fitting import table_allocation
from tasks.selection.features import feature_reader
from tasks.selection.missing import REFUSE, Missing
from tasks.selection.rows import IndexRows, RowSource, ScoreTableRows
from tasks.selection.spec import AUTO
from tasks.selection.table import SelectionTable
from tasks.tables import encode_table, load_part, part_check

Item = tuple[str, SelectionUnit]


def run_selection_stage(units: Sequence[Item], inputs: SelectInputs, store: Store, pool: Pool) -> list[Seal]:
    """Publish every selection without a seal, and return all seals in the order of `units`."""
    seals: dict[str, Seal] = {}
    open_items: dict[str, Item] = {}
    for key, unit in units:
        if unit.spec.score is not None and inputs.merge is None:
            raise InputError(f"protocol {unit.spec.protocol} ranks by {unit.spec.score!r}, but there is no score table")
        _refuse_missing(unit, inputs.merge, store)
        seal = Unit(store, "select", key).seal()
        if seal is not None:
            seals[key] = seal
        else:
            open_items[key] = (key, unit)
    items = list(open_items.values())
    worker = partial(FunctionWorker, partial(_select, inputs, store))
    for index, (parts, meta) in pool.map(
        worker, items, label="select", resources=inputs.resources, done=len({key for key, _ in units}) - len(items)
    ):
        key = items[index][0]
        seals[key] = Unit(store, "select", key).publish_seal(parts, meta)
    return [seals[key] for key, _ in units]


def _select(inputs: SelectInputs, store: Store, item: Item) -> tuple[list[Part], dict[str, Any]]:
    key, chosen = item
    classes = int(inputs.index.meta["num_classes"])
    spec = chosen.spec
    column = spec.score
    threads = max(1, int(inputs.resources.cpus))
    histogram = missing = None
    allocation: dict[str, Any] = {}
    rows: RowSource
    if column is None:
        rows = IndexRows(store, inputs.index)
    else:
        assert inputs.merge is not None
        rows = ScoreTableRows(store, inputs.merge, column, inputs.index)
        missing = Missing(left_out(inputs.merge)["rows"], np.zeros(classes, dtype=np.int64))
        histogram = inputs.merge.meta["sortable"][column]
        if spec.alpha == AUTO:
            spec, allocation = table_allocation(spec, inputs.merge, store, threads)
    try:
        selection = calibrated_selection(
            rows,
            spec,
            chosen.seed,
            histogram=histogram,
            score_table_key=inputs.merge.key if column is not None and inputs.merge is not None else None,
            threads=threads,
            missing=missing,
            features=feature_reader(spec, inputs, store) if "features" in spec.params() else None,
        )
    except InputError as error:
        # A run has many selections, and how many examples a keep comes to is first known here.
        said = ", ".join(f"{name} {value}" for name, value in spec.effective().items() if value is not None)
        raise InputError(f"the selection of {said} cannot be drawn: {error}") from error
    selection.facts.update(allocation)
    facts = dict(selection.facts)
    if column is not None and inputs.merge is not None:
        facts["missing_causes"] = left_out(inputs.merge)["causes"]
    return publish(Unit(store, "select", key), selection), facts


def _refuse_missing(unit: SelectionUnit, merge: Seal | None, store: Store) -> None:
    """Raise ItemsError where examples have no score, and the selection is not to be made without them."""
    if merge is None or unit.spec.score is None or unit.spec.missing != REFUSE:
        return
    fact = left_out(merge)
    if fact["rows"]:
        raise ItemsError(
            f"{fact['rows']} of {fact['rows'] + int(merge.meta['num_rows'])} train examples have no score, and select.missing "
            "is refuse; mend them, or set select.missing to exclude (they leave the population) or explore (they may be "
            f"drawn by exploration):{causes_table(fact['causes'], read_examples(store, tables_of(fact)))}"
        )


def publish(unit: Unit, selection: SelectionTable) -> list[Part]:
    """Publish the files of a selection and return their records."""
    parts = []
    for number, table in enumerate(selection.tables()):
        name = f"selection-{number:05d}.parquet"
        check = part_check(unit.key, unit.store.url(unit.part_name(name)), table.column("example_id").to_numpy())
        parts.append(unit.publish_part(name, encode_table(table, unit.key), check))
    return parts


def load_selection(store: Store, selection: Seal, columns: list[str] | None = None) -> Any:
    """Return a sealed selection as one table, verified against its seal."""
    import pyarrow as pa

    return pa.concat_tables([load_part(store, part, columns) for part in selection.parts])
