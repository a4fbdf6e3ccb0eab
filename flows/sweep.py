"""A sweep: a grid of scores, protocols and their parameters, written out as the arms of one run.

Selections and trainings are keyed one by one, and all of a run go through one pool: written out as arms, a grid scores
once, packs its trainings on the cluster and resumes cell by cell. A larger grid computes only its new cells.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cluster.errors import InputError
from flows.config import ArmSpec, RunConfig
from flows.grid import Grid, expand, read_axes
from tasks.comparison.paired import SEARCH_REPLICATES
from tasks.report.wording import plural
from tasks.selection.spec import EXCLUDE

REPLICATES = SEARCH_REPLICATES
"""Fewest replicates for a verdict in a search: its best arm looks better than it is."""


def written_out(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration with the arms of its grid in `select.arms`; as it is where it has no `sweep`.

    Raises InputError where both are given and differ.
    """
    sweep, select = body.get("sweep"), body.get("select")
    if sweep is None or not isinstance(select, Mapping):
        return body
    grid = expand(sweep, _keeps(select.get("keep")))
    policy = select.get("missing", EXCLUDE)
    if select.get("arms"):
        # A recorded configuration has both.
        try:
            given = [ArmSpec(**arm) for arm in select["arms"]]
        except (TypeError, ValidationError):
            given = []
        if given != [ArmSpec(**{"missing": policy, **arm}) for arm in grid.arms]:
            raise InputError("`sweep` is a grid that stands in place of select.arms; leave one of the two out")
    return {**body, "sweep": read_axes(sweep), "select": {**select, "arms": list(grid.arms)}}


def _keeps(keep: Any) -> list[float]:
    """Return the keeps of the configuration, which are checked later."""
    values = keep if isinstance(keep, list | tuple) else [keep]
    found = [float(value) for value in values if isinstance(value, int | float) and 0 < value <= 1]
    return list(dict.fromkeys(found)) or [0.1]


def grid_of(config: RunConfig) -> Grid:
    """Return the grid of a configuration that has one."""
    return expand(config.sweep, config.select.keep)


def announce(config: RunConfig) -> None:
    """Say on standard error what the grid of a configuration comes to, where it has one."""
    if config.sweep is None:
        return
    replicates = config.train.replicates
    each = f"{plural(len(config.select.keep), 'keep')} and {plural(replicates, 'replicate')} of each"
    print(f"sweep: {grid_of(config).sentence}; {each}", file=sys.stderr)
    if replicates < REPLICATES:
        print(f"sweep: below {REPLICATES} replicates there is no verdict; set train.replicates to {REPLICATES}", file=sys.stderr)


def run_sweep(config: RunConfig, store_uri: str, ray: str, as_json: bool) -> None:
    """Run the grid to its table and report. Raises as `execute`, and InputError where there is no grid."""
    from cluster.storage import Store
    from flows.execute import execute
    from flows.output import results
    from flows.plan import make_plan
    from tasks.report.publish import report_name
    from tasks.report.table import TABLE

    if config.sweep is None:
        raise InputError("the configuration has no `sweep` section; give a grid in place of select.arms, or use `secateur run`")
    announce(config)
    execute(config, store_uri, ray, as_json)
    if not as_json:
        print(f"table:  {Store(store_uri).url(report_name(make_plan(config).run_name, TABLE))}", file=results())


def refuse_sweep(config: RunConfig) -> None:
    """Raise InputError where a configuration has a grid: `secateur run` is for arms named in advance."""
    if config.sweep is not None:
        raise InputError("the configuration has a `sweep` section: run it with `secateur sweep`, or name its arms in select.arms")
