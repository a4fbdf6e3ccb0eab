"""The command `select`: from the user's own scores to one file, in no store. It imports nothing that only runs need."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
from pathlib import Path

from cluster.errors import InputError
from cluster.scratch import sweep
from flows.cli import parse_params, print_json
from flows.output import say
from tasks.standalone import select_file

_STORE_FOLDERS = ("stages", "runs", "retired", "large", "tmp")
_STORE_OBJECT = re.compile(
    r"/(?:stages/[a-z]+-[0-9a-f]{12}|runs/[^/]+-[0-9a-f]{12}|retired/[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}|large/[0-9a-f]{64}-[0-9a-f]+)"
    r"(?:/|\Z)"
)


def run_select(
    scores: str, score: str, direction: str, keep: float, protocol: str, alpha: float | str | None, params: list[str],
    seed: int, id_column: str | None, by: str | None, out: str, as_json: bool, missing: str = "refuse",
) -> None:
    """Select from any score table and print a summary."""
    if _lies_in_store(out):
        raise InputError(f"--out {out} lies in a store, whose objects are written once; name a place outside it")
    # Where there is no temporary folder, a small table needs none.
    with contextlib.suppress(OSError):
        sweep()
    summary = select_file(
        scores, score=score, direction=direction, keep=keep, protocol=protocol, alpha=alpha,
        params=parse_params(params), seed=seed, id_column=id_column, by=by, out=out, missing=missing,
    )
    if as_json:
        print_json(summary)
        return
    for name, value in summary.items():
        if value is not None and not isinstance(value, dict | list):
            say(f"{name:<20}{value}")
    for note in summary.get("notes", []):
        say(f"note: {note}")


def _lies_in_store(out: str) -> bool:
    """Return whether a path or URI, once its dots, double slashes and links are gone, lies among a store's objects."""
    if "\0" in out:
        raise InputError(f"--out {out!r} holds a NUL, which no path may; name another place")
    scheme, mark, rest = out.partition("://")
    if mark and scheme != "file":
        return _STORE_OBJECT.search(posixpath.normpath(f"/{rest}")) is not None
    path = Path(rest if mark else out)
    # The link itself may lie in a store, or what it leads to.
    places = (Path(os.path.realpath(path)), Path(os.path.realpath(path.parent)) / path.name)
    return any(_STORE_OBJECT.search(str(place)) is not None or _is_below_store(place) for place in places)


def _is_below_store(place: Path) -> bool:
    """Return whether one of the folders above a path is a store, and the path is in one of the store's own folders."""
    return any(folder.name in _STORE_FOLDERS and _holds_objects(folder.parent) for folder in place.parents)


def _holds_objects(root: Path) -> bool:
    for folder in ("stages", "runs"):
        try:
            with os.scandir(root / folder) as entries:
                if any(_STORE_OBJECT.search(f"/{folder}/{entry.name}") for entry in entries):
                    return True
        except OSError:
            # There is no such folder, or none that may be read: then no store of ours is here.
            continue
    return False
