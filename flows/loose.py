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
from cluster.storage import FOLDER, Store, check_name

# Beside parts and quarantine tables, what a stage goes on from: checkpoints, and what the check of the data found.
_KINDS = (
    ("part", re.compile(r"/parts/[^/]+\.(parquet|pt|npy)\Z")),
    ("quarantine", re.compile(r"/quarantine/[^/]+\.parquet\Z")),
    ("work", re.compile(r"/work/[^/]+/(checked\.json|[^/]+/step-\d+\.pt)\Z")),
)

_FOLDERS = ("parts", "quarantine", "work")


@dataclass(frozen=True)
class Loose:
    """Name an object that no seal of the run lists; `vouched` where the seal of another index lists it.

    `obstacle` says what lies there instead, which is not Secateur's to remove.
    """

    unit: Unit
    what: str
    name: str
    vouched: bool
    obstacle: str = ""


def loose_objects(unit: Unit) -> Iterator[Loose]:
    """Yield what of a unit without a seal a resume would take over or stop at. Reads the seals that share its folder."""
    names = unit.store.list(unit.folder)
    vouched = {listed for name in names if name.startswith(f"{unit.folder}/seal") for listed in _listed(unit, name)}
    there = dict.fromkeys(names, "") | {name: unit.store.obstacle(name) for name in unit.store.others(unit.folder)}
    for name, obstacle in sorted(there.items()):
        last = name[len(unit.folder) + 1 :]
        if last in _FOLDERS and obstacle != FOLDER:
            yield Loose(unit, "part", name, False, f"{obstacle or 'a file'} where a folder belongs")
        elif last == unit.seal_name and obstacle:
            yield Loose(unit, "seal", name, False, f"{obstacle} where an object belongs")
        for what, pattern in _KINDS:
            if pattern.fullmatch(name, len(unit.folder)) and _is_name(name):
                yield Loose(unit, what, name, name in vouched, f"{obstacle} where an object belongs" if obstacle else "")


def in_the_way(name: str, store: Store) -> bool:
    """Return whether what lies under the name of a damaged object has to be moved away before anything else."""
    return bool(store.obstacle(name)) or name.rpartition("/")[2] in _FOLDERS


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
    if loose.obstacle:
        return f"is {loose.obstacle}: move it away", 0
    try:
        data = loose.unit.store.read(loose.name)
    except FileNotFoundError:
        return "", 0
    except CorruptError as error:
        return f"cannot be read ({error})", 0
    return _problem(loose, data), len(data)


def _problem(loose: Loose, data: bytes) -> str:
    if loose.name.endswith(".json"):
        try:
            decode_json(data, loose.name)
        except (ValueError, RecursionError):
            return _CHANGED
        return ""
    if not examined(data, loose.name)[0]:
        return _CHANGED
    if not loose.name.endswith(".parquet"):
        return ""
    return _without_quarantine(loose, data)


_CHANGED = "does not match the digest it holds: it was cut short or changed, or belongs elsewhere"


def _without_quarantine(loose: Loose, data: bytes) -> str:
    """Return what is wrong with a table that is as it was written: the quarantine that it names may be lost."""
    from tasks.quarantine import FACT
    from tasks.tables import facts_in

    unit = loose.unit
    try:
        facts = facts_in(data, loose.name)
    except CorruptError as error:
        return f"cannot be read ({error})"
    fact = facts.get(FACT)
    if loose.what != "part" or fact is None:
        return ""
    table = loose.name.replace("/parts/", "/quarantine/")
    try:
        if sha256(unit.store.read(table)) == fact["sha256"]:
            return ""
    except IsADirectoryError:
        return f"names the quarantine {table}, which is a folder"
    except (FileNotFoundError, CorruptError):
        return f"names the quarantine {table}, which is gone"
    return f"names the quarantine {table}, which is another or was changed"
