"""Parts and seals: the record that a stage, or one unit of a stage, is complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import CorruptError
from cluster.fingerprint import KEY_CHARS, canonical_json, sha256
from cluster.storage import Store


@dataclass(frozen=True)
class Part:
    """Describe one published object: its name in the store, rows, bytes and sha256."""

    name: str
    rows: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Seal:
    """List every part of a complete unit, with facts that later stages need. Holds no times: its bytes are a function
    of its key."""

    stage: str
    key: str
    parts: tuple[Part, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        body = {
            "stage": self.stage,
            "key": self.key,
            "parts": [vars(part) for part in self.parts],
            "meta": self.meta,
        }
        return canonical_json(body, "seal")

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Seal:
        """Return the seal in `data`. Raises CorruptError naming `where`."""
        try:
            body = json.loads(data)
            parts = tuple(Part(**part) for part in body["parts"])
            return cls(body["stage"], body["key"], parts, body["meta"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(f"seal {where} cannot be read ({error}): it was changed after publishing") from error


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
        if seal.key != self.key or seal.stage != self.stage:
            where = self.store.url(name)
            raise CorruptError(f"seal {where} is of {seal.stage} {seal.key}, not {self.stage} {self.key}")
        return seal

    def find_part(self, name: str, check: Callable[[bytes], int]) -> Part | None:
        """Return the published part `name` after `check(bytes) -> rows` accepted it, or None where it is not there."""
        full = self.part_name(name)
        try:
            data = self.store.read(full)
        except FileNotFoundError:
            return None
        return Part(full, check(data), len(data), sha256(data))

    def publish_part(self, name: str, data: bytes, check: Callable[[bytes], int]) -> Part:
        """Publish a part create-only and return its record; where another writer was first, check and adopt theirs.

        `check(bytes) -> rows` raises CorruptError unless the bytes are a whole part of this unit; it runs before the
        write too, so that nothing unreadable is ever published.
        """
        rows = check(data)
        full = self.part_name(name)
        if self.store.create(full, data):
            return Part(full, rows, len(data), sha256(data))
        winner = self.find_part(name, check)
        where = self.store.url(full)
        if winner is None:
            raise CorruptError(f"part {where} was there and is gone: something else removes from this store")
        if winner.rows != rows:
            raise CorruptError(f"part {where} has {winner.rows} rows, this writer has {rows}, under one key")
        return winner

    def publish_seal(self, parts: Sequence[Part], meta: Mapping[str, Any] | None = None) -> Seal:
        """Publish the seal, last of all, and return the one that stands."""
        seal = Seal(self.stage, self.key, tuple(sorted(parts, key=lambda part: part.name)), dict(meta or {}))
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
