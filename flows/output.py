"""Standard output belongs to the command: what anything else writes there while it works goes to standard error."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from cluster.control_characters import show_controls
from cluster.errors import SecateurError


class OutputError(SecateurError):
    """Signal that standard output takes no more: a full disk, a reader that is gone."""


class ResultStream:
    """Be standard output; what cannot be written there is OutputError, and the rest of it is dropped."""

    def __init__(self, below: TextIO) -> None:
        self.below = below

    def write(self, text: str) -> int:
        """Write a text. Raises OutputError."""
        with self._told():
            return self.below.write(text)

    def flush(self) -> None:
        """Write out what is waiting. Raises OutputError."""
        with self._told():
            self.below.flush()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # The interpreter writes out what is left when it ends, and would fail again.
            with contextlib.suppress(OSError):
                _lead_nowhere(self.below.fileno())
            raise OutputError(
                f"standard output cannot be written ({error.strerror or type(error).__name__}); nothing else is lost: mend "
                "that, then run the same command again"
            ) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)


_results: TextIO | None = None
# The standard output that this process was given, once descriptor 1 leads elsewhere.
_given: TextIO | None = None


def results() -> TextIO:
    """Return the stream for the command's own results."""
    return _results or sys.stdout


def say(text: str) -> None:
    """Print lines of the command's own results, control characters as escapes."""
    print(show_controls(text), file=results())


def _lead_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


# Of a closed stream it is ValueError.
DROPPED = (OSError, ValueError)


def open_standard_streams() -> None:
    """Lead those of descriptors 0 to 2 nowhere that were closed: the next file that is opened would get what is written there."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # It gets the lowest number that is free.
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def end_standard_error() -> None:
    """Drop what standard error does not take: the interpreter writes it out when it ends, and would end with 120."""
    try:
        sys.stderr.flush()
    except DROPPED:
        with contextlib.suppress(*DROPPED):
            _lead_nowhere(sys.stderr.fileno())


@contextlib.contextmanager
def own_output() -> Iterator[None]:
    """Send what is written to standard output inside the block to standard error, all but what goes to `results`.

    Both ways there are covered: `sys.stdout`, which then is `sys.stderr`, and descriptor 1, which children inherit. The
    descriptor stays as it is after the block: what user code left running, or does at exit, may still write there.
    """
    global _results
    if _results is not None:
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
        own = os.fdopen(os.dup(1), "w", encoding=stream.encoding, errors=stream.errors)
        _given = cast(TextIO, ResultStream(own))
        try:
            os.dup2(2, 1)
        except OSError:
            # Standard error is closed.
            _lead_nowhere(1)
    return _given
