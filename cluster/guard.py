"""A small process that ends what a local Ray session leaves behind when its driver is killed, and says what happened.

The kernel ends the daemons that the driver started, but the agents below them first report that to a server which is
gone too, and stay for over a minute (measured: 90 s with ray 2.60). And where one of those daemons dies first, Ray ends
the driver within 0.3 s without a word, running none of its clean-up. Run as a script with the session's private folder
and the driver's process id; it acts when its standard input closes, that is when the driver has ended, in whatever way.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path

SECONDS = 8.0


def users_of(folder: str, driver: int) -> list[int]:
    """Return the processes, the driver left out, that have a file below `folder` open or in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in (os.getpid(), driver):
            continue
        with contextlib.suppress(OSError):
            if folder.encode() + b"/" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
                continue
            for link in (entry / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(link.readlink()).startswith(folder + "/"):
                        found.append(int(entry.name))
                        break
    return found


def watch() -> tuple[str | None, str | None]:
    """Wait for the driver to end; return what it wanted said, None if it closed in order, and which daemon died first.

    The driver writes one line of JSON once Ray runs, {"farewell": text, "daemons": {name: pid}}, and an empty one when it
    begins to close.
    """
    farewell, died = None, None
    daemons: dict[int, str] = {}
    pending = b""
    while True:
        for descriptor in select.select([0, *daemons], [], [])[0]:
            if descriptor != 0:
                died = died or daemons[descriptor]
                del daemons[descriptor]
                continue
            data = os.read(0, 65536)
            if not data:
                return farewell, died
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                told = json.loads(line) if line else {}
                farewell, daemons = told.get("farewell"), {}
                for name, pid in told.get("daemons", {}).items():
                    # A kernel without it, or a daemon that is gone already: nothing to name.
                    with contextlib.suppress(OSError, AttributeError):
                        daemons[os.pidfd_open(pid)] = name


def main(folder: str, driver: int) -> None:
    """Wait for the driver's end, say its last words, then kill the processes of the session until none is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    farewell, died = watch()
    if farewell:
        # Which of the two was first cannot be told: the kernel ends the daemons of a killed driver before all of it is gone.
        cause = f"Ray's {died} died, and this process ended with it" if died else "this process ended without cleaning up"
        with contextlib.suppress(OSError):
            sys.stderr.write(f"secateur: {cause}; {farewell}\n")
            sys.stderr.flush()
    # The readers of the driver's output wait until nobody holds it open.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        users = users_of(folder, driver)
        for pid in users:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not users:
            break
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
