"""The server of a run: its own, whole, private, gone with the run; or the user's, if it answers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError, SecateurError
from flows import server as module
from flows.api_link import LINK
from flows.prefect_settings import client_environment, configured_api_url, is_secret, redact
from flows.server import OwnServer, migrated_database, prefect_api


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def gone(pid: int, within_s: float) -> bool:
    """Return whether the process `pid` ends within some seconds."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
    return False


def test_own_server_is_private(server: OwnServer) -> None:
    assert server.process is not None
    pid = server.process.pid
    assert server.url.startswith("http://127.0.0.1:")
    assert status(f"{server.url}/health") == 200
    assert status(f"{server.url}/admin/version") == 401
    assert os.getsid(pid) == pid
    secret = server.auth.partition(":")[2]
    assert secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert server.home.stat().st_mode & 0o077 == 0


def test_two_runs_at_once_do_not_collide(tmp_path: Path, server: OwnServer) -> None:
    servers = [OwnServer(tmp_path), OwnServer(tmp_path)]
    try:
        for own in servers:
            own.start()
        urls = {own.wait() for own in servers}
        assert len(urls | {server.url}) == 3
        assert all(status(f"{url}/health") == 200 for url in urls)
        processes = [own.process for own in servers]
    finally:
        for own in servers:
            own.stop()
    assert all(process is not None and process.poll() is not None for process in processes)
    assert not any(own.alive() for own in servers)


def test_broken_database_copy_was_replaced_by_a_good_one(server: OwnServer) -> None:
    with contextlib.closing(sqlite3.connect(migrated_database())) as connection:
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM flow_run").fetchone() == (0,)
    # The log is of the server that runs: what ailed the copy is no part of it.
    assert "not a database" not in server.log.read_text()


def test_server_dies_with_a_killed_driver(start_script: Any, tmp_path: Path) -> None:
    process = start_script(
        """
        import signal, sys
        from pathlib import Path
        from flows.server import OwnServer
        own = OwnServer(Path(sys.argv[1]))
        own.start()
        print(own.process.pid, flush=True)
        signal.pause()
        """,
        str(tmp_path),
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert not gone(pid, 0.0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert gone(pid, 5.0)


def test_server_that_cannot_start_is_an_error_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own = OwnServer(tmp_path)
    good = own._environment()
    monkeypatch.setattr(own, "_environment", lambda: good | {"PREFECT_SERVER_API_PORT": "not a number"})
    own.start()
    with pytest.raises(SecateurError, match=r"ended before it answered.*server\.log.*PREFECT_API_URL"):
        own.wait()
    assert not own.alive()


def test_users_api_that_is_not_there_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
    with pytest.raises(InputError, match=r"does not answer.*prefect server start"), prefect_api(tmp_path):
        pass


def test_users_api_that_is_silent_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_TIMEOUT_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/api")
        with pytest.raises(InputError, match="does not answer"), prefect_api(tmp_path):
            pass


def test_users_api_is_used_and_left_running(
    tmp_path: Path, server: OwnServer, server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", server.url)
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "7")
    called: list[str] = []
    with prefect_api(tmp_path, meanwhile=lambda: called.append("yes")) as url:
        assert url == server.url
        assert os.environ["PREFECT_CLIENT_MAX_RETRIES"] == "7"
        assert os.environ["PREFECT_LOGGING_SETTINGS_PATH"].startswith(str(tmp_path))
        assert LINK.alive()
    assert called == ["yes"]
    assert "PREFECT_LOGGING_SETTINGS_PATH" not in os.environ
    assert server.alive()


def test_profile_names_the_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_PROFILES_PATH", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    assert configured_api_url() is None
    (tmp_path / "profiles.toml").write_text(
        'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "http://host:4200/api"\n[profiles.other]\n'
    )
    assert configured_api_url() == "http://host:4200/api"
    monkeypatch.setenv("PREFECT_PROFILE", "other")
    assert configured_api_url() is None
    (tmp_path / "profiles.toml").write_text("not = [toml")
    assert configured_api_url() is None


def test_secrets_do_not_reach_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcdefgh")
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_12345678")
    environment = OwnServer(tmp_path)._environment()
    assert "AWS_SECRET_ACCESS_KEY" not in environment
    assert "PREFECT_API_KEY" not in environment
    assert "PATH" in environment
    assert not is_secret("PATH")
    assert redact("key abcdefgh.") == "key <AWS_SECRET_ACCESS_KEY>."


def test_logging_file_survives_odd_paths(tmp_path: Path) -> None:
    odd = tmp_path / "run $HOME ${x}: 'a'"
    variables = client_environment(odd, "http://127.0.0.1:1/api")
    text = Path(variables["PREFECT_LOGGING_SETTINGS_PATH"]).read_text()
    import string

    import yaml

    loaded = yaml.safe_load(string.Template(text).substitute({}))
    assert loaded["handlers"]["file"]["filename"] == str(odd / "prefect.log")
