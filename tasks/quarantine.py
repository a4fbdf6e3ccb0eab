"""The quarantine: which examples a stage left out and why, published before the part that lacks them, and its budget."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.errors import CorruptError
from cluster.fingerprint import sha256
from cluster.record import Part, Parts, Seal, Unit, read_part
from cluster.redaction import scrub
from cluster.self_digest import filled
from tasks.sources.protocol import BAD_LABEL, NON_FINITE_FEATURE, UNDECODABLE, WRONG_SHAPE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from cluster.storage import Store

    I64 = npt.NDArray[np.int64]

NON_FINITE_SCORE, SCORING_FAILED = "non_finite_score", "scoring_failed"
ERROR_CLASSES = (UNDECODABLE, WRONG_SHAPE, NON_FINITE_FEATURE, BAD_LABEL, NON_FINITE_SCORE, SCORING_FAILED)
"""Why an example can be in a quarantine."""

FACT = "quarantine"
"""Name of the fact in a part's footer, and in a seal's meta, that says what was left out."""

# Examples that a table of causes shows of each, and characters that a message may have.
SHOWN = 3
MESSAGE_CHARS = 200


@dataclass(frozen=True)
class BadExample:
    """Name one example, why it is left out, and what was seen."""

    example_id: int
    error_class: str
    message: str


@dataclass(frozen=True)
class Made:
    """Hold what a worker made of a shard: its part, and its quarantine with the count of each cause, if there is one."""

    part: Part
    quarantine: Part | None = None
    causes: dict[str, int] = field(default_factory=dict)


def allowed_rows(fraction: float, rows: int) -> int:
    """Return how many of `rows` may be bad."""
    # 1e-9: 0.001 * 3000 is 3, whatever its last bit.
    return int(fraction * rows + 1e-9)


def plain_message(error: BaseException) -> str:
    """Return an error as one short line that is the same in every process: without addresses and objects."""
    line = " ".join(str(error).split())
    line = re.sub(r" ?<[^<>]* at 0x[0-9a-fA-F]+>", "", line)
    line = re.sub(r"0x[0-9a-fA-F]{6,}", "0x", line)
    return scrub(f"{type(error).__name__}: {line}")[:MESSAGE_CHARS]


def publish_quarantine(unit: Unit, key: str, name: str, bad: Sequence[BadExample]) -> tuple[Part | None, dict[str, Any]]:
    """Publish the quarantine of part `name` create-only and return (its record, facts for the part's footer).

    Nothing is written, and both are empty, where nothing is bad. To be called before the part is published: a part never
    lacks examples that no quarantine names. Raises CorruptError where another writer left out other examples.
    """
    if not bad:
        return None, {}
    import pyarrow as pa

    from tasks.schemas import QUARANTINE
    from tasks.tables import decode_table, encode_table, part_check

    rows = sorted(bad, key=lambda one: one.example_id)
    table = pa.table(
        {
            "example_id": [one.example_id for one in rows],
            "stage": [unit.stage] * len(rows),
            "error_class": [one.error_class for one in rows],
            "message": [one.message for one in rows],
        },
        schema=QUARANTINE,
    )
    full = _name(unit, name)
    data, digest = filled(encode_table(table, key), full)
    if not unit.store.create(full, data):
        found = unit.adopt(full, part_check(key, unit.store.url(full)))
        if found is None:
            raise CorruptError(f"quarantine {unit.store.url(full)} was there and is gone: something else removes from this store")
        data, digest = found[1], found[0].sha256
        there = decode_table(data, unit.store.url(full))
        if there.column("example_id").to_pylist() != [one.example_id for one in rows]:
            raise CorruptError(
                f"quarantine {unit.store.url(full)} holds {there.num_rows} examples, this writer found {len(rows)} under "
                "one key: scores differ between devices. Remove it, and run again on one of them"
            )
    part = Part(full, len(rows), len(data), digest)
    return part, {FACT: {"rows": part.rows, "sha256": part.sha256}}


def _name(unit: Unit, name: str) -> str:
    return f"{unit.folder}/quarantine/{name}"


def _table(unit: Unit, key: str, name: str, data: bytes) -> pa.Table:
    from tasks.tables import decode_table, part_check

    where = unit.store.url(_name(unit, name))
    part_check(key, where)(data)
    return decode_table(data, where)


class PartCheck:
    """Check a part together with the quarantine its footer names, which is kept in `quarantine` and `causes`.

    `ids` are the shard's: they must be those of the part and of the quarantine together, each in their order. With
    `marked` the part holds all of them, the quarantined ones under a split of their own. Its footer must hold `facts`.
    """

    def __init__(
        self, unit: Unit, key: str, name: str, ids: I64 | None = None, *, marked: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.unit, self.key, self.name, self.ids, self.marked = unit, key, name, ids, marked
        self.facts = facts or {}
        self.quarantine: Part | None = None
        self.causes: dict[str, int] = {}

    def __call__(self, data: bytes) -> int:
        """Return the rows of the part in `data`. Raises CorruptError."""
        import numpy as np

        from tasks.schemas import QUARANTINED
        from tasks.tables import decode_table, facts_in, part_check

        where = self.unit.store.url(self.unit.part_name(self.name))
        footer = facts_in(data, where)
        other = [name for name, value in self.facts.items() if footer.get(name) != value]
        if other:
            raise CorruptError(
                f"part {where} is of another shard or of other data ({', '.join(other)} in its footer)"
            )
        left = self._left(footer.get(FACT), where)
        ids = self.ids
        if self.marked and len(left):
            table = decode_table(data, where, ["example_id", "split"])
            marked = table.column("example_id").to_numpy()[table.column("split").to_numpy() == QUARANTINED]
            if not np.array_equal(np.sort(marked), left):
                raise CorruptError(f"part {where} marks {len(marked)} rows that are not the {len(left)} of its quarantine")
        elif len(left) and ids is not None:
            ids = ids[~np.isin(ids, left)]
            if self.ids is not None and len(ids) + len(left) != len(self.ids):
                raise CorruptError(f"the quarantine of part {where} holds examples that are not its shard's")
        return part_check(self.key, where, ids)(data)

    def _left(self, facts: dict[str, Any] | None, where: str) -> I64:
        import numpy as np

        if facts is None:
            return np.zeros(0, dtype=np.int64)
        full = _name(self.unit, self.name)
        try:
            data = self.unit.store.read(full)
        except FileNotFoundError as error:
            raise CorruptError(f"quarantine {self.unit.store.url(full)} is gone, though part {where} names it") from error
        if sha256(data) != facts["sha256"]:
            raise CorruptError(
                f"quarantine {self.unit.store.url(full)} is not the one that part {where} names, or was changed: remove it too"
            )
        table = _table(self.unit, self.key, self.name, data)
        self.quarantine = Part(full, table.num_rows, len(data), sha256(data))
        self.causes = dict(Counter(table.column("error_class").to_pylist()))
        ids: I64 = table.column("example_id").to_numpy()
        return ids

    def made(self, part: Part) -> Made:
        """Return the checked part with its quarantine."""
        return Made(part, self.quarantine, self.causes)


class Tally:
    """Count what all shards of a stage left out."""

    def __init__(self) -> None:
        self.parts = Parts()
        self.tables: list[Part] = []
        self.causes: Counter[str] = Counter()

    def add(self, made: Made) -> None:
        """Take up one shard."""
        self.parts.append(made.part)
        self.causes.update(made.causes)
        if made.quarantine is not None:
            self.tables.append(made.quarantine)

    @property
    def rows(self) -> int:
        """Return how many examples were left out so far."""
        return sum(self.causes.values())

    def meta(self) -> dict[str, Any]:
        """Return the fact of the seal: rows, causes, and the quarantine tables there are."""
        tables = [asdict(part) for part in sorted(self.tables, key=lambda part: part.name)]
        return {FACT: {"rows": self.rows, "causes": dict(sorted(self.causes.items())), "parts": tables}}


def left_out(seal: Seal) -> dict[str, Any]:
    """Return {rows, causes, parts} of what a sealed stage left out; nothing for one that leaves nothing out."""
    return dict(seal.meta.get(FACT) or {"rows": 0, "causes": {}, "parts": []})


def tables_of(fact: Mapping[str, Any]) -> list[Part]:
    """Return the records of the quarantine tables in a seal's fact."""
    return [Part(**part) for part in fact["parts"]]


def read_examples(store: Store, tables: Iterable[Part]) -> dict[str, list[str]]:
    """Return up to SHOWN examples of each cause as text, from as few of the tables as it takes."""
    from tasks.tables import decode_table

    found: dict[str, list[str]] = {}
    for part in sorted(tables, key=lambda part: part.name)[:100]:
        table = decode_table(read_part(store, part), store.url(part.name))
        for row in table.to_pylist():
            texts = found.setdefault(row["error_class"], [])
            if len(texts) < SHOWN:
                texts.append(f"example_id {row['example_id']} ({row['message']})")
    return found


def causes_table(causes: Mapping[str, int], examples: Mapping[str, Sequence[str]]) -> str:
    """Return one line a cause: its name, its count, the first examples."""
    ordered = sorted(causes.items(), key=lambda pair: (-pair[1], pair[0]))
    return "".join(
        f"\n  {cause:<19}{rows:>8}  {'; '.join(examples.get(cause, [])[:SHOWN])}".rstrip() for cause, rows in ordered if rows
    )
