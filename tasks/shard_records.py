"""Many shards in little memory, and how an index's seal lists them: by runs of one file, in some 70 bytes a shard."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

from tasks.sources.protocol import Shard

DIGEST_CHARS = 64


class Shards(Sequence[Shard]):
    """Hold many shards in some 70 bytes each, where as objects they take 350; one that is asked for is made anew."""

    __slots__ = ("_digests", "_names", "_numbers", "_odd", "_place", "_places")

    def __init__(self, shards: Iterable[Shard] = ()) -> None:
        # Location, file and address: the same for many shards that follow one another.
        self._places: list[tuple[str, str, str]] = []
        self._place = array("I")
        # Start, rows and position.
        self._numbers = array("q")
        self._digests = bytearray()
        # Digests that are not 64 lower-case hexadecimal digits: a user's own source may name rows as it likes.
        self._odd: dict[int, str] = {}
        self._names: dict[int, tuple[str, ...]] = {}
        for shard in shards:
            self.append(shard)

    def append(self, shard: Shard) -> None:
        """Add a shard."""
        place = (shard.location, shard.relative, shard.uri)
        if not self._places or self._places[-1] != place:
            self._places.append(place)
        if shard.files:
            self._names[len(self)] = shard.files
        self._add_digest(len(self), shard.digest)
        self._numbers.extend((shard.start, shard.rows, shard.position))
        self._place.append(len(self._places) - 1)

    def _add_digest(self, number: int, digest: str) -> None:
        try:
            packed = bytes.fromhex(digest)
        except ValueError:
            packed = b""
        if len(packed) != DIGEST_CHARS // 2 or packed.hex() != digest:
            self._odd[number] = digest
            packed = bytes(DIGEST_CHARS // 2)
        self._digests += packed

    def renamed(self, digests: Iterable[str]) -> Shards:
        """Return the same shards under other digests, in the same order; all else is shared with these."""
        out = Shards()
        out._places, out._place, out._numbers, out._names = self._places, self._place, self._numbers, self._names
        for number, digest in enumerate(digests):
            out._add_digest(number, digest)
        return out

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> Shards: ...
    def __getitem__(self, index: int | slice) -> Shard | Shards:
        if isinstance(index, slice):
            return Shards(self[at] for at in range(*index.indices(len(self))))
        at = range(len(self))[index]
        width = DIGEST_CHARS // 2
        digest = self._odd[at] if at in self._odd else self._digests[width * at : width * (at + 1)].hex()
        start, rows, position = self._numbers[3 * at : 3 * at + 3]
        return Shard(*self._places[self._place[at]], start, rows, position, digest, self._names.get(at, ()))

    def __len__(self) -> int:
        return len(self._place)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))

    def __hash__(self) -> int:
        return hash(bytes(self._digests))

    def __repr__(self) -> str:
        return f"Shards({list(self)!r})"


def pack_shards(shards: Iterable[Shard]) -> list[dict[str, Any]]:
    """Return runs {location, relative, start, position, rows, digests}: shards that follow one another in one file.

    `rows` holds [rows of a shard, how many shards have them]; `digests` their digests of 64 characters, one after another.
    """
    runs: list[dict[str, Any]] = []
    digests: list[list[str]] = []
    end: tuple[str, str, int, int] | None = None
    for shard in shards:
        if (shard.location, shard.relative, shard.start, shard.position) != end:
            runs.append({
                "location": shard.location, "relative": shard.relative, "start": shard.start, "position": shard.position,
                "rows": [],
            })  # fmt: skip
            digests.append([])
        counts = runs[-1]["rows"]
        if counts and counts[-1][0] == shard.rows:
            counts[-1][1] += 1
        else:
            counts.append([shard.rows, 1])
        digests[-1].append(shard.digest)
        end = shard.location, shard.relative, shard.start + shard.rows, shard.position + shard.rows
    return [{**run, "digests": "".join(each)} for run, each in zip(runs, digests)]


def unpack_shards(runs: Iterable[Mapping[str, Any]]) -> Iterator[Shard]:
    """Yield the shards that `pack_shards` was given, without address and files."""
    for run in runs:
        start, position, at = run["start"], run["position"], 0
        for rows, count in run["rows"]:
            for _ in range(count):
                digest = run["digests"][at : at + DIGEST_CHARS]
                yield Shard(run["location"], run["relative"], "", start, rows, position, digest)
                start, position, at = start + rows, position + rows, at + DIGEST_CHARS
