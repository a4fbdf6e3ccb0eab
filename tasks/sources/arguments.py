"""The reading options of the built-in sources: names that must be texts, and sizes that must be whole numbers."""

from __future__ import annotations

from typing import Any

from cluster.errors import InputError

# NumPy arrays have at most 32 or 64 axes, by its version; the rows take one.
MOST_SIZES = 16


def check_texts(location: str, needed: dict[str, Any], optional: dict[str, Any]) -> None:
    """Raise InputError unless each value is a text that is not empty; an optional one may also be None."""
    for name, value in {**needed, **optional}.items():
        if value is None and name in optional:
            continue
        if not isinstance(value, str) or not value:
            rule = "a name is a text" + (", or is left out" if name in optional else "")
            raise InputError(f"{location}: source args {name} is {_shown(value)}; {rule}: put it in quotes")


def take_sizes(location: str, name: str, value: Any, rule: str, most: int | None = None) -> tuple[int, ...] | None:
    """Return a list of whole numbers from 1 to `most` as a tuple, and None for None. Raises InputError with `rule`."""
    if value is None:
        return None
    sound = isinstance(value, list | tuple) and 0 < len(value) <= MOST_SIZES
    if not sound or any(
        not isinstance(size, int) or isinstance(size, bool) or size < 1 or (most is not None and size > most) for size in value
    ):
        raise InputError(f"{location}: {name} {_shown(value)} is no {rule}")
    return tuple(value)


def _shown(value: Any) -> str:
    text = repr(value if not isinstance(value, tuple) else list(value))
    return text if len(text) <= 100 else f"{text[:100]}..."
