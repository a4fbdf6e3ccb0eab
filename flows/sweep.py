"""A sweep: a grid of scores, protocols and their parameters, written out as the arms of one run.

Selections and trainings are keyed one by one, and all of a run go through one pool: written out as arms, a grid scores
once, packs its trainings on the cluster and resumes cell by cell. A larger grid computes only its new cells.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cluster.errors import InputError
from cluster.fingerprint import canonical_json
from flows.config import RANDOM_ARM, ArmSpec, RunConfig
from tasks.comparison.paired import SEARCH_REPLICATES
from tasks.imports import nearest
from tasks.report.wording import plural
from tasks.samplers.registry import PROTOCOLS, protocol_info
from tasks.selection.spec import EXCLUDE

REPLICATES = SEARCH_REPLICATES
"""Fewest replicates for a verdict in a search: its best arm looks better than it is."""
MAX_COMBINATIONS = 10_000
PROTOCOL = "protocol"
AXES = tuple(name for name in ArmSpec.model_fields if name != "name")
# Part of the grid too, but every arm has them, so they stand where every run gives them.
ELSEWHERE = {"keep": "select.keep", "replicates": "train.replicates", "seeds": "proxy.seeds"}

Axes = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Grid:
    """Hold the arms of a grid, as `select.arms` takes them, and what became of its other combinations.

    `collapsed` counts, by cause, the combinations that are an arm already, `refused` those that are no selection.
    """

    arms: tuple[dict[str, Any], ...]
    combinations: int
    collapsed: dict[str, int]
    refused: dict[str, int]

    def facts(self) -> dict[str, Any]:
        """Return the counts, and what they say, as the results hold them."""
        counts = {"combinations": self.combinations, "arms": len(self.arms)}
        return {**counts, "collapsed": self.collapsed, "refused": self.refused, "sentence": self.sentence}

    @property
    def sentence(self) -> str:
        """Return what the grid came to in one line."""
        said = f"{plural(self.combinations, 'combination')}, {plural(len(self.arms), 'arm')} beside random"
        for what, found in (("collapsed", self.collapsed), ("left out", self.refused)):
            if found:
                causes = ", ".join(f"{cause} ({number})" for cause, number in found.items())
                said += f"; {sum(found.values())} {what}: {causes}"
        return said


def expand(sweep: Any, keep: float) -> Grid:
    """Return the arms of a grid {parameter of an arm: value or values}: every combination that is a selection of its own.

    A parameter that a protocol does not take is left out of its arms; combinations that are then the same selection at
    `keep` become one arm, and are counted. So are those that are no selection, as approximate with alpha auto. Raises
    InputError on unknown parameters, values listed twice or that no selection can have, and grids without an arm.
    """
    axes = read_axes(sweep)
    try:
        return _expand(axes, keep)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        raise InputError(f"sweep.{name} holds {str(problem['input'])[:80]!r}: {problem['msg']}") from None


def _expand(axes: Axes, keep: float) -> Grid:
    taken = {protocol: _taken(protocol) for protocol in axes[PROTOCOL]}
    for axis in axes:
        if not any(axis in names for names in taken.values()):
            protocols = ", ".join(map(str, axes[PROTOCOL]))
            raise InputError(f"sweep.{axis} is taken by no protocol of the grid ({protocols}); leave it out, or add one")
    arms: dict[bytes, dict[str, Any]] = {_same({PROTOCOL: RANDOM_ARM.protocol}, keep): {}}
    collapsed: dict[str, int] = {}
    refused: dict[str, int] = {}
    used: set[tuple[str, Any]] = set()
    reasons: dict[tuple[str, Any], InputError] = {}
    combinations = 0
    for values in itertools.product(*axes.values()):
        combinations += 1
        combination = {name: value for name, value in zip(axes, values) if value is not None}
        protocol = combination[PROTOCOL]
        fields = {name: value for name, value in combination.items() if name in taken[protocol]}
        try:
            key = _same(fields, keep)
        except InputError as error:
            reasons = dict.fromkeys(fields.items(), error) | reasons
            words = [f"{name}={value}" for name, value in fields.items() if name not in (PROTOCOL, "score")]
            cause = " ".join([protocol, *words])
            refused[cause] = refused.get(cause, 0) + 1
            continue
        used |= set(fields.items())
        if key not in arms:
            arms[key] = fields
            continue
        left_out = [name for name in combination if name not in fields]
        cause = f"{protocol} takes no {' and '.join(left_out)}" if left_out else f"{protocol} is listed in other words"
        if not arms[key]:
            cause = "random is always there"
        collapsed[cause] = collapsed.get(cause, 0) + 1
    # A value that no arm has is a mistake, not a combination to leave out.
    for place, reason in reasons.items():
        if place not in used:
            raise reason
    named = _named([fields for fields in arms.values() if fields])
    if not named:
        raise InputError("sweep has no arm beside random, which is always there; add protocols")
    return Grid(tuple(named), combinations, collapsed, refused)


def read_axes(sweep: Any) -> dict[str, list[Any]]:
    """Return the grid's values by parameter, in the order of the parameters of an arm. Raises InputError."""
    if not isinstance(sweep, Mapping) or not sweep:
        example = "sweep: {protocol: [topk, exact], score: el2n, alpha: [0.2, 0.5]}"
        raise InputError(f"sweep is {str(sweep)[:80]!r}: it is a grid of parameters of arms, as in {example}")
    for name in sweep:
        if name in ELSEWHERE:
            raise InputError(f"unknown key 'sweep.{name}'; every arm has it, give it as {ELSEWHERE[name]}")
        if name not in AXES:
            raise InputError(f"unknown key {f'sweep.{name}'[:80]!r}; {nearest(str(name), list(AXES))}")
    axes: dict[str, list[Any]] = {PROTOCOL: [ArmSpec.model_fields[PROTOCOL].default]}
    for name in (axis for axis in AXES if axis in sweep):
        given = sweep[name]
        values = list(given) if isinstance(given, list | tuple) else [given]
        if not values:
            raise InputError(f"sweep.{name} is empty; give a value, a list of values, or leave it out")
        for value in values:
            if not isinstance(value, str if name == PROTOCOL else str | int | float | None):
                raise InputError(f"sweep.{name} holds {str(value)[:80]!r}: its values are plain texts and numbers")
        if len({canonical_json(value, f"sweep.{name}") for value in values}) < len(values):
            raise InputError(f"sweep.{name} lists a value twice: {str(values)[:80]}; each value once")
        axes[name] = values
    combinations = 1
    for values in axes.values():
        combinations *= len(values)
    if combinations > MAX_COMBINATIONS:
        raise InputError(f"sweep has {combinations} combinations, and a grid has at most {MAX_COMBINATIONS}; fewer values")
    return {axis: axes[axis] for axis in AXES if axis in axes}


def _taken(protocol: str) -> tuple[str, ...]:
    """Return the parameters of an arm that a protocol takes. Raises InputError where there is no such protocol."""
    params = protocol_info(protocol).params
    if not protocol_info(protocol).ranks:
        return (PROTOCOL, *params)
    special = {name for info in PROTOCOLS.values() for name in info.params}
    return tuple(name for name in AXES if name in params or name not in special)


def _same(fields: Mapping[str, Any], keep: float) -> bytes:
    """Return bytes that two arms share exactly where they are the same selection. Raises InputError, ValidationError."""
    try:
        return canonical_json(ArmSpec(**fields).at(keep).effective(), "sweep")
    except InputError as error:
        where = " ".join(f"{name}={str(value)[:60]}" for name, value in fields.items())
        raise InputError(f"sweep, {where}: {error}") from error


def _named(arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the arms, those that would share a name told apart by the parameters in which they differ."""
    labels = [ArmSpec(**arm).label for arm in arms]
    out = []
    for arm, label in zip(arms, labels):
        alike = [other for other, said in zip(arms, labels) if said == label]
        words = [
            f"{name}={arm[name]}" for name in AXES if name in arm and any(other.get(name) != arm[name] for other in alike)
        ]
        out.append({"name": " ".join([label, *words]), **arm} if words else arm)
    return out


def written_out(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration with the arms of its grid in `select.arms`; as it is where it has no `sweep`.

    Raises InputError where both are given and differ.
    """
    sweep, select = body.get("sweep"), body.get("select")
    if sweep is None or not isinstance(select, Mapping):
        return body
    grid = expand(sweep, _first_keep(select.get("keep")))
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


def _first_keep(keep: Any) -> float:
    """Return a keep of the configuration, which is checked later."""
    values = keep if isinstance(keep, list | tuple) else [keep]
    found = [float(value) for value in values if isinstance(value, int | float) and 0 < value <= 1]
    return found[0] if found else 0.1


def grid_of(config: RunConfig) -> Grid:
    """Return the grid of a configuration that has one."""
    return expand(config.sweep, config.select.keep[0])


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
