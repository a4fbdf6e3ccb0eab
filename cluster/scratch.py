"""Scratch folders and files with an owner: those that a killed process left behind are found and removed by later ones."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import uuid
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


@contextlib.contextmanager
def owned_file(beside: Path) -> Iterator[Path]:
    """Yield a new hidden file in the folder of `beside`, gone at the end of the block unless it was renamed.

    Those that killed processes left there for the same name are removed first.
    """
    mark = re.compile(rf"\.{re.escape(beside.name)}\.[0-9a-f]{{32}}\Z")
    # One may write into a folder that one may not list.
    with contextlib.suppress(PermissionError):
        for left in beside.parent.iterdir():
            if mark.match(left.name):
                with contextlib.suppress(OSError), left.open("rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    left.unlink()
    path = beside.parent / f".{beside.name}.{uuid.uuid4().hex}"
    # Locked before it has its name, as above.
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("xb") as lock:
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            new.rename(path)
            yield path
    finally:
        for one in (new, path):
            one.unlink(missing_ok=True)


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
