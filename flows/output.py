"""Standard output belongs to the command: what anything else writes there while it works goes to standard error."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

_results: TextIO | None = None
# The standard output that this process was given, once descriptor 1 leads elsewhere.
_given: TextIO | None = None


def results() -> TextIO:
    """Return the stream for the command's own results."""
    return _results or sys.stdout


@contextlib.contextmanager
def own_output() -> Iterator[None]:
    """Send what is written to standard output inside the block to standard error, all but what goes to `results`.

    Both ways there are covered: `sys.stdout`, which then is `sys.stderr`, and descriptor 1, which children inherit. The
    descriptor stays as it is after the block: what user code left running, or does at exit, may still write there.
    """
    global _results
    # Without a standard output its descriptor may be another file's.
    if sys.stdout is None or _results is not None:
        yield
        return
    _results = _apart(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
            _results.flush()
    finally:
        _results = None


def _apart(stream: TextIO) -> TextIO:
    """Return a stream to where `stream` leads that nothing else in this process writes to, and turn descriptor 1 away."""
    global _given
    stream.flush()
    try:
        if stream.fileno() != 1:
            return stream
    except (OSError, AttributeError):
        # It is in memory.
        return stream
    if _given is None:
        _given = os.fdopen(os.dup(1), "w", encoding=stream.encoding, errors=stream.errors)
        try:
            os.dup2(2, 1)
        except OSError:
            # Standard error is closed.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.close(nowhere)
    return _given
