"""What the check pass found in each shard, kept in some 150 bytes a shard where as objects it takes 1,200."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.sources.contents import CONTENT_CHARS

I64 = npt.NDArray[np.int64]
Shape = tuple[int, ...]
Ids = tuple[int, int] | I64


@dataclass(frozen=True)
class Checked:
    """Say what one shard holds; `shape` is None where no row is usable, and rows that are not are in `bad` alone.

    `ids` is (first, rows) for consecutive ids, else all of them; `by_split` counts usable rows by (split, class);
    `candidates` are limit hash, split and class of its rows of smallest limit hash, when there is a limit. `bad` counts
    causes, `examples` shows some of each; `content` is `content_digest`; `spoilt` counts
    the rows of `bad` by the class of their label, where it is one.
    """

    shape: Shape | None
    dtype: str
    ids: Ids
    by_split: Counter[tuple[int, int]]
    unknown: Counter[str]
    candidates: tuple[npt.NDArray[np.uint64], npt.NDArray[np.int8], I64] | None
    bad: Counter[str]
    examples: dict[str, list[str]]
    content: str
    spoilt: Counter[int] = field(default_factory=Counter)

    @property
    def classes(self) -> Counter[int]:
        """Return the count of usable rows of each class."""
        out: Counter[int] = Counter()
        for (_, label), rows in self.by_split.items():
            out[label] += rows
        return out


class CheckedShards:
    """Hold a Checked for each of `size` shards, put in any order, given back in the shards' order."""

    def __init__(self, size: int) -> None:
        # Shape and type: as good as always the same for all shards.
        self._kinds: list[tuple[Shape | None, str]] = []
        self._kind = array("q", [-1]) * size
        self._first, self._rows = array("q", [0]) * size, array("q", [-1]) * size
        self._counts: list[bytes] = [b""] * size
        self._contents = bytearray(CONTENT_CHARS // 2 * size)
        self._loose: dict[int, I64] = {}
        self._rest: dict[int, tuple[Any, ...]] = {}

    def __len__(self) -> int:
        return len(self._kind)

    def put(self, number: int, one: Checked) -> None:
        """Keep what is known of a shard, in the place of what was."""
        kind = (one.shape, one.dtype)
        if kind not in self._kinds:
            self._kinds.append(kind)
        self._kind[number] = self._kinds.index(kind)
        if isinstance(one.ids, tuple):
            self._first[number], self._rows[number] = one.ids
        else:
            self._loose[number] = one.ids
        self._counts[number] = array("q", [n for (a, b), rows in one.by_split.items() for n in (a, b, rows)]).tobytes()
        width = CONTENT_CHARS // 2
        self._contents[width * number : width * (number + 1)] = bytes.fromhex(one.content)
        self._rest.pop(number, None)
        if one.unknown or one.candidates is not None or one.bad or one.examples:
            self._rest[number] = one.unknown, one.candidates, one.bad, one.examples, one.spoilt

    def ids(self) -> Iterator[Ids]:
        """Yield the ids of each shard."""
        for number in range(len(self)):
            yield self._loose[number] if number in self._loose else (self._first[number], self._rows[number])

    def __iter__(self) -> Iterator[Checked]:
        for number, ids in enumerate(self.ids()):
            shape, dtype = self._kinds[self._kind[number]]
            counts = array("q", self._counts[number])
            by_split = Counter({(counts[at], counts[at + 1]): counts[at + 2] for at in range(0, len(counts), 3)})
            rest = self._rest.get(number) or (Counter(), None, Counter(), {}, Counter())
            unknown, candidates, bad, examples, spoilt = rest
            yield Checked(shape, dtype, ids, by_split, unknown, candidates, bad, examples, self.content(number), spoilt)

    def content(self, number: int) -> str:
        """Return the content of a shard."""
        width = CONTENT_CHARS // 2
        return self._contents[width * number : width * (number + 1)].hex()

    def contents(self) -> str:
        """Return the contents of all shards, one after the other."""
        return self._contents.hex()
