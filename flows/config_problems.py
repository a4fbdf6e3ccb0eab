"""What is wrong with a configuration, in one message: unknown keys with the nearest valid one, wrong values, secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from cluster.errors import InputError
from cluster.redaction import find_secret, names_secret
from tasks.imports import nearest

# Characters of a wrong value that a message shows.
MAX_SHOWN = 120


def refuse_secrets(value: Any, where: str) -> None:
    """Raise InputError where a setting is a secret: run.json, the report and Prefect's database would hold it."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            refuse_secrets(name, where)
            if isinstance(name, str) and isinstance(item, str) and item and names_secret(name):
                raise InputError(
                    f"{where}: {name!r} is by its name a secret, and settings are recorded in the store; leave it out, "
                    "your code finds it in the environment"
                )
            refuse_secrets(item, f"{where}: {name}" if isinstance(name, str) else where)
    elif isinstance(value, list | tuple):
        for item in value:
            refuse_secrets(item, where)
    elif isinstance(value, str) and (found := find_secret(value)) is not None:
        raise InputError(
            f"{where} holds {found}, and settings are recorded in the store; leave it out, credentials come from the "
            "environment or the machine"
        )


def first_problem(error: ValidationError, root: type[BaseModel]) -> str:
    """Return the first thing that is wrong with a specification of type `root`, with the nearest key that there is."""
    # An unknown key often causes a missing one: name the unknown first.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    place = list(problem["loc"])
    name = ".".join(str(part) for part in place)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        known = list(_fields_at(root, place[:-1]))
        return f"unknown key {name!r}; {nearest(str(place[-1]), known)}{more}"
    if problem["type"] == "missing":
        return f"{name!r} is missing{more}"
    got, said = repr(problem["input"]), str(problem["msg"]).removeprefix("Value error, ")
    return f"{name!r} is {got if len(got) <= MAX_SHOWN else got[:MAX_SHOWN] + '...'}: {said}{more}"


def _fields_at(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """Return the field names of the spec at a place in the configuration."""
    current = model
    for part in place:
        if isinstance(part, int) or part not in current.model_fields:
            continue
        found = _spec_in(current.model_fields[part].annotation)
        if found is None:
            return []
        current = found
    return list(current.model_fields)


def _spec_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _spec_in(inner)
        if found is not None:
            return found
    return None
