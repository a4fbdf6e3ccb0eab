"""The process of a Prefect server of our own: serves on a socket it inherits, and dies with its parent.

Run as a file by `flows.server`, never imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends, SIGKILL included; exit if that has happened already."""
    # Only Linux has it; elsewhere the parent's own clean-up is all there is.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def main() -> None:
    """Serve the Prefect API on the inherited listening socket."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with(parent)
    listener = socket.socket(fileno=descriptor)

    import uvicorn
    from prefect.server.api.server import create_app

    config = uvicorn.Config(create_app(), log_level="warning", lifespan="on", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
