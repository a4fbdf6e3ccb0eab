"""The user's code as it was when a run began: what is edited meanwhile must not be computed under the digest of what was."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from cluster.code_digest import code_digest, code_files
from cluster.errors import InputError


def freeze_code(entry_points: Iterable[str], folders: Sequence[Path | str], target: Path, digest: str) -> list[Path]:
    """Return folders below `target` to import from in place of `folders`, in their order.

    The modules that `digest` is of are copied. All else that lies beside them is linked to, so that files which code reads
    are where it looks for them. Raises InputError where the code is not that of `digest` any more.
    """
    entries = list(entry_points)
    originals = [Path(folder).absolute() for folder in folders]
    files = set(code_files(entries, originals))
    frozen = [target / str(number) for number in range(len(originals))]
    for original, copy in zip(originals, frozen):
        inside = {file for file in files if file.is_relative_to(original)}
        parents = {parent for file in inside for parent in file.parents if parent.is_relative_to(original)}
        _freeze(original, copy, inside, parents)
    if code_digest(entries, frozen) != digest:
        raise InputError("the user's code changed while the run began; run again on code that stays as it is")
    return frozen


def _freeze(folder: Path, copy: Path, files: set[Path], parents: set[Path]) -> None:
    copy.mkdir(parents=True)
    for entry in folder.iterdir():
        if entry in files:
            shutil.copyfile(entry, copy / entry.name)
        elif entry in parents:
            _freeze(entry, copy / entry.name, files, parents)
        elif entry.name != "__pycache__":
            (copy / entry.name).symlink_to(entry)
