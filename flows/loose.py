"""What lies in the folder of a unit that is not sealed yet: a resume takes it over, so verify looks at it too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import CorruptError, StoreError
from cluster.fingerprint import sha256
from cluster.record import Seal, Unit
from cluster.self_digest import decode_json, examined
from cluster.storage import check_name

# Beside parts and quarantine tables, what a stage goes on from: checkpoints, and what the check of the data found.
_KINDS = (
    ("part", re.compile(r"/parts/[^/]+\.(parquet|pt|npy)\Z")),
    ("quarantine", re.compile(r"/quarantine/[^/]+\.parquet\Z")),
    ("work", re.compile(r"/work/[^/]+/(checked\.json|[^/]+/step-\d+\.pt)\Z")),
)


@dataclass(frozen=True)
class Loose:
    """Name an object that no seal of the run lists; `vouched` where the seal of another index lists it."""

    unit: Unit
    what: str
    name: str
    vouched: bool


def loose_objects(unit: Unit) -> Iterator[Loose]:
    """Yield the objects of a unit without a seal that a resume would take over. Reads the seals that share its folder."""
    names = unit.store.list(unit.folder)
    vouched = {listed for name in names if name.startswith(f"{unit.folder}/seal") for listed in _listed(unit, name)}
    for name in names:
        for what, pattern in _KINDS:
            if pattern.fullmatch(name, len(unit.folder)) and _is_name(name):
                yield Loose(unit, what, name, name in vouched)


def _listed(unit: Unit, name: str) -> Iterator[str]:
    try:
        seal = Seal.from_bytes(unit.store.read(name), name)
    except (CorruptError, OSError):
        # It vouches for nothing; the run it is of has it named.
        return
    yield from (part.name for part in seal.parts)
    held: Mapping[str, Any] = seal.meta.get("quarantine") or {}
    yield from (part["name"] for part in held.get("parts", ()))


def _is_name(name: str) -> bool:
    """Return whether a stage could have written the name: no stage reads what it could not write."""
    try:
        check_name(name)
    except StoreError:
        return False
    return True


def problem_of(loose: Loose) -> tuple[str, int]:
    """Return why a resume refuses an object, "" where it is sound or gone meanwhile, and how many bytes were read."""
    try:
        data = loose.unit.store.read(loose.name)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return "", 0
    except CorruptError as error:
        return f"cannot be read ({error})", 0
    return _problem(loose, data), len(data)


def _problem(loose: Loose, data: bytes) -> str:
    if loose.name.endswith(".json"):
        try:
            decode_json(data)
        except (ValueError, RecursionError):
            return _CHANGED
        return ""
    if not examined(data)[0]:
        return _CHANGED
    if not loose.name.endswith(".parquet"):
        return ""
    return _foreign(loose, data)


_CHANGED = "does not match the digest it holds: it was cut short or changed"


def _foreign(loose: Loose, data: bytes) -> str:
    """Return what is wrong with a table that is as it was written: it may be another's, or its quarantine may be lost."""
    from tasks.quarantine import FACT
    from tasks.tables import facts_in

    unit = loose.unit
    try:
        facts = facts_in(data, loose.name)
    except CorruptError as error:
        return f"cannot be read ({error})"
    own = unit.folder_key or unit.key
    if facts.get("key") != own:
        return f"is a part of key {str(facts.get('key'))[:12]} by its footer, not of {own[:12]}"
    fact = facts.get(FACT)
    if loose.what != "part" or fact is None:
        return ""
    table = loose.name.replace("/parts/", "/quarantine/")
    try:
        if sha256(unit.store.read(table)) == fact["sha256"]:
            return ""
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, CorruptError):
        return f"names the quarantine {table}, which is gone"
    return f"names the quarantine {table}, which is another or was changed"
