"""What a store keeps of its promises: probed with objects that are removed again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.s3 import S3Objects

if TYPE_CHECKING:
    from cluster.storage import Objects

SMALL = (b"probe",)
# The smallest upload that a server takes in two parts.
LARGE = (bytes(5 * 2**20), b"probe")


@dataclass(frozen=True)
class Guarantees:
    """Tell what a store does with a second create of one name; `multipart_create_only` is None where it has no such
    writes. Secateur itself never relies on multipart creates."""

    create_only: bool
    multipart_create_only: bool | None = None

    @property
    def warning(self) -> str | None:
        """Return what is weaker on this store and the next act, None where nothing is."""
        if self.create_only:
            return None
        return (
            "a second create of one name is not refused: two runs at once could overwrite each other's parts; use a store "
            "with conditional PUT (If-None-Match), or never run two at once"
        )

    @property
    def facts(self) -> dict[str, bool]:
        """Return what was found, for the record of an attempt."""
        found = {"create_only": self.create_only, "multipart_create_only": self.multipart_create_only}
        return {name: value for name, value in found.items() if value is not None}

    def __str__(self) -> str:
        words = [self.warning or "a second create of one name is refused"]
        if self.multipart_create_only is not None:
            does = "is refused" if self.multipart_create_only else "overwrites, which Secateur does not rely on"
            words.append(f"a second multipart create {does}")
        return "; ".join(words)


def probe(objects: Objects, name: str, parts: tuple[bytes, ...] = SMALL) -> Guarantees:
    """Create `name` twice, then once more as a multipart upload of `parts`, and return what stood. Leaves nothing."""
    objects.create(name, b"first")
    try:
        second = objects.create(name, b"second")
        create_only = not second and objects.read(name) == b"first"
        multipart = None
        if isinstance(objects, S3Objects):
            create_only = create_only and objects.conditional
            before = objects.read(name)
            multipart = not objects.multipart_create(name, parts) and objects.read(name) == before
    finally:
        objects.remove(name)
    return Guarantees(create_only, multipart)
