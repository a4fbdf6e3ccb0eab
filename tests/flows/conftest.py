"""One Prefect server for all tests of the flows, and a way to run a script as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.api_link import LINK
from flows.prefect_settings import client_environment, environment
from flows.server import OwnServer, migrated_database

ROOT = Path(__file__).parents[2]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    """Give the session's Prefect server, running; it had to begin with a broken copy of an empty database."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        kept = migrated_database()
        kept.parent.mkdir()
        kept.write_bytes(b"not a database, whatever its name says" * 100)
        own = OwnServer(tmp_path_factory.mktemp("prefect"))
        own.start()
        try:
            own.wait()
            yield own
        finally:
            own.stop()


@pytest.fixture
def server_environment(server: OwnServer) -> dict[str, str]:
    """Give the variables with which a process uses the session's server."""
    return client_environment(server.home, server.url, own=True, auth=server.auth)


@pytest.fixture
def prefect_url(server: OwnServer, server_environment: dict[str, str]) -> Iterator[str]:
    """Use the session's server in this process for one test."""
    with environment(server_environment):
        LINK.reset(server.url, server.alive)
        yield server.url
        LINK.close()


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[Start]:
    """Give a function that starts Python source as a process; SIGINT works in it, whatever started the tests."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        path = tmp_path / f"script{len(started)}.py"
        path.write_text(textwrap.dedent(source))
        base = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        base |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'flows'}", "PREFECT_PROFILES_PATH": str(tmp_path / "none")}
        # A child inherits that SIGINT is ignored, as it is where the tests run in the background of a shell.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(
            [sys.executable, str(path), *arguments],
            env=base | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        signal.signal(signal.SIGINT, before)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
