"""What a failure adds to its message: the command that mends the run, or what to make room in."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cluster.errors import CorruptError, LoosePartError, StageError
from cluster.file_errors import is_full

if TYPE_CHECKING:
    from cluster.storage import Store


def mending(run: str, store: Store) -> str:
    """Return the command that names all that is damaged in a run, and heals what can be healed."""
    return f"secateur verify {run} --store {shlex.quote(store.uri)} --heal"


def needs_mending(error: BaseException) -> bool:
    """Return whether an error is of a damaged object and does not say itself what to remove."""
    return isinstance(error, CorruptError) and not isinstance(error, LoosePartError)


@contextlib.contextmanager
def advised(run: str, store: Store) -> Iterator[None]:
    """Add to an error of a damaged object the command that mends it. Raises StageError."""
    try:
        yield
    except CorruptError as error:
        if not needs_mending(error):
            raise
        if store.exists(f"runs/{run}/run.json"):
            way = mending(run, store)
        else:
            place = shlex.quote(store.uri)
            way = f"secateur verify RUN --store {place} --heal, of the run that made it (`secateur status --store {place}`)"
        raise StageError(f"{error}; mend it with: {way}, then run the same command again") from error


def said_of(error: OSError) -> str:
    """Return what an error of the file system says, and what to do about a full temporary folder or a folder in the way."""
    hint = "; move that folder away" if isinstance(error, IsADirectoryError) and error.filename is not None else ""
    if is_full(error) and error.filename is None:
        hint = f"; free some space in the temporary folder {tempfile.gettempdir()}, or set TMPDIR to another"
    return f"{type(error).__name__}: {error}{hint}"
