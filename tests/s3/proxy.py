"""A forwarder before an S3 server that does to chosen requests what networks and busy servers do to some."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.s3.gateway import ACCESS, SECRET

ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{0}</Code><Message>{1} is what it was</Message></Error>'
PAGE = b"<!DOCTYPE html><html><body><p>Sign in to this network</p></body></html>"
# Faults that answer in the server's place: status and code.
REPLIES = {
    "503": (503, "SlowDown"),
    "500": (500, "InternalError"),
    "409": (409, "ConditionalRequestConflict"),
    "expired": (400, "ExpiredToken"),
    "denied": (403, "AccessDenied"),
    "501": (501, "NotImplemented"),
}
RESET = struct.pack("ii", 1, 0)
HUNG_S = 60.0


@dataclass
class Fault:
    """Do `kind` to the next `times` requests of `method` (any: "") whose path and query hold `text`.

    Kinds: those of REPLIES; reset (before the server saw the request), lost (the server did it, its reply is lost), cut (half
    of the reply's body), hang (no reply), slow (a reply after half a second), page (a web page with status 200), forget (the
    server never sees If-None-Match).
    """

    kind: str
    times: int = 1
    method: str = ""
    text: str = ""
    done: int = 0

    def takes(self, method: str, path: str) -> bool:
        """Count and return whether the fault befalls this request."""
        if self.done >= self.times or self.method not in ("", method) or self.text not in path:
            return False
        self.done += 1
        return True


class FaultProxy:
    """Forward from a port of loopback to `target`, a URL, keeping the Host header: it is part of the signature."""

    def __init__(self, target: str) -> None:
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.released = threading.Event()
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy.serve(self, target)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

            def handle(self) -> None:
                # The client goes away in the middle of a request, as tests have it do.
                with contextlib.suppress(ConnectionError):
                    super().handle()

            def finish(self) -> None:
                with contextlib.suppress(OSError, ValueError):
                    super().finish()

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 64

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and let go of the requests that hang."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    @contextlib.contextmanager
    def doing(self, *faults: Fault) -> Iterator[None]:
        """Add faults for the length of a block, and check that each befell as many requests as it was to."""
        self.faults, self.requests = list(faults), []
        try:
            yield
        finally:
            self.faults = []
        assert all(fault.done == fault.times or fault.times > 1000 for fault in faults), (faults, self.requests)

    def _fault(self, method: str, path: str) -> str:
        with self._lock:
            self.requests.append((method, path))
            return next((fault.kind for fault in self.faults if fault.takes(method, path)), "")

    def serve(self, handler: BaseHTTPRequestHandler, target: str) -> None:
        """Answer one request."""
        method, path = handler.command, handler.path
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        kind = self._fault(method, path)
        if kind in REPLIES:
            status, code = REPLIES[kind]
            text = ERROR.format(code, SECRET).encode()
            return _reply(handler, status, {"Content-Type": "application/xml"}, text, announced=len(text))
        if kind == "page":
            return _reply(handler, 200, {"Content-Type": "text/html"}, PAGE, announced=len(PAGE))
        if kind == "reset":
            return _reset(handler)
        if kind == "hang":
            self.released.wait(HUNG_S)
            return _reset(handler)
        if kind == "slow":
            time.sleep(0.5)
        headers = {name: value for name, value in handler.headers.items() if name.lower() not in ("expect", "connection")}
        if kind == "forget":
            headers = _signed_without(method, path, headers, body)
        try:
            status, given, data = _forward(target, method, path, headers, body)
        except OSError:
            # The server is gone: so is this connection.
            return _reset(handler)
        if kind == "lost":
            return _reset(handler)
        announced = int(given.pop("content-length", len(data)))
        return _reply(handler, status, given, data[: len(data) // 2] if kind == "cut" else data, announced)


def _forward(
    target: str, method: str, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(target).netloc, timeout=HUNG_S)
    try:
        connection.request(method, path, body=body or None, headers=headers)
        answer = connection.getresponse()
        dropped = ("connection", "transfer-encoding", "keep-alive")
        given = {name.lower(): value for name, value in answer.getheaders() if name.lower() not in dropped}
        return answer.status, given, answer.read()
    finally:
        connection.close()


def _reply(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], data: bytes, announced: int) -> None:
    handler.send_response_only(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(announced))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(data)
        handler.wfile.flush()
        handler.close_connection = handler.close_connection or len(data) < announced


def _reset(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    handler.close_connection = True
    handler.connection.close()


def _signed_without(method: str, path: str, headers: dict[str, str], body: bytes) -> dict[str, str]:
    """Return the headers without the condition, which botocore signs, and a new signature."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    dropped = ("if-none-match", "authorization", "x-amz-date", "x-amz-content-sha256")
    kept = {name: value for name, value in headers.items() if name.lower() not in dropped}
    host = next(value for name, value in kept.items() if name.lower() == "host")
    request = AWSRequest(method=method, url=f"http://{host}{path}", data=body, headers=kept)
    S3SigV4Auth(Credentials(ACCESS, SECRET), "s3", "us-east-1").add_auth(request)
    return {**dict(request.headers.items()), "Host": host}
