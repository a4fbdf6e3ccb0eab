"""Errors of the file system in words: the place that is full, the file that lies where a folder belongs."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from cluster.errors import StoreError


def is_full(error: OSError) -> bool:
    """Return whether a disk or a quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def naming(place: Path) -> Iterator[None]:
    """Name the place in an error of a full disk: what writing and syncing raise says nothing of it."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        said = f"{error.strerror}: free some space there or move it to a larger disk"
        raise OSError(error.errno, said, str(place)) from error


@contextlib.contextmanager
def in_folders(path: Path) -> Iterator[None]:
    """Name the file that lies where a folder above `path` belongs. Raises StoreError."""
    try:
        yield
    except (NotADirectoryError, FileExistsError) as error:
        file = next((place for place in reversed(path.parents) if os.path.lexists(place) and not place.is_dir()), None)
        if file is None:
            raise
        raise StoreError(f"{file} is no folder, and a folder of the store belongs there: move it away") from error
