"""The S3 file system: every request tried again by the time that passed, and every reply checked to be whole and S3's.

Imports s3fs: only for those that talk to S3.
"""

from __future__ import annotations

import asyncio
import math
import re
import uuid
from collections.abc import Mapping
from typing import Any

import s3fs
from fsspec.asyn import sync_wrapper

from cluster import retrying
from cluster.errors import StoreError, StoreOutageError, StoreRefusedError
from cluster.s3_errors import (
    NO_S3,
    ShortReadError,
    answer_of,
    code_of,
    is_absent,
    is_taken,
    is_transient,
    refusal,
    unknown_host,
)

CONNECT_TIMEOUT_S = 10.0
# Between two bytes of a reply, not for the whole of it.
READ_TIMEOUT_S = 30.0
# A server that takes no bytes keeps a request waiting without either time-out.
SLOWEST_UPLOAD = 2**18
ABORT_S = 5.0
# Tells one create from another that sent the same bytes.
WRITER = "secateur-writer"

# What each reply of an S3 server holds; a page that a proxy sends with status 200 does not.
_HOLDS = {
    "head_object": "ETag",
    "get_object": "ETag",
    "put_object": "ETag",
    "upload_part": "ETag",
    "list_objects_v2": "Name",
    "create_multipart_upload": "UploadId",
}
# Endpoints that have answered this process, in whatever way.
_answered: set[str] = set()


def trust_endpoint(endpoint: str | None) -> None:
    """Wait for this endpoint as for one that has answered: it did so to the process that sent a store here."""
    _answered.add(endpoint or "")


class WholeBody:
    """Be the body of a reply that was read to its end."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def read(self) -> bytes:
        """Return all of it."""
        return self.data

    def close(self) -> None:
        """Do nothing: the connection is free already."""


class PatientFileSystem(s3fs.S3FileSystem):  # type: ignore[misc]
    """Be s3fs with one request, one try below it, and our tries around it.

    A create-only PUT that meets its own first write, whose reply was lost, succeeds. What a later try cannot mend is
    StoreRefusedError, an object that is not there FileNotFoundError; so is, where not `needs_bucket`, a missing bucket. What
    was tried for all its time, `patience_s` at most, is StoreOutageError.
    """

    # Of s3fs: its tries, and those of boto below, would multiply with ours.
    retries = 1

    def __init__(self, needs_bucket: bool = True, patience_s: float = math.inf, **options: Any) -> None:
        super().__init__(
            anon=False,
            use_listings_cache=False,
            # One GET for a whole object: several would need a HEAD before them.
            max_concurrency=1,
            config_kwargs={
                "retries": {"total_max_attempts": 1, "mode": "standard"},
                "connect_timeout": min(CONNECT_TIMEOUT_S, patience_s),
                "read_timeout": min(READ_TIMEOUT_S, patience_s),
            },
            **options,
        )
        self.needs_bucket, self.patience_s = needs_bucket, patience_s

    async def _call_s3(self, method: str, *more: Any, **arguments: Any) -> Any:
        what = f"{_words(method)} of {arguments.get('Bucket', '')}/{arguments.get('Key', arguments.get('Prefix', ''))}"
        patience = retrying.Patience()
        creates = method == "put_object" and "IfNoneMatch" in arguments
        if creates:
            # A PUT may be sent twice below this too: aiohttp does where a kept connection broke.
            arguments["Metadata"] = {WRITER: uuid.uuid4().hex}
        while True:
            try:
                answer = await self._try(method, *more, **arguments)
            except Exception as error:
                if answer_of(error) is not None:
                    _answered.add(self.endpoint_url or "")
                if is_taken(error) and "IfNoneMatch" in arguments:
                    if creates and await self._wrote(arguments):
                        return {"ETag": ""}
                    raise FileExistsError(f"{what}: the name is taken") from error
                if is_taken(error):
                    raise StoreError(f"{what}: the object changed while it was read; run again") from error
                if not is_transient(error):
                    missing_bucket = not self.needs_bucket and code_of(error) == "NoSuchBucket"
                    if isinstance(error, StoreError) or is_absent(error) or missing_bucket:
                        raise
                    raise StoreRefusedError(f"{what}: {refusal(error)}") from error
                delay = patience.delay(what, code_of(error), self._budget(method, error))
                if delay is None and not self._answers(error) and (unknown := unknown_host(error)):
                    raise StoreRefusedError(
                        f"{what}: the endpoint is {self.place}, and the host name {unknown[0]!r} cannot be resolved; correct "
                        "AWS_ENDPOINT_URL, for AWS itself AWS_DEFAULT_REGION, or mend this machine's DNS"
                    ) from error
                if delay is None:
                    raise StoreOutageError(
                        f"{what}: still failing after {patience.tries} tries in {patience.elapsed:.0f} s "
                        f"({code_of(error)}); check that the store at {self.place} runs and can be reached, then run again"
                    ) from error
                await asyncio.sleep(delay)
            else:
                _answered.add(self.endpoint_url or "")
                return answer

    # s3fs binds the name to its own method when it is defined.
    call_s3 = sync_wrapper(_call_s3)

    @property
    def place(self) -> str:
        """Return the endpoint's host and port, for messages; never what else its URL may hold."""
        found = re.match(r"[a-z]+://(?:[^/@]*@)?([^/]+)", self.endpoint_url or "")
        return found[1] if found else "AWS"

    def _budget(self, method: str, error: Exception) -> float:
        if method == "abort_multipart_upload":
            return ABORT_S
        if self._answers(error):
            return min(retrying.BUDGET_S, self.patience_s)
        unknown = unknown_host(error)
        # A name that does not exist is a wrong one; where the DNS gives no answer, it may soon.
        return 0.0 if unknown and unknown[1] else min(retrying.BUDGET_S, retrying.FIRST_CONTACT_S, self.patience_s)

    def _answers(self, error: Exception) -> bool:
        """Return whether the endpoint has answered this process, with this very error perhaps."""
        return answer_of(error) is not None or (self.endpoint_url or "") in _answered

    async def _try(self, method: str, *more: Any, **arguments: Any) -> Any:
        limit = None
        if method != "get_object":
            limit = 2 * READ_TIMEOUT_S + CONNECT_TIMEOUT_S + _size(arguments.get("Body")) / SLOWEST_UPLOAD
        async with asyncio.timeout(limit):
            answer = await super()._call_s3(method, *more, **arguments)
        if _HOLDS.get(method, "ResponseMetadata") not in answer:
            raise StoreRefusedError(f"{_words(method)} at {self.place}: {NO_S3}")
        if method == "get_object":
            # Read here, so that a body that breaks off is a failed try too.
            try:
                data = await answer["Body"].read()
            finally:
                answer["Body"].close()
            _check_length(answer, arguments.get("Range"), len(data))
            answer["Body"] = WholeBody(data)
        return answer

    async def _wrote(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether the object that is there was written by this very PUT, whose reply never came."""
        try:
            head = await self._call_s3("head_object", Bucket=arguments["Bucket"], Key=arguments["Key"])
        except FileNotFoundError:
            return False
        return bool(head.get("Metadata", {}).get(WRITER) == arguments["Metadata"][WRITER])


def _size(body: Any) -> int:
    return len(body) if isinstance(body, bytes | bytearray | memoryview) else 0


def _words(method: str) -> str:
    return "".join(word.capitalize() for word in method.split("_"))


def _check_length(answer: Mapping[str, Any], wanted: str | None, size: int) -> None:
    """Raise ShortReadError unless `size` bytes are what the reply announced, and the range is the one asked for."""
    if size != answer.get("ContentLength", size):
        raise ShortReadError(f"a reply of {size} bytes announced {answer['ContentLength']}")
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
    if asked is None:
        return
    given = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", str(answer.get("ContentRange")))
    if given is None:
        raise ShortReadError(f"asked for {wanted}, got a reply that names no range")
    first, last, total = (int(number) for number in given.groups())
    end = min(int(asked[2] or total - 1), total - 1)
    if (first, last) != (int(asked[1]), end) or size != end - first + 1:
        raise ShortReadError(f"asked for {wanted}, got {size} bytes as {answer['ContentRange']}")
