"""Parts and seals: the record that a stage, or one unit of a stage, is complete."""

from __future__ import annotations

import hashlib
import io
import json
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, overload

from cluster.errors import CorruptError, InputError, LoosePartError
from cluster.fingerprint import KEY_CHARS, canonical_json, sha256
from cluster.self_digest import examined, filled
from cluster.storage import Store


@dataclass(frozen=True, slots=True)
class Part:
    """Describe one published object: its name in the store, rows, bytes and sha256."""

    name: str
    rows: int
    size: int
    sha256: str


class Parts(Sequence[Part]):
    """Hold many parts in some 75 bytes each, where as objects they take 400: drivers keep seals of 10,000 shards."""

    __slots__ = ("_begin", "_ends", "_folders", "_names", "_rows", "_sha256", "_sizes")

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self._names, self._sha256 = bytearray(), bytearray()
        self._ends, self._rows, self._sizes = array("I"), array("Q"), array("Q")
        # The parts of a seal are in one folder: `_names` holds the last names alone, `_begin` where each folder begins.
        self._folders: list[str] = []
        self._begin = array("I")
        for part in parts:
            self.append(part)

    def append(self, part: Part) -> None:
        """Add a part. Raises ValueError, TypeError or OverflowError where its fields are not what their types say."""
        digest = bytes.fromhex(part.sha256)
        if len(digest) != 32 or part.sha256 != digest.hex():
            raise ValueError(f"sha256 of part {part.name!r} is {part.sha256!r}, not 64 lower-case hexadecimal digits")
        self._rows.append(part.rows)
        self._sizes.append(part.size)
        at = part.name.rfind("/") + 1
        if not self._folders or self._folders[-1] != part.name[:at]:
            self._folders.append(part.name[:at])
            self._begin.append(len(self._ends))
        self._names += part.name[at:].encode()
        self._ends.append(len(self._names))
        self._sha256 += digest

    @overload
    def __getitem__(self, index: int) -> Part: ...
    @overload
    def __getitem__(self, index: slice) -> Parts: ...
    def __getitem__(self, index: int | slice) -> Part | Parts:
        if isinstance(index, slice):
            return Parts(self[at] for at in range(*index.indices(len(self))))
        at = range(len(self))[index]
        name = self._names[self._ends[at - 1] if at else 0 : self._ends[at]].decode()
        name = self._folders[bisect_right(self._begin, at) - 1] + name
        return Part(name, self._rows[at], self._sizes[at], self._sha256[32 * at : 32 * at + 32].hex())

    def __len__(self) -> int:
        return len(self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))

    def __hash__(self) -> int:
        return hash(bytes(self._sha256))

    def __repr__(self) -> str:
        return f"Parts({list(self)!r})"


_HEAD = b'{"digest":"'
_PARTS = b'"parts":['
# A JSON object of plain values.
_PART = re.compile(rb'\{(?:[^"{}]|"(?:[^"\\]|\\.)*")*\}')


def _read_body(data: bytes) -> tuple[dict[str, Any], Parts]:
    """Return a seal's fields but its parts, and these, read one at a time: as one JSON value they take 1 KB each."""
    # No text in JSON holds these bytes, its quotes being escaped, and what stands last is the seal's own list.
    start = at = data.rfind(_PARTS) + len(_PARTS)
    if start < len(_PARTS):
        raise ValueError("it lists no parts")
    parts = Parts()
    while match := _PART.match(data, at):
        parts.append(Part(**json.loads(match[0])))
        at = match.end() + 1
        if data[at - 1 : at] != b",":
            break
    body: dict[str, Any] = json.loads(data[:start] + data[at - bool(parts) :])
    return body, parts


@dataclass(frozen=True)
class Seal:
    """List every part of a complete unit by ascending name, with facts that later stages need. Holds no times: its bytes
    are a function of its key."""

    stage: str
    key: str
    parts: Sequence[Part]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(one.name > other.name for one, other in pairwise(self.parts)):
            order = sorted(range(len(self.parts)), key=lambda at: self.parts[at].name)
            object.__setattr__(self, "parts", Parts(self.parts[at] for at in order))
        elif not isinstance(self.parts, Parts):
            object.__setattr__(self, "parts", Parts(self.parts))

    def part(self, name: str) -> Part | None:
        """Return the part whose name in the store ends in /`name`, None where there is none."""
        if not self.parts:
            return None
        full = f"{self.parts[0].name.rpartition('/')[0]}/{name}"
        at = bisect_left(self.parts, full, key=lambda part: part.name)
        return self.parts[at] if at < len(self.parts) and self.parts[at].name == full else None

    def _pieces(self) -> Iterator[bytes]:
        """Yield the canonical JSON of all fields but the digest, a part at a time and without its opening brace."""
        yield b'"key":%b,"meta":' % canonical_json(self.key)
        yield canonical_json(self.meta, "seal")
        yield b',"parts":['
        for number, part in enumerate(self.parts):
            fields = {"name": part.name, "rows": part.rows, "size": part.size, "sha256": part.sha256}
            yield (b"," if number else b"") + canonical_json(fields, "part")
        yield b'],"stage":%b}' % canonical_json(self.stage)

    def to_bytes(self) -> bytes:
        """Return the canonical bytes; their `digest` is the sha256 of the same JSON without that field."""
        digest, whole = hashlib.sha256(b"{"), io.BytesIO()
        whole.write(_HEAD + b"0" * 64 + b'",')
        for piece in self._pieces():
            digest.update(piece)
            whole.write(piece)
        whole.seek(len(_HEAD))
        whole.write(digest.hexdigest().encode())
        return whole.getvalue()

    def _is(self, data: bytes) -> bool:
        """Return whether `data` are the bytes of `to_bytes`, without making them."""
        digest, at = hashlib.sha256(b"{"), len(_HEAD) + 66
        for piece in self._pieces():
            if not data.startswith(piece, at):
                return False
            digest.update(piece)
            at += len(piece)
        return at == len(data) and data.startswith(_HEAD + digest.hexdigest().encode() + b'",')

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Seal:
        """Return the seal in `data`. Raises CorruptError naming `where` unless these are the bytes of `to_bytes`."""
        try:
            body, parts = _read_body(data)
            seal = cls(body["stage"], body["key"], parts, body["meta"])
            unchanged = seal._is(data)
        except (ValueError, KeyError, TypeError, OverflowError, AttributeError, InputError, RecursionError) as error:
            raise CorruptError(f"seal {where} cannot be read ({error}): it was changed after publishing") from error
        if not unchanged:
            raise CorruptError(f"seal {where} does not match its own digest: it was changed after publishing")
        return seal


@dataclass(frozen=True)
class Unit:
    """Address one keyed unit of work in the store: STORE/stages/<stage>-<key12>/."""

    store: Store
    stage: str
    key: str
    seal_name: str = "seal.json"
    # What a part belongs to where several keys share one folder (score parts are addressed by scorer and shard).
    folder_key: str = ""

    @property
    def folder(self) -> str:
        """Return the folder's name in the store."""
        return f"stages/{self.stage}-{(self.folder_key or self.key)[:KEY_CHARS]}"

    def part_name(self, name: str) -> str:
        """Return the store name of a part called `name`."""
        return f"{self.folder}/parts/{name}"

    def seal(self) -> Seal | None:
        """Return the seal, or None while the unit is not complete. Raises CorruptError when it is another key's."""
        name = f"{self.folder}/{self.seal_name}"
        try:
            seal = Seal.from_bytes(self.store.read(name), self.store.url(name))
        except FileNotFoundError:
            return None
        except IsADirectoryError as error:
            raise CorruptError(f"seal {self.store.url(name)} is a folder: something else writes into this store") from error
        if seal.key != self.key or seal.stage != self.stage:
            where = self.store.url(name)
            raise CorruptError(f"seal {where} is of {seal.stage} {seal.key}, not {self.stage} {self.key}")
        return seal

    def find_part(self, name: str, check: Callable[[bytes], int]) -> Part | None:
        """Return the published part `name` where its own digest and `check(bytes) -> rows` accept it, None where it is not there.

        For units that are not sealed yet. Raises LoosePartError where it is damaged.
        """
        found = self.adopt(self.part_name(name), check)
        return found[0] if found is not None else None

    def adopt(self, full: str, check: Callable[[bytes], int]) -> tuple[Part, bytes] | None:
        """Return the record and the bytes of an object of this unit by its name in the store, as `find_part` does."""
        try:
            data = self.store.read(full)
            unchanged, digest = examined(data, full)
            # Nothing decodes bytes that are not as they were written, and written here.
            if not unchanged:
                raise CorruptError(
                    f"part {self.store.url(full)} does not match the digest it holds: it was cut short or changed after "
                    "publishing, or belongs elsewhere"
                )
            return Part(full, check(data), len(data), digest), data
        except FileNotFoundError:
            return None
        except (CorruptError, IsADirectoryError) as error:
            what = error if isinstance(error, CorruptError) else f"part {self.store.url(full)} is a folder"
            raise LoosePartError(
                f"{what}; its stage is not sealed yet: remove {self.store.url(full)}, and it is computed again"
            ) from error

    def publish_part(self, name: str, data: bytes, check: Callable[[bytes], int]) -> Part:
        """Publish a part create-only and return its record; where another writer was first, check and adopt theirs.

        `data` hold a place for their digest, which is filled in here (cluster.self_digest). `check(bytes) -> rows` raises
        CorruptError unless they are a whole part of this unit; it runs before the write too, so that nothing unreadable is
        ever published.
        """
        full = self.part_name(name)
        where = self.store.url(full)
        data, digest = filled(data, full)
        part = Part(full, check(data), len(data), digest)
        if self.store.create(full, data):
            return part
        winner = self.find_part(name, check)
        if winner is None:
            raise CorruptError(f"part {where} was there and is gone: something else removes from this store")
        if winner.rows != part.rows:
            raise CorruptError(f"part {where} has {winner.rows} rows, this writer has {part.rows}, under one key")
        return winner

    def publish_seal(self, parts: Sequence[Part], meta: Mapping[str, Any] | None = None) -> Seal:
        """Publish the seal, last of all, and return the one that stands."""
        # As every reader finds it: facts that go on into later bytes must not depend on who made this seal.
        seal = Seal(self.stage, self.key, parts, json.loads(canonical_json(meta or {}, "seal")))
        if self.store.create(f"{self.folder}/{self.seal_name}", seal.to_bytes()):
            return seal
        winner = self.seal()
        if winner is None:
            raise CorruptError(f"seal of {self.folder} was there and is gone: something else removes from this store")
        return winner


def read_part(store: Store, part: Part) -> bytes:
    """Return a part's bytes after checking them against its seal. Raises CorruptError."""
    try:
        data = store.read(part.name)
    except FileNotFoundError as error:
        raise CorruptError(f"part {store.url(part.name)} is gone, though its seal names it") from error
    if len(data) != part.size or sha256(data) != part.sha256:
        raise CorruptError(
            f"part {store.url(part.name)} has {len(data)} bytes, sha256 {sha256(data)[:12]}; its seal says "
            f"{part.size} bytes, {part.sha256[:12]}: it was changed after it was published"
        )
    return data
