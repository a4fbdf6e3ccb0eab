"""A view of a store in which some objects are missing and all writes go to a scratch folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NoReturn

from cluster.storage import FileObjects, Objects, Store


class OverlayObjects(FileObjects):
    """Read what was written here first, then what lies below, `hidden` names left out; never write below."""

    def __init__(self, below: Objects, folder: Path, hidden: Iterable[str]) -> None:
        super().__init__(folder)
        self.below = below
        self.hidden = set(hidden)

    def _is_below(self, name: str) -> bool:
        return name not in self.hidden and not super().exists(name)

    def create(self, name: str, data: bytes) -> bool:
        if name not in self.hidden and self.below.exists(name):
            return False
        return super().create(name, data)

    def read(self, name: str) -> bytes:
        return self.below.read(name) if self._is_below(name) else super().read(name)

    def exists(self, name: str) -> bool:
        return super().exists(name) or (name not in self.hidden and self.below.exists(name))

    def list(self, prefix: str) -> list[str]:
        return sorted({*super().list(prefix), *(name for name in self.below.list(prefix) if name not in self.hidden)})

    def remove(self, name: str) -> None:
        super().remove(name)
        self.hidden.add(name)

    def open(self, name: str) -> BinaryIO:
        return self.below.open(name) if self._is_below(name) else super().open(name)


class OverlayStore(Store):
    """Be a store for one process in which a stage can be run without touching what lies below."""

    def __init__(self, below: Store, folder: Path, hidden: Iterable[str]) -> None:
        self.uri = below.uri
        self.objects = OverlayObjects(below.objects, folder, hidden)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an overlay is of one process: a copy elsewhere would write into the store itself")
