"""From a name in a configuration to the callable it means."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from cluster.errors import InputError
from tasks.spec import Use


def nearest(name: str, known: list[str]) -> str:
    """Return a hint at the nearest known name, or the list of all of them."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def resolve(use: Use, builtins: Mapping[str, str], what: str) -> Callable[..., Any]:
    """Return the callable that `use` names: a built-in's import path from `builtins`, or package.module:callable.

    Raises InputError when there is no such name or when it does not take the arguments `use` gives.
    """
    path = builtins.get(use.use, use.use)
    module_name, colon, attribute = path.partition(":")
    if not colon:
        raise InputError(f"{what} {use.use!r} is not built in; {nearest(use.use, list(builtins))} "
                         "or give package.module:callable")
    try:
        target: Any = importlib.import_module(module_name)
        for name in attribute.split("."):
            target = getattr(target, name)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{what} {use.use!r} cannot be imported ({error}); check the name, and that its folder is listed in `code`"
        ) from error
    if not callable(target):
        raise InputError(f"{what} {use.use!r} is a {type(target).__name__}, not something to call")
    check_arguments(target, use, what)
    return target  # type: ignore[no-any-return]


def check_arguments(target: Callable[..., Any], use: Use, what: str) -> None:
    """Raise InputError when a named argument is not one that `target` has."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for name in use.args:
        if name not in parameters:
            raise InputError(f"{what} {use.use!r} has no argument {name!r}; {nearest(name, list(parameters))}")
