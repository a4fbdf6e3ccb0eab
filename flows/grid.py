"""A grid of scores, protocols and their parameters, written out as arms: each a selection of its own, the rest counted."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cluster.errors import InputError
from cluster.fingerprint import canonical_json
from flows.config import NOT_SELECTION, RANDOM_ARM, ArmSpec
from tasks.imports import nearest
from tasks.report.wording import plural
from tasks.samplers.registry import PROTOCOLS, protocol_info
from tasks.selection.spec import SelectionSpec

MAX_COMBINATIONS = 10_000
PROTOCOL = "protocol"
AXES = tuple(name for name in ArmSpec.model_fields if name not in NOT_SELECTION)
# Part of the grid too, but every arm has them, so they stand where every run gives them.
ELSEWHERE = {"keep": "select.keep", "keeps": "select.keep", "replicates": "train.replicates", "seeds": "proxy.seeds"}

Axes = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Grid:
    """Hold the arms of a grid, as `select.arms` takes them, and what became of its other combinations.

    `collapsed` counts, by cause, the combinations that are an arm already, `refused` those that are no selection at any
    keep. `absent` holds, by arm, the keeps at which it is none and why.
    """

    arms: tuple[dict[str, Any], ...]
    combinations: int
    collapsed: dict[str, int]
    refused: dict[str, int]
    absent: dict[str, dict[float, str]]

    def facts(self) -> dict[str, Any]:
        """Return the counts, and what they say, as the results hold them."""
        absent = [
            {"arm": arm, "keep": keep, "reason": reason} for arm, found in self.absent.items() for keep, reason in found.items()
        ]
        counts = {"combinations": self.combinations, "arms": len(self.arms)}
        causes = {"collapsed": self.collapsed, "refused": self.refused, "absent": absent}
        return {**counts, **causes, "sentence": self.sentence}

    @property
    def sentence(self) -> str:
        """Return what the grid came to in one line."""
        said = f"{plural(self.combinations, 'combination')}, {plural(len(self.arms), 'arm')} beside random"
        for what, found in (("collapsed", self.collapsed), ("left out", self.refused)):
            if found:
                causes = ", ".join(f"{cause} ({number})" for cause, number in found.items())
                said += f"; {sum(found.values())} {what}: {causes}"
        if self.absent:
            arms = ", ".join(f"{arm} (not at {_percents(found)})" for arm, found in self.absent.items())
            said += f"; {plural(len(self.absent), 'arm')} of some keeps only: {arms}"
        return said


def _percents(keeps: Iterable[float]) -> str:
    return " and ".join(f"{100 * keep:g} %" for keep in keeps)


def expand(sweep: Any, keeps: Sequence[float]) -> Grid:
    """Return the arms of a grid {parameter of an arm: value or values}: every combination that is a selection of its own.

    A parameter that a protocol does not take is left out of its arms; combinations that are then the same selection
    become one arm, and are counted. So are those that are no selection, as approximate with alpha auto. An arm that is a
    selection of its own at some of the keeps alone, as a band that holds less than a keep, is made at these, and the others
    are counted. Raises InputError on unknown parameters, values listed twice or that no selection can have, and grids
    without an arm.
    """
    axes = read_axes(sweep)
    try:
        return _expand(axes, keeps)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        raise InputError(f"sweep.{name} holds {str(problem['input'])[:80]!r}: {problem['msg']}") from None


def _expand(axes: Axes, keeps: Sequence[float]) -> Grid:
    taken = {protocol: _taken(protocol) for protocol in axes[PROTOCOL]}
    for axis in axes:
        if not any(axis in names for names in taken.values()):
            protocols = ", ".join(map(str, axes[PROTOCOL]))
            raise InputError(f"sweep.{axis} is taken by no protocol of the grid ({protocols}); leave it out, or add one")
    random: dict[str, Any] = {PROTOCOL: RANDOM_ARM.protocol}
    # By keep, which combination a selection is of first.
    taken_by = {keep: {_same(random, keep): random} for keep in keeps}
    arms: list[dict[str, Any]] = []
    reasons_of: list[dict[float, str]] = []
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
        own: list[float] = []
        absent: dict[float, str] = {}
        first: dict[str, Any] | None = None
        for keep in keeps:
            try:
                key = _same(fields, keep)
            except InputError as error:
                reasons = dict.fromkeys(fields.items(), error) | reasons
                absent[keep] = str(error)
                continue
            if key in taken_by[keep]:
                first = taken_by[keep][key]
                absent[keep] = f"the same selection as {ArmSpec(**first).label}"
                continue
            taken_by[keep][key] = fields
            own.append(keep)
        if own or first is not None:
            used |= set(fields.items())
        if own:
            arms.append({**fields, "keeps": own} if absent else fields)
            reasons_of.append(absent)
        elif first is not None:
            left_out = [name for name in combination if name not in fields]
            cause = f"{protocol} takes no {' and '.join(left_out)}" if left_out else f"{protocol} is listed in other words"
            if first[PROTOCOL] != protocol:
                ends = [f"{name}={fields[name]}" for name in ("alpha", "gamma") if fields.get(name) in (0, 1, "0", "1")]
                cause = f"{protocol} is {ArmSpec(**first).label}"
                if ends:
                    cause = f"{protocol} with {' '.join(ends)} is {first[PROTOCOL]}"
            elif first is random:
                cause = "random is always there"
            collapsed[cause] = collapsed.get(cause, 0) + 1
        else:
            words = [f"{name}={value}" for name, value in fields.items() if name not in (PROTOCOL, "score")]
            cause = " ".join([protocol, *words])
            refused[cause] = refused.get(cause, 0) + 1
    # A value that no arm has is a mistake, not a combination to leave out.
    for place, reason in reasons.items():
        if place not in used:
            raise reason
    if not arms:
        raise InputError("sweep has no arm beside random, which is always there; add protocols")
    named = _named(arms)
    absences = {ArmSpec(**arm).label: reason for arm, reason in zip(named, reasons_of) if reason}
    return Grid(tuple(named), combinations, collapsed, refused, absences)


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
        return canonical_json(_plainest(ArmSpec(**fields).at(keep)).effective(), "sweep")
    except InputError as error:
        where = " ".join(f"{name}={str(value)[:60]}" for name, value in fields.items())
        raise InputError(f"sweep, {where}: {error}") from error


def _plainest(spec: SelectionSpec) -> SelectionSpec:
    """Return the selection under its plainest name: at the ends of alpha and gamma protocols are one another.

    Alpha 0 spends nothing on the ranking, alpha 1 all; tempered goes from approximate (gamma 0) to exact (gamma 1). An
    alpha of 0 that leaves unscored examples out is taken for random too.
    """
    if spec.protocol not in ("exact", "approximate", "tempered"):
        return spec
    none = {"alpha": None, "gamma": None}
    if spec.alpha == 0:
        return spec.model_copy(update={**none, "protocol": RANDOM_ARM.protocol, "score": None, "direction": None})
    if spec.alpha == 1:
        return spec.model_copy(update={**none, "protocol": "topk"})
    if spec.gamma in (0, 1):
        return spec.model_copy(update={"gamma": None, "protocol": "exact" if spec.gamma else "approximate"})
    return spec


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
