"""Retire what is damaged, and all that was computed from it in any run, so that a run computes it again."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cluster.errors import CorruptError
from cluster.record import Seal, Unit
from cluster.storage import Store
from flows.healing import refuse_running
from flows.lineage import STAGES, Node, all_lineages, computed_from
from flows.verify import Damage, quarantine_parts
from tasks.report.publish import FILES, report_name

# Their parts are each a function of one shard: sound ones stay and only the damaged are computed again.
BY_SHARD = ("shard", "score", "merge", "subset")
REPORT = ("seal.json", *FILES)


@dataclass
class Retired:
    """Hold what was moved to `folder`: the units by stage and key, how many objects, and the runs to go on with."""

    folder: str
    units: list[str] = field(default_factory=list)
    objects: int = 0
    runs: list[str] = field(default_factory=list)


def retire(damages: list[Damage], store: Store) -> Retired:
    """Move the seals of damaged units and of all units computed from them, with their parts, below STORE/retired/.

    What is damaged goes first, while a seal still names it or is missed; then the last stage, so that nothing is ever
    sealed whose source is not. A retirement that was cut short is thus found by verify and finished by the next. Units
    that do not depend on what is damaged, and objects that their seals list, stay.
    """
    lineages = list(all_lineages(store))
    units: dict[Node, Unit] = {(unit.stage, unit.key): unit for one in lineages for unit in one.units(store)}
    bad = {damage.name for damage in damages if damage.what in ("part", "quarantine")}
    # A part whose footer names a quarantine that is not there is refused: it goes with its table.
    bad |= {name.replace("/quarantine/", "/parts/") for name in bad}
    broken = {(damage.stage, damage.key) for damage in damages if damage.what == "seal"}
    seals = {node: None if node in broken else _readable(unit) for node, unit in units.items()}
    damaged = {(damage.stage, damage.key) for damage in damages if (damage.stage, damage.key) in units}
    # One score part is listed by the seal of every index that has its shard.
    damaged |= {node for node, seal in seals.items() if seal is not None and bad & _listed(seal)}
    going = computed_from(damaged, [one.sources(store) for one in lineages])
    touched = [one for one in lineages if going & {(unit.stage, unit.key) for unit in one.units(store)}]
    refuse_running(store, [one.run for one in touched], "retiring")
    folder = f"retired/{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
    out = Retired(folder)
    # No seal vouches for the parts of a damaged unit without one: left behind by themselves, a run would take them over.
    loose = {node: _parts_to_move(node, units[node], None, units, going, seals) for node in damaged if seals[node] is None}
    before = {node: sum(_move(store, folder, name) for name in names) for node, names in loose.items()}
    out.objects += sum(before.values()) + sum(_move(store, folder, name) for name in sorted(bad))
    for one in touched:
        out.objects += sum(_move(store, folder, report_name(one.run, name)) for name in REPORT)
        out.runs.append(one.run)
    for node in sorted(going, key=lambda node: (-STAGES.index(node[0]), node)):
        unit = units[node]
        # Moved before its parts: without them nothing may say that the unit is complete.
        moved = _move(store, folder, f"{unit.folder}/{unit.seal_name}")
        for name in _parts_to_move(node, unit, bad if _keeps_sound_parts(node, damaged, seals) else None, units, going, seals):
            moved += _move(store, folder, name)
        out.objects += moved
        if moved or before.get(node):
            out.units.append(f"{node[0]} {node[1][:12]}")
    return out


def _readable(unit: Unit) -> Seal | None:
    try:
        seal = unit.seal()
        if seal is not None:
            quarantine_parts(seal)
        return seal
    except CorruptError:
        return None


def _listed(seal: Seal) -> set[str]:
    return {*(part.name for part in seal.parts), *(part.name for part in quarantine_parts(seal))}


def _keeps_sound_parts(node: Node, damaged: set[Node], seals: Mapping[Node, Seal | None]) -> bool:
    return node in damaged and node[0] in BY_SHARD and seals[node] is not None


def _parts_to_move(
    node: Node, unit: Unit, only: set[str] | None, units: Mapping[Node, Unit], going: set[Node],
    seals: Mapping[Node, Seal | None],
) -> list[str]:
    """Return the objects of a unit that go with its seal: `only` these where given, never those of a seal that stays."""
    staying: set[str] = set()
    for other, seal in seals.items():
        if other not in going and seal is not None and units[other].folder == unit.folder:
            staying |= _listed(seal)
    folders = ["parts", "quarantine"] + (["work"] if only is None and node[0] != "score" else [])
    names = [name for folder in folders for name in unit.store.list(f"{unit.folder}/{folder}")]
    return [name for name in names if name not in staying and (only is None or name in only)]


def _move(store: Store, folder: str, name: str) -> int:
    """Move an object below the folder of what was retired; return how many were: 1, or 0 where it was gone."""
    try:
        data = store.read(name)
    except FileNotFoundError:
        return 0
    store.create(f"{folder}/{name}", data)
    store.remove(name)
    return 1
