"""The text of a configuration: YAML without surprises, overrides, and variables of the environment put in."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import yaml

from cluster.control_characters import has_controls
from cluster.errors import InputError
from cluster.redaction import is_secret

MAX_VALUES = 20_000
MAX_DEPTH = 40
MAX_SHOWN = 200
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class _Loader(yaml.SafeLoader):
    """Be the safe loader, and refuse a key that stands twice in one mapping: the first would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping. Raises ConstructorError."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, what: str) -> Any:
    """Return the value of one YAML document. Raises InputError."""
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise InputError(f"{what} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise InputError(f"{what} is nested too deeply; a configuration has some five levels") from error
    except (ValueError, TypeError, OverflowError) as error:
        # Dates that do not exist, numbers with thousands of digits, keys that are no keys.
        raise InputError(f"{what} holds a value that cannot be read ({str(error)[:200]})") from error


def check_size(body: Any, where: str) -> None:
    """Raise InputError where aliases make a value endless, or far larger than it looks."""
    waiting: list[tuple[Any, int]] = [(body, 0)]
    count = 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise InputError(
                f"configuration {where} has more than {MAX_VALUES} values or {MAX_DEPTH} levels once its aliases are put in; "
                "write out what is meant"
            )
        if isinstance(value, Mapping):
            waiting += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]


def refuse_controls(value: Any, where: str) -> None:
    """Raise InputError where a setting holds control characters: names and paths are printed, and a terminal obeys them.

    Arguments of user code and labels may: they are what code and data need them to be, and are printed as escapes.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name not in ("args", "label_map"):
                refuse_controls(name, where)
                refuse_controls(item, f"{where}: {name}")
    elif isinstance(value, list | tuple):
        for item in value:
            refuse_controls(item, where)
    elif isinstance(value, str) and has_controls(value):
        raise InputError(
            f"{where} has {value[:MAX_SHOWN]!r}, which holds control characters; names and paths are printed, write it without"
        )


def override(body: dict[str, Any], text: str) -> None:
    """Put the value of KEY=VALUE in its place, with dots in KEY. Raises InputError."""
    key, mark, value = text.partition("=")
    text = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
    if not mark or not key:
        raise InputError(f"--set {text!r}: it has the form KEY=VALUE, with dots in KEY, as in select.keep=0.1")
    parsed = read_yaml(value, f"the value of --set {text!r}")
    place: Any = body
    *path, last = key.split(".")
    for name in path:
        if isinstance(place, list):
            place = place[_number(place, name, text)]
        else:
            if place.get(name) is None:
                place[name] = {}
            place = place[name]
        if not isinstance(place, dict | list):
            raise InputError(
                f"--set {text!r}: {name[:MAX_SHOWN]} is a plain value, it has nothing below it; set all of it, as in "
                f"--set '{name[:MAX_SHOWN]}={{{last[:MAX_SHOWN]}: {value[:MAX_SHOWN]}}}'"
            )
    if isinstance(place, list):
        place[_number(place, last, text)] = parsed
    else:
        place[last] = parsed


def _number(place: list[Any], name: str, text: str) -> int:
    # No list has items of ten digits, and Python reads no number of thousands.
    if not name.isdecimal() or len(name) > 9 or int(name) >= len(place):
        raise InputError(f"--set {text!r}: {name[:MAX_SHOWN]!r} is no item of a list of {len(place)}; give 0..{len(place) - 1}")
    return int(name)


def expand(value: Any, where: str) -> Any:
    """Replace ${NAME} and ${NAME:-default} in texts by the environment's values."""
    if isinstance(value, Mapping):
        return {name: expand(item, f"{where}: {name}") for name, item in value.items()}
    if isinstance(value, list):
        return [expand(item, where) for item in value]
    if not isinstance(value, str):
        return value

    def put(match: re.Match[str]) -> str:
        if is_secret(match[1]):
            raise InputError(
                f"{where} asks for ${{{match[1]}}}, which by its name is a secret, and settings are recorded in the store; "
                "leave it in the environment, where what needs it finds it"
            )
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise InputError(f"{where} needs the environment variable {match[1]}; export it, or use --set")
        return found

    return _VARIABLE.sub(put, value)
