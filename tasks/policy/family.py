"""The family that a race is over: every candidate as data, and which of them can be drawn at a keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cluster.errors import InputError
from cluster.fingerprint import canonical_json
from tasks.imports import nearest
from tasks.samplers.registry import protocol_info
from tasks.selection.spec import SelectionSpec, default_direction

HARD, EASY = "hard", "easy"
"""The end of a score that counts as the top: the score's own kept end, or the other one."""
END = "end"
ANY_KEEP = 1e-9
"""A keep at which whatever can be drawn at some keep can be drawn: what is refused there is a mistake in the line."""

FAMILY: tuple[dict[str, Any], ...] = (
    {"protocol": "topk"},
    {"protocol": "topk", END: EASY},
    {"protocol": "exact", "alpha": 0.2},
    {"protocol": "exact", "alpha": 0.5},
    {"protocol": "approximate", "alpha": 0.2},
    {"protocol": "approximate", "alpha": 0.5},
    {"protocol": "approximate", "alpha": 0.5, END: EASY},
    {"protocol": "tempered", "alpha": 0.5, "gamma": 0.5},
    {"protocol": "raked", "alpha": 0.5},
    {"protocol": "ccs", "beta": 0.02},
    {"protocol": "ccs", "beta": 0.1},
    {"protocol": "ccs", "beta": 0.3},
    {"protocol": "band", "beta": 0.02, "width": 0.08},
    {"protocol": "band", "beta": 0.1, "width": 0.2},
    {"protocol": "band", "beta": 0.3, "width": 0.4},
    {"protocol": "prototype_band", "beta": 0.02, "width": 0.08},
    {"protocol": "prototype_band", "beta": 0.1, "width": 0.2},
    {"protocol": "prototype_band", "beta": 0.3, "width": 0.4},
    {"protocol": "pps"},
)  # fmt: skip
"""The default family. A sampler joins the race by a line here. Simpler ones stand first: they win ties.

Those that draw anew in every epoch are left out: what is looked for is one subset, and they need all of the data.
"""

_ELSEWHERE = {"keep": "select.keep", "score": "policy.scores", "missing": "select.missing", "direction": "policy.direction"}
PARAMETERS = tuple(name for name in SelectionSpec.model_fields if name not in (*_ELSEWHERE, "protocol"))
FIELDS = ("protocol", END, *PARAMETERS)


@dataclass(frozen=True)
class Family:
    """Hold the candidates of one keep by name, in the order of the family, and why others are left out there."""

    candidates: dict[str, SelectionSpec]
    left_out: dict[str, str]


def read_family(entries: Any) -> tuple[dict[str, Any], ...]:
    """Return a family as data: a protocol's name stands for its lines of FAMILY, a mapping for a candidate of its own.

    Raises InputError on names that are in no line, unknown settings, values that no selection takes, and lines given twice.
    """
    if not isinstance(entries, list | tuple) or not entries:
        raise InputError(
            f"policy.family is {str(entries)[:80]!r}: it is a list of protocols, as in [ccs, band], or of candidates, as in "
            "[{protocol: ccs, beta: 0.2}]; leave it out for the whole family"
        )
    found: dict[bytes, dict[str, Any]] = {}
    known = list(dict.fromkeys(line["protocol"] for line in FAMILY))
    for entry in entries:
        lines = [dict(entry)] if isinstance(entry, Mapping) else [line for line in FAMILY if line["protocol"] == entry]
        if not lines:
            raise InputError(f"policy.family holds {str(entry)[:80]!r}; {nearest(str(entry), known)}")
        for line in lines:
            _check_line(line)
            key = canonical_json(line, "policy.family")
            if key in found:
                raise InputError(f"policy.family lists {str(line)[:80]} twice; each candidate once")
            found[key] = line
    return tuple(found.values())


def _check_line(line: Mapping[str, Any]) -> None:
    for name in line:
        if name in _ELSEWHERE:
            raise InputError(f"unknown key 'policy.family.{name}'; every candidate has it, give it as {_ELSEWHERE[name]}")
        if name not in FIELDS:
            raise InputError(f"unknown key {f'policy.family.{name}'[:80]!r}; {nearest(str(name), list(FIELDS))}")
    if "protocol" not in line or not isinstance(line["protocol"], str):
        raise InputError(f"policy.family holds {str(dict(line))[:80]}, which names no protocol; give protocol")
    info = protocol_info(line["protocol"])
    if not info.ranks or info.rotates:
        why = "draws anew in every epoch, and a race finds one subset" if info.rotates else "is what all are compared with"
        raise InputError(f"policy.family holds protocol {info.name}, which {why}; leave it out")
    if line.get(END, HARD) not in (HARD, EASY):
        raise InputError(f"policy.family: end is {str(line[END])[:80]!r}; give hard or easy, or leave it out for hard")
    try:
        _selection(line, ANY_KEEP, "el2n", "high", "exclude")
    except InputError as error:
        raise InputError(f"policy.family holds {str(dict(line))[:80]}: {error}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(
            f"policy.family holds {str(dict(line))[:80]}: {problem['loc'][0]} is {str(problem['input'])[:40]!r}: {problem['msg']}"
        ) from None


def family_at(
    lines: Sequence[Mapping[str, Any]], keep: float, scores: Sequence[str], missing: str, direction: str | None = None
) -> Family:
    """Return the candidates of one keep: every line with every score.

    Lines that cannot be drawn at `keep`, as a band narrower than it, are left out with the reason, and so are those that
    are an earlier one's selection in other words. `direction` is the hard end of scores that are not built in. Raises
    InputError where no candidate is left.
    """
    found = Family({}, {})
    same: dict[bytes, str] = {}
    for score in scores:
        hard = default_direction(score) or direction
        if hard is None:
            raise InputError(
                f"score {score!r} is not built in, so its hard end is not known; give policy.direction: high or low"
            )
        for line in lines:
            name = name_of(line, score)
            try:
                spec = _selection(line, keep, score, hard, missing)
            except InputError as error:
                found.left_out[name] = str(error)
                continue
            key = canonical_json(spec.effective(), "policy.family")
            if key in same:
                found.left_out[name] = f"it is {same[key]} in other words"
                continue
            same[key] = name
            found.candidates[name] = spec
    if not found.candidates:
        name, why = next(iter(found.left_out.items()))
        raise InputError(f"policy.family has no candidate that can be drawn at keep {keep:g}: {name}: {why}")
    return found


def _selection(line: Mapping[str, Any], keep: float, score: str, hard: str, missing: str) -> SelectionSpec:
    other = {"high": "low", "low": "high"}
    end = hard if line.get(END, HARD) == HARD else other[hard]
    settings = {name: line[name] for name in line if name != END}
    return SelectionSpec(keep=keep, score=score, direction=end, missing=missing, **settings)


def name_of(line: Mapping[str, Any], score: str) -> str:
    """Return what a candidate is called in every result: protocol, score, settings, and its end where that is the easy one."""
    words = [str(line["protocol"]), score]
    for name in PARAMETERS:
        value = line.get(name)
        if value is not None:
            words.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
    if line.get(END, HARD) == EASY:
        words.append(EASY)
    return " ".join(words)
