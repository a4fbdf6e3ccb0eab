"""SIGINT and SIGTERM: one exception in the main thread, a bounded clean-up, and an exit code that says which."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# The contract is an exit within 10 s of the first signal; the last second is for the exit itself.
GRACE_S = 9.0

# Wrappers that forward a terminal's Ctrl-C, and Prefect, which sends SIGTERM to itself again, deliver one wish twice.
SAME_WISH_S = 0.2

_children: dict[int, subprocess.Popen[Any]] = {}
_guard: SignalGuard | None = None


class Interrupted(KeyboardInterrupt):
    """Signal that the user or the system asked the run to stop; what was committed stays committed."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """Return 128 + the signal's number: 130 or 143."""
        return 128 + self.signum


def register_child(process: subprocess.Popen[Any]) -> None:
    """Have `process` killed, by handle, should this process have to exit at once."""
    _children[process.pid] = process


def forget_child(process: subprocess.Popen[Any]) -> None:
    """Take `process`, which has been stopped, off the list of what is killed."""
    _children.pop(process.pid, None)


def current_guard() -> SignalGuard | None:
    """Return the guard in force, or None outside `interruptible`."""
    return _guard


class SignalGuard:
    """Turn the first signal into Interrupted, raised once in the main thread, and let a second one exit at once."""

    def __init__(
        self, grace_s: float = GRACE_S, until_exit: bool = False, last_words: Callable[[], str] | None = None
    ) -> None:
        self.received: int | None = None
        self._last_words = last_words
        self._until_exit = until_exit
        self._grace_s = grace_s
        self._first_at = 0.0
        # A job that was started in the background of a shell, or under nohup, ignores SIGINT and goes on doing so.
        self._signals = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]

    def check(self) -> None:
        """Raise Interrupted when a signal came whose exception was swallowed on the way."""
        if self.received is not None:
            raise Interrupted(self.received)

    def install(self) -> None:
        """Put this guard's handlers in place, again where a library replaced them (Ray and Prefect both do).

        Does nothing outside the main thread.
        """
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                signal.signal(number, self._handle)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Hold this guard's handlers in place inside the block, and put back what was there before."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in self._signals}
        self.install()
        try:
            yield
        finally:
            for number, handler in before.items():
                # None: the handler was not set from Python and cannot be put back from it.
                if handler is not None:
                    signal.signal(number, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received = signum
            self._first_at = now
            watch = threading.Timer(self._grace_s, self._give_up, (signum,))
            watch.daemon = True
            watch.start()
            raise Interrupted(signum)
        if signum != self.received or now - self._first_at > SAME_WISH_S:
            self._say_last_words()
            exit_at_once(128 + signum)

    def _say_last_words(self) -> None:
        """Say what is left to say, past the streams: what the signal interrupted may be a write to one of them."""
        if self._last_words is not None:
            with contextlib.suppress(OSError):
                os.write(2, f"secateur: {self._last_words()}\n".encode())

    def _give_up(self, signum: int) -> None:
        if _guard is self or (self._until_exit and self.received is not None):
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"secateur: clean-up took over {self._grace_s:g} s after the interrupt; exiting now\n")
                sys.stderr.flush()
            self._say_last_words()
            exit_at_once(128 + signum)


def exit_at_once(code: int) -> NoReturn:
    """Kill the registered children by handle and leave with `code`, running no clean-up."""
    for process in list(_children.values()):
        with contextlib.suppress(OSError):
            process.kill()
    os._exit(code)


@contextlib.contextmanager
def interruptible(
    grace_s: float = GRACE_S, *, until_exit: bool = False, last_words: Callable[[], str] | None = None
) -> Iterator[SignalGuard]:
    """Guard the block against SIGINT and SIGTERM.

    The first one raises Interrupted in the main thread, so that `with` and `finally` clean up; a second one, or
    clean-up that takes longer than `grace_s`, exits at once with 128 + the signal's number. The old handlers come back
    at the end. With `until_exit`, for a command that only has to exit then, the time limit holds beyond the block: what
    libraries do at the interpreter's exit counts too. `last_words` are said where it exits at once.
    """
    global _guard
    outer, guard = _guard, SignalGuard(grace_s, until_exit, last_words)
    _guard = guard
    try:
        with guard.installed():
            yield guard
    finally:
        _guard = outer
