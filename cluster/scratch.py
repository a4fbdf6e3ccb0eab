"""Scratch folders with an owner: those that a killed process left behind are found and removed by later ones."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PREFIX = "secateur-"
OWNER = ".owner"


def claim(folder: Path) -> IO[bytes]:
    """Lock `folder` as this process's own until the file returned is closed or the process ends."""
    # Locked before it has its name, so that nobody finds it without a lock.
    new = folder / f"{OWNER}.new"
    lock = new.open("wb")
    # On a file system without locks `sweep` gets none either, and removes nothing.
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX)
    new.rename(folder / OWNER)
    return lock


@contextlib.contextmanager
def owned_folder(purpose: str) -> Iterator[Path]:
    """Yield a new private folder, removed at the end of the block; should the process be killed, by a later `sweep`."""
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-"))
    lock = claim(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def sweep(base: Path | None = None) -> list[Path]:
    """Remove the scratch folders below `base` (default: the temporary folder) whose owner is gone, and return them.

    A folder that was never claimed, or is another user's, is left alone.
    """
    swept: list[Path] = []
    for folder in sorted((base or Path(tempfile.gettempdir())).glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / OWNER).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                if folder.exists():
                    # Somebody still writes in it; without the mark, nobody would come back for it.
                    (folder / OWNER).touch()
                    continue
            swept.append(folder)
    return swept
