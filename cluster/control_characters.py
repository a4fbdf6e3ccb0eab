"""Control characters: what a terminal would obey instead of show, named in text that is printed, refused in names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# C0 and C1, line and paragraph separators, what changes the direction of the text around it, lone surrogates, and the two of
# this plane that are no characters, which XML does not have.
_OBEYED = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff"
_IN_TEXT, _IN_NAMES = re.compile(f"[{_OBEYED}]"), re.compile(f"[\t\n{_OBEYED}]")


def has_controls(text: str) -> bool:
    """Return whether a name has control characters, tabs and newlines included."""
    return _IN_NAMES.search(text) is not None


def show_controls(text: str) -> str:
    r"""Return `text` with control characters as escapes that can be read, `\x1b`; tabs and newlines stay."""
    return _IN_TEXT.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def show_controls_in(document: Any) -> Any:
    """Return a JSON document with every text in it, names of fields apart, as `show_controls` gives it."""
    if isinstance(document, str):
        return show_controls(document)
    if isinstance(document, Mapping):
        return {name: show_controls_in(item) for name, item in document.items()}
    return [show_controls_in(item) for item in document] if isinstance(document, list | tuple) else document
