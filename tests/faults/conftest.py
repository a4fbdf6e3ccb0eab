"""A Prefect server as a user has one: it outlives the runs that use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.server import OwnServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnServer]:
    """Give the server, running."""
    own = OwnServer(tmp_path / "server")
    own.start()
    try:
        own.wait()
        yield own
    finally:
        own.stop()
