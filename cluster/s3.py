"""Objects in S3: one PUT a write, conditional where it must be create-only, retried where the error is transient."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar, cast

from cluster.errors import StoreError

T = TypeVar("T")

# S3 refuses a single PUT above 5 GiB; a multipart "create" overwrites in silence on some servers.
MAX_OBJECT_BYTES = 5 * 2**30
ATTEMPTS = 6
_TRANSIENT_WORDS = (
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "RequestTimeout",
    "Connection",
    "reduce your",
    # Another conditional PUT of the same name is under way; which of the two wins, a later try will tell.
    "ConditionalRequestConflict",
    "OperationAborted",
)


def is_transient(error: BaseException) -> bool:
    """Return whether a later try may succeed: throttling, server errors, broken connections, time-outs."""
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return False
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    name = type(error).__name__
    # s3fs drops the code of an error it does not know, which is still in the error it came from.
    text = f"{name} {error} {error.__cause__ or ''}"
    return any(word in text for word in _TRANSIENT_WORDS) or "Timeout" in name


def with_retries(act: Callable[[], T], what: str, attempts: int = ATTEMPTS) -> T:
    """Return `act()`, tried again with exponential backoff and full jitter while its error is transient."""
    for attempt in range(1, attempts + 1):
        try:
            return act()
        except Exception as error:
            if not is_transient(error):
                raise
            if attempt == attempts:
                raise StoreError(f"{what}: still failing after {attempts} tries ({type(error).__name__})") from error
            time.sleep(random.uniform(0, min(20.0, 0.2 * 2**attempt)))
    raise AssertionError("unreachable")


class S3Objects:
    """Keep objects below s3://BUCKET/PREFIX. Endpoint from AWS_ENDPOINT_URL, credentials from boto's chain."""

    def __init__(self, uri: str) -> None:
        import s3fs

        self.root = uri.removeprefix("s3://").rstrip("/")
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True, "anon": False}
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            options["endpoint_url"] = endpoint
        self.fs: Any = s3fs.S3FileSystem(**options)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _put(self, name: str, data: bytes, mode: str) -> None:
        if len(data) > MAX_OBJECT_BYTES:
            raise StoreError(f"{name} has {len(data)} bytes; one PUT takes {MAX_OBJECT_BYTES}: use smaller shards")
        self.fs.pipe_file(self._path(name), data, mode=mode, chunksize=MAX_OBJECT_BYTES + 1)

    def create(self, name: str, data: bytes) -> bool:
        def act() -> bool:
            try:
                self._put(name, data, "create")
            except FileExistsError:
                return False
            except OSError as error:
                # The loser of a conditional PUT gets a bare OSError(22) from s3fs.
                if not is_transient(error) and self.exists(name):
                    return False
                raise
            return True

        return with_retries(act, f"create {name}")

    def replace(self, name: str, data: bytes) -> None:
        with_retries(lambda: self._put(name, data, "overwrite"), f"replace {name}")

    def read(self, name: str) -> bytes:
        return cast(bytes, with_retries(lambda: self.fs.cat_file(self._path(name)), f"read {name}"))

    def exists(self, name: str) -> bool:
        return bool(with_retries(lambda: self.fs.exists(self._path(name)), f"look for {name}"))

    def list(self, prefix: str) -> list[str]:
        def act() -> list[str]:
            try:
                return cast(list[str], self.fs.find(self._path(prefix)))
            except FileNotFoundError:
                return []

        cut = len(self.root) + 1
        return sorted(path[cut:] for path in with_retries(act, f"list {prefix}"))

    def remove(self, name: str) -> None:
        def act() -> None:
            try:
                self.fs.rm_file(self._path(name))
            except FileNotFoundError:
                return

        with_retries(act, f"remove {name}")

    def open(self, name: str) -> BinaryIO:
        return cast(BinaryIO, with_retries(lambda: self.fs.open(self._path(name), "rb"), f"open {name}"))
