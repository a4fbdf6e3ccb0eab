"""The Prefect API of a run: the user's, or a server of our own that lives exactly as long as the run."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import secrets
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster.errors import InputError, SecateurError
from flows.api_link import LINK
from flows.prefect_settings import client_environment, configured_api_url, environment, is_secret
from flows.signals import forget_child, register_child

# A start that fails ends its process, which is seen at once; on two busy cores a good one has taken 30 s.
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 2.0
PROBE_TIMEOUT_S = 5.0


def migrated_database() -> Path:
    """Return where an empty database with all of Prefect's migrations is kept: they take 5 s, a copy 1 ms."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "secateur" / f"prefect-{importlib.metadata.version('prefect')}.db"


class OwnServer:
    """Run one Prefect server: own session, loopback, a port of its own, own PREFECT_HOME, a password, no telemetry.

    It is killed by the kernel when the thread that called `start` ends (on Linux), so start it from the main thread.
    """

    def __init__(self, scratch: Path) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        # Two servers on one fresh PREFECT_HOME break each other's migration.
        self.home = Path(tempfile.mkdtemp(prefix="prefect-", dir=scratch))
        self.log = self.home / "server.log"
        self.auth = f"secateur:{secrets.token_urlsafe(24)}"
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._copied = False

    def start(self) -> None:
        """Start the process and return at once; `wait` says when it answers."""
        self._copy_database()
        self._start_process()

    def _copy_database(self) -> None:
        database = self.home / "prefect.db"
        try:
            shutil.copyfile(migrated_database(), database)
            self._copied = True
        except OSError:
            # None is kept, or only a part of it could be copied.
            database.unlink(missing_ok=True)

    def _start_process(self) -> None:
        # The port is bound here, so it cannot be lost to another process between the choice and the server's start.
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener, self.log.open("ab") as log:
            listener.bind(("127.0.0.1", 0))
            listener.listen(128)
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            descriptor = listener.fileno()
            program = Path(__file__).with_name("server_process.py")
            # -P: the program's folder and the working folder stay off the path, so nothing there shadows a library.
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(program), str(descriptor), str(os.getpid())],
                env=self._environment(),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(descriptor,),
                start_new_session=True,
            )
        register_child(self.process)

    def _environment(self) -> dict[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("PREFECT_") and not is_secret(name)
        }
        return inherited | {
            "PREFECT_HOME": str(self.home),
            "PREFECT_PROFILES_PATH": str(self.home / "profiles.toml"),
            "PREFECT_SERVER_API_AUTH_STRING": self.auth,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "false",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
            # No scheduler, no late-run marking: what Prefect's own temporary server leaves out.
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
            "DO_NOT_TRACK": "1",
        }

    def wait(self, timeout_s: float = START_TIMEOUT_S) -> str:
        """Return the API's URL once it answers. Raises SecateurError, with the log's last lines, when it does not."""
        deadline = time.monotonic() + timeout_s
        while not self._answers(deadline):
            if not self.alive():
                if not self._copied:
                    self._fail("ended before it answered")
                # Only a bad copy differs from what a fresh start does: drop it and start from nothing, with time of its own.
                self._discard_copy()
                self._start_process()
                deadline = time.monotonic() + timeout_s
            elif time.monotonic() > deadline:
                self._fail(f"did not answer within {timeout_s:g} s")
            else:
                time.sleep(0.02)
        if not self._copied:
            self._keep_database()
        return self.url

    def _answers(self, deadline: float) -> bool:
        try:
            patience = max(0.1, min(5.0, deadline - time.monotonic()))
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{self.url}/health", timeout=patience) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def alive(self) -> bool:
        """Return whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def _fail(self, what: str) -> None:
        tail = self.log.read_text(errors="replace").strip().splitlines()[-3:]
        self.stop()
        raise SecateurError(
            f"the Prefect server of this run {what}; its log {self.log} ends: {' | '.join(tail) or '(empty)'}. "
            "Mend the cause, or set PREFECT_API_URL to a server that runs"
        )

    def _discard_copy(self) -> None:
        self.stop()
        self._copied = False
        with contextlib.suppress(OSError):
            migrated_database().unlink(missing_ok=True)
        # What the log says of the copy would be taken for what ails the server that follows.
        for path in (*self.home.glob("prefect.db*"), self.log):
            path.unlink(missing_ok=True)

    def _keep_database(self) -> None:
        """Keep a copy of the new, empty database for the next server. Failing costs only the next one's start."""
        kept = migrated_database()
        scratch = kept.with_name(f".{kept.name}.{secrets.token_hex(8)}")
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with (
                contextlib.closing(sqlite3.connect(self.home / "prefect.db", timeout=1)) as source,
                contextlib.closing(sqlite3.connect(scratch)) as copy,
            ):
                source.backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")
            scratch.replace(kept)
        except (OSError, sqlite3.Error):
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)

    def stop(self) -> None:
        """Stop the process by handle: ask, wait, kill."""
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        forget_child(process)


def import_prefect() -> None:
    """Import what a flow run needs of Prefect; takes a second, so it is done while a server starts."""
    for module in ("prefect.flow_engine", "prefect.task_engine", "prefect.artifacts", "prefect.events.worker"):
        importlib.import_module(module)


@contextlib.contextmanager
def prefect_api(scratch: Path, meanwhile: Callable[[], object] | None = None) -> Iterator[str]:
    """Yield the URL of the Prefect API of this run, with this process set up to use it.

    The user's (PREFECT_API_URL or their active profile) where there is one: InputError unless it answers within 5 s.
    Otherwise a server of our own, stopped by handle at the end. `meanwhile()` is called while it starts. Prefect must
    not have been imported for its log to be kept off the terminal.
    """
    url = configured_api_url()
    if url is not None:
        with environment(client_environment(scratch, url)):
            LINK.reset(url)
            reason = LINK.probe(timeout_s=PROBE_TIMEOUT_S)
            if reason is not None:
                raise InputError(
                    f"the Prefect API {url} does not answer ({reason}); start it with `prefect server start`, "
                    "or unset PREFECT_API_URL to let the run use a server of its own"
                )
            import_prefect()
            if meanwhile is not None:
                meanwhile()
            try:
                yield url
            finally:
                LINK.close()
        return
    server = OwnServer(scratch)
    try:
        server.start()
        with environment(client_environment(server.home, server.url, own=True, auth=server.auth)):
            import_prefect()
            if meanwhile is not None:
                meanwhile()
            server.wait()
            LINK.reset(server.url, server.alive)
            try:
                yield server.url
            finally:
                LINK.close()
    finally:
        server.stop()
