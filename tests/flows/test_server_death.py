"""Prefect's API dies, hangs or refuses in the middle of a run: the stages go on, one warning, the exit code is theirs."""

from __future__ import annotations

import signal
import socket
import threading
from pathlib import Path

import pytest

from flows.prefect_settings import client_environment
from flows.server import OwnServer
from tests.faults import driver_case as case

# Small in all: what matters is that every stage is passed with the API gone.
SETTINGS = (
    "data.limit=400", "data.shard_rows=400", "score.scores=[el2n]", "select.arms=[{protocol: topk, score: el2n}]",
    "proxy.seeds=1", "proxy.epochs=2", "train.replicates=2", "train.steps=20", "train.full=false", *case.ONE_WORKER,
)  # fmt: skip
MIDDLE = "stages/proxy-*/seal.json"


def check(out: str, error: str, code: int | None) -> None:
    """Assert that a run ended well, with results, and said one thing about Prefect."""
    assert code == 0, error
    assert "random" in out and "report: " in out
    warnings = [line for line in error.splitlines() if "warning" in line]
    assert len(warnings) == 1, error
    assert "is lost" in warnings[0] and "its results are not affected" in warnings[0]
    assert "Traceback" not in error and "prefect." not in error


@pytest.mark.xdist_group("server-death")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_own_server_that_dies_or_hangs_does_not_end_the_run(tmp_path: Path, number: signal.Signals) -> None:
    store = tmp_path / "store"
    process = case.start(store, settings=SETTINGS)
    case.wait_for(process, lambda: case.exists(store, MIDDLE))
    processes = case.family(process)
    next(child for child in processes if case.is_program(child, "server_process.py")).send_signal(number)
    out, error = process.communicate(timeout=240)
    check(out, error, process.returncode)
    case.assert_gone(processes)


class Relay:
    """Pass connections on to a server, until told to answer each request with status 503 instead."""

    def __init__(self, port: int) -> None:
        self.to = port
        self.refuses = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.open: list[socket.socket] = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.refuses.is_set():
                threading.Thread(target=self.refuse, args=(client,), daemon=True).start()
                continue
            server = socket.create_connection(("127.0.0.1", self.to))
            self.open += [client, server]
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self.pump, args=(source, target), daemon=True).start()

    @staticmethod
    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            target.close()

    @staticmethod
    def refuse(client: socket.socket) -> None:
        with client:
            try:
                client.recv(65536)
                client.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            except OSError:
                return

    def begin_to_refuse(self) -> None:
        self.refuses.set()
        for connection in self.open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def close(self) -> None:
        self.begin_to_refuse()
        self.listener.close()


@pytest.mark.timeout(600)
def test_a_users_server_that_answers_503_does_not_end_the_run(tmp_path: Path, server: OwnServer) -> None:
    store = tmp_path / "store"
    relay = Relay(int(server.url.split(":")[2].partition("/")[0]))
    url = f"http://127.0.0.1:{relay.port}/api"
    variables = client_environment(tmp_path / "client", url, own=True, auth=server.auth)
    process = case.start(store, settings=SETTINGS, variables=variables)
    try:
        case.wait_for(process, lambda: case.exists(store, MIDDLE))
        relay.begin_to_refuse()
        out, error = process.communicate(timeout=240)
    finally:
        relay.close()
    check(out, error, process.returncode)
    assert server.alive()
