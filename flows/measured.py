"""What was measured of a run's selections before any training, from sealed units alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.record import Seal, Unit
from cluster.storage import Store
from flows.plan import Plan, sealed
from tasks.report.inputs import MeasuredArm, ShiftResult
from tasks.score import ScoreInputs
from tasks.shift.spec import PROXY
from tasks.shift.units import ShiftInputs, ShiftUnit


def shift_units(plan: Plan, selections: dict[str, Seal], subsets: dict[str, Seal]) -> list[tuple[str, ShiftUnit]]:
    """Return the selections to measure, each with the key of its figures."""
    return [
        (one.key, ShiftUnit(selections[one.selection], subsets[one.selection], one.score)) for one in plan.shifts
    ]


def shift_inputs(plan: Plan, index: Seal, table: Seal, proxies: Sequence[Seal]) -> ShiftInputs:
    """Return what the shift stage reads; `proxies` are read where features are a proxy's."""
    run = plan.config
    assert plan.features is not None and run.shift is not None
    scoring = None
    if run.shift.features == PROXY:
        assert run.score is not None and run.proxy is not None
        scoring = run.score, ScoreInputs(run.data, index, run.proxy, list(proxies), plan.code, run.seed)
    return ShiftInputs(run.data, index, table, plan.features, scoring)


def add_shift(plan: Plan, store: Store, results: dict[str, Any]) -> ShiftResult | None:
    """Put `shift` into the results and return what the page draws of it; None where none was asked for. Raises InputError."""
    from tasks.report.shift import shift_record

    if plan.features is None:
        return None
    arms = [
        MeasuredArm(
            one.arm, one.keep, sealed(Unit(store, "select", one.selection)), sealed(Unit(store, "shift", one.key))
        )
        for one in plan.shifts
    ]
    found = ShiftResult(sealed(Unit(store, "features", plan.features)), arms)
    results["shift"] = shift_record(found)
    return found
