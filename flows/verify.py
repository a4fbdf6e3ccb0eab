"""Verify a run: every seal of its lineage, all that they list, what lies where a seal is yet to come, and its report."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO, cast

from cluster.errors import CorruptError
from cluster.fingerprint import sha256
from cluster.record import Part, Seal, Unit
from cluster.storage import Store
from flows.attempts import attempt_states
from flows.lineage import Lineage, computed_from
from flows.loose import Loose, loose_objects, problem_of
from tasks.report.publish import FILES, report_name, sealed_digests
from tasks.versions import minor_version

THREADS = 8
# A part above this is hashed piece by piece: at most THREADS of them are in memory at once.
WHOLE_BYTES = 32 * 2**20
PIECE_BYTES = 4 * 2**20

Sealed = dict[Unit, Seal | CorruptError | None]
"""Every unit with its seal, what is wrong with it, or None where there is none."""


@dataclass(frozen=True)
class Damage:
    """Name one object that is not what it was: `what` is seal, part, quarantine, work, report or run.

    It is `loose` where no seal vouches for it yet: the next run would refuse it.
    """

    stage: str
    key: str
    what: str
    name: str
    problem: str
    loose: bool = False

    def __str__(self) -> str:
        unit = f"{self.stage} {self.key[:12]}: " if self.key else ""
        return f"{unit}{self.what} {self.name} {self.problem}"


@dataclass
class Findings:
    """Hold what was read and what was found; `not_computed` are units of a run that did not finish yet."""

    run: str
    units: int = 0
    parts: int = 0
    bytes: int = 0
    not_computed: list[str] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {**asdict(self), "sound": not self.damage}


@dataclass(frozen=True)
class Claim:
    """Hold one object that a seal lists."""

    unit: Unit
    what: str
    part: Part

    def damage(self, problem: str) -> Damage:
        """Return what is wrong with the object."""
        return Damage(self.unit.stage, self.unit.key, self.what, self.part.name, problem)


def quarantine_parts(seal: Seal) -> list[Part]:
    """Return the quarantine tables that a seal lists. Raises CorruptError where the list has another form."""
    held = seal.meta.get("quarantine") or {}
    try:
        return [Part(**part) for part in held.get("parts", ())]
    except (TypeError, AttributeError) as error:
        raise CorruptError(f"the seal of {seal.stage} {seal.key[:12]} has a broken list of quarantine tables") from error


def verify_run(lineage: Lineage, store: Store) -> Findings:
    """Read what the run's seals list, and what is not sealed yet; return what is not as it was written. Changes nothing."""
    found = Findings(lineage.run)
    _verify_name(lineage, found)
    units = lineage.units(store)
    with ThreadPoolExecutor(THREADS) as readers:
        sealed = dict(zip(units, readers.map(_read_seal, units)))
        # A run may go on meanwhile. What is written first has to be asked for last: only a seal that is not there after
        # something computed from it was seen is lost.
        missed = _missed(lineage, store, sealed)
        sealed |= zip(missed, readers.map(_read_seal, missed))
        _verify_seals(sealed, missed, found)
        found.not_computed += lineage.unknown(store)
        for loose, (problem, size) in _loose(sealed, missed, readers):
            found.parts += 1
            found.bytes += size
            if problem:
                said = f"is not sealed yet and {problem}" if not loose.vouched else f"{problem}; a seal of another run lists it"
                unit = loose.unit
                found.damage.append(Damage(unit.stage, unit.key, loose.what, loose.name, said, not loose.vouched))
        claims = _claims((unit, seal) for unit, seal in sealed.items() if isinstance(seal, Seal))
        while batch := list(itertools.islice(claims, 64 * THREADS)):
            for damage, size in readers.map(_examine, batch):
                found.parts += 1
                found.bytes += size
                if damage is not None:
                    found.damage.append(damage)
    _verify_report(lineage.run, store, found)
    return found


def _verify_name(lineage: Lineage, found: Findings) -> None:
    derived = lineage.derived
    torch = ".".join(str(lineage.record["versions"]["torch"]).split(".")[:2])
    if derived.run_name != lineage.run:
        problem = f"describes run {derived.run_name}: its configuration or digests were changed after it was recorded"
    elif lineage.plan is None and torch == minor_version("torch"):
        wrong = [stage for stage, key in derived.keys().items() if lineage.keys.get(stage) != key]
        problem = f"holds keys that do not follow from its configuration ({', '.join(wrong)}): they were changed"
    else:
        return
    found.damage.append(Damage("run", "", "run", f"runs/{lineage.run}/run.json", problem))


def _read_seal(unit: Unit) -> Seal | CorruptError | None:
    try:
        seal = unit.seal()
        if seal is None:
            return None
        listed = [*(part.name for part in seal.parts), *(part.name for part in quarantine_parts(seal))]
        own = (f"{unit.folder}/parts", f"{unit.folder}/quarantine")
        strays = [name for name in listed if name.rpartition("/")[0] not in own]
        if strays or len(set(listed)) < len(listed):
            listed_wrongly = repr(strays[0]) if strays else "an object twice"
            raise CorruptError(f"it lists {listed_wrongly}: its own parts lie in {unit.folder}, each once")
        return seal
    except CorruptError as error:
        return error


def _missed(lineage: Lineage, store: Store, sealed: Sealed) -> list[Unit]:
    """Return the units that had no seal, though the report or what was computed from them is there."""
    finished = store.exists(report_name(lineage.run, "seal.json"))
    without = [unit for unit, seal in sealed.items() if seal is None]
    if finished:
        return without
    graph = lineage.sources(store)
    there = {(unit.stage, unit.key) for unit, seal in sealed.items() if seal is not None}
    return [unit for unit in without if there & computed_from([(unit.stage, unit.key)], [graph])]


def _verify_seals(sealed: Sealed, missed: list[Unit], found: Findings) -> None:
    """Count the seals, and tell those that were lost from those that were not published yet."""
    for unit, seal in sealed.items():
        name = f"{unit.folder}/{unit.seal_name}"
        if isinstance(seal, Seal):
            found.units += 1
        elif isinstance(seal, CorruptError):
            found.damage.append(Damage(unit.stage, unit.key, "seal", name, f"is damaged: {seal}"))
        elif unit in missed:
            found.damage.append(
                Damage(unit.stage, unit.key, "seal", name, "is gone, though what was computed from it is there")
            )
        else:
            found.not_computed.append(f"{unit.stage} {unit.key[:12]}")


def _loose(sealed: Sealed, missed: list[Unit], readers: ThreadPoolExecutor) -> Iterator[tuple[Loose, tuple[str, int]]]:
    """Yield what lies in the folders of units that are not computed yet, with `problem_of` it.

    A run that goes on publishes whole objects, each once, and a quarantine before its part: what is wrong here is damage.
    """
    waiting = (unit for unit, seal in sealed.items() if seal is None and unit not in missed)
    objects = itertools.chain.from_iterable(map(loose_objects, waiting))
    while batch := list(itertools.islice(objects, 64 * THREADS)):
        yield from zip(batch, readers.map(problem_of, batch))


def _claims(sealed: Iterable[tuple[Unit, Seal]]) -> Iterator[Claim]:
    for unit, seal in sealed:
        for part in seal.parts:
            yield Claim(unit, "part", part)
        for part in quarantine_parts(seal):
            yield Claim(unit, "quarantine", part)


def _examine(claim: Claim) -> tuple[Damage | None, int]:
    """Return what is wrong with an object, if anything, and how many bytes were read."""
    part, store = claim.part, claim.unit.store
    try:
        if part.size <= WHOLE_BYTES:
            data = store.read(part.name)
            size, digest, file = len(data), sha256(data), cast(BinaryIO, io.BytesIO(data))
            return _judge(claim, size, digest, file), size
        with store.open(part.name) as opened:
            hashed = hashlib.sha256()
            while piece := opened.read(PIECE_BYTES):
                hashed.update(piece)
            size = opened.tell()
            return _judge(claim, size, hashed.hexdigest(), opened), size
    except FileNotFoundError:
        return claim.damage("is gone, though its seal lists it"), 0
    except IsADirectoryError:
        return claim.damage("is a folder now, not the object that its seal lists"), 0


def _judge(claim: Claim, size: int, digest: str, file: BinaryIO) -> Damage | None:
    part = claim.part
    own = claim.unit.folder_key or claim.unit.key
    rows, key = _footer(claim, file)
    whose = f"; by its footer it is a part of key {key[:12]}" if key is not None and key != own else ""
    if size != part.size:
        cut = "it was cut short" if size < part.size else "something was added to it"
        return claim.damage(f"has {size} bytes, its seal says {part.size}: {cut}{whose}")
    if digest != part.sha256:
        return claim.damage(f"has sha256 {digest[:12]}, its seal says {part.sha256[:12]}: it was changed{whose}")
    if whose:
        return claim.damage(f"is listed by this seal{whose}")
    if rows is not None and rows != part.rows:
        return claim.damage(f"has {rows} rows, its seal says {part.rows}: the seal was changed")
    return None


def _footer(claim: Claim, file: BinaryIO) -> tuple[int | None, str | None]:
    """Return the rows and the key in the footer of a Parquet object; None for what it does not tell."""
    if not claim.part.name.endswith(".parquet"):
        return None, None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file.seek(0)
        metadata = pq.ParquetFile(file).metadata
        facts = json.loads((metadata.metadata or {}).get(b"secateur", b"{}"))
    except (pa.ArrowException, OSError, ValueError):
        # Its bytes are not those of the seal either, which is what is reported.
        return None, None
    key = facts.get("key") if isinstance(facts, dict) else None
    return int(metadata.num_rows), key if isinstance(key, str) else None


def _verify_report(run: str, store: Store, found: Findings) -> None:
    """Hold the report's files against the report's seal. While a run goes on, what does not agree is not judged."""
    damage = list(_report_damage(run, store))
    if damage and any(attempt.state == "running" for attempt in attempt_states(store, run)):
        # Its files are replaced one by one.
        found.not_computed.append("report, which a run that goes on writes at its end")
        return
    # The run that wrote it may have ended since it was read.
    found.damage += _report_damage(run, store) if damage else ()


def _report_damage(run: str, store: Store) -> Iterator[Damage]:
    name = report_name(run, "seal.json")
    try:
        wanted = sealed_digests(store.read(name))
    except FileNotFoundError:
        if any(store.exists(report_name(run, file)) for file in FILES):
            yield Damage("report", "", "report", name, "is gone, though the report is there")
        return
    except (IsADirectoryError, ValueError, LookupError, TypeError, RecursionError) as error:
        yield Damage("report", "", "report", name, f"cannot be read ({type(error).__name__})")
        return
    for file, digest in wanted.items():
        place = report_name(run, file)
        try:
            got = sha256(store.read(place))
        except FileNotFoundError:
            yield Damage("report", "", "report", place, "is gone, though its seal lists it")
            continue
        except IsADirectoryError:
            yield Damage("report", "", "report", place, "is a folder now, not the file that its seal lists")
            continue
        if got != digest:
            yield Damage("report", "", "report", place, f"has sha256 {got[:12]}, its seal says {digest[:12]}: it was changed")
