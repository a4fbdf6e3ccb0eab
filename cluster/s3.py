"""Objects in S3: created once by conditional PUT, whole or not at all, tried again where the error is transient."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from cluster.errors import CorruptError, StoreRefusedError
from cluster.fingerprint import KEY_CHARS, sha256
from cluster.s3_errors import code_of

# A single PUT is create-only, a multipart upload overwrites in silence on some servers. S3 takes 5 GiB in one PUT; one that
# breaks off is sent again whole, which above this costs too much.
ONE_PUT_BYTES = 2**30
CHUNK_BYTES = 64 * 2**20
UPLOADS_AT_ONCE = 4
# A create-only record in the place of an object above the limit: it names the content by its sha256.
_RECORD = re.compile(rb"secateur-large-object 1 ([0-9a-f]{64}) ([0-9]{20})\n")
RECORD_BYTES = 110


def endpoint() -> str | None:
    """Return the endpoint that the environment names, None for AWS's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def trust_endpoint() -> None:
    """Wait for the endpoint as for one that has answered: the process that sent a store here has used it."""
    from cluster import s3_files

    s3_files.trust_endpoint(endpoint())


class S3Objects:
    """Keep objects below s3://BUCKET/PREFIX. Endpoint from AWS_ENDPOINT_URL, credentials from boto's chain.

    Wrong credentials, rights, bucket or endpoint are StoreRefusedError. Where not `needs_bucket`, as for users' data, nothing
    is in a bucket that is not there. An operation is tried for the whole budget of `cluster.retrying`, or `patience_s`.
    """

    def __init__(self, uri: str, needs_bucket: bool = True, patience_s: float = math.inf) -> None:
        from cluster.s3_files import PatientFileSystem

        self.root = uri.removeprefix("s3://").rstrip("/")
        self.bucket, _, self.prefix = self.root.partition("/")
        self.fs: Any = PatientFileSystem(
            needs_bucket=needs_bucket, patience_s=patience_s, endpoint_url=endpoint(), skip_instance_cache=True
        )
        # False once the server said that it does not know conditional PUT.
        self.conditional = True

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _call(self, method: str, name: str, **more: Any) -> Any:
        return self.fs.call_s3(method, Bucket=self.bucket, Key=self._key(name), **more)

    def _get(self, name: str) -> bytes:
        return cast(bytes, self._call("get_object", name)["Body"].data)

    def create(self, name: str, data: bytes) -> bool:
        if len(data) > ONE_PUT_BYTES:
            if self.exists(name):
                return False
            data = self._put_content(name, data)
        if self.conditional:
            try:
                self._call("put_object", name, Body=data, IfNoneMatch="*")
            except FileExistsError:
                return False
            except StoreRefusedError as error:
                if code_of(error) != "NotImplemented":
                    raise
                self.conditional = False
            else:
                return True
        if self.exists(name):
            return False
        self._call("put_object", name, Body=data)
        return True

    def _put_content(self, name: str, data: bytes) -> bytes:
        """Upload content under a name that holds its sha256, where writing twice changes nothing; return its record."""
        digest = sha256(data)
        self.replace(_content_name(name, digest), data)
        return b"secateur-large-object 1 %s %020d\n" % (digest.encode(), len(data))

    def replace(self, name: str, data: bytes) -> None:
        def upload() -> None:
            self.fs.pipe_file(
                f"{self.root}/{name}", data, mode="overwrite", chunksize=CHUNK_BYTES, max_concurrency=UPLOADS_AT_ONCE
            )

        _upload_whole(upload)

    def replace_from(self, name: str, path: Path) -> None:
        """Put the bytes of a local file under `name`, never all of them in memory."""
        place = f"{self.root}/{name}"
        _upload_whole(lambda: self.fs.put_file(str(path), place, chunksize=CHUNK_BYTES, max_concurrency=UPLOADS_AT_ONCE))

    def read(self, name: str) -> bytes:
        data = self._get(name)
        record = _RECORD.fullmatch(data)
        return data if record is None else self._read_content(name, record[1].decode(), int(record[2]))

    def _read_content(self, name: str, digest: str, size: int) -> bytes:
        content, seen, out = _content_name(name, digest), hashlib.sha256(), io.BytesIO()
        try:
            for start in range(0, size, CHUNK_BYTES):
                end = min(start + CHUNK_BYTES, size)
                data = self._call("get_object", content, Range=f"bytes={start}-{end - 1}")["Body"].data
                seen.update(data)
                out.write(data)
        except FileNotFoundError as error:
            raise CorruptError(f"{self.root}/{content}, which {name} names as its content, is gone") from error
        if seen.hexdigest() != digest:
            raise CorruptError(f"{self.root}/{content} does not have the sha256 in its name: it was changed after publishing")
        return out.getvalue()

    def exists(self, name: str) -> bool:
        try:
            self._call("head_object", name)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str) -> list[str]:
        cut = len(self._key(""))
        found: list[str] = []
        page: dict[str, Any] = {}
        while True:
            answer = self.fs.call_s3("list_objects_v2", Bucket=self.bucket, Prefix=f"{self._key(prefix)}/", **page)
            found += [entry["Key"][cut:] for entry in answer.get("Contents", []) if not entry["Key"].endswith("/")]
            if not answer.get("IsTruncated"):
                return sorted(found)
            page = {"ContinuationToken": answer["NextContinuationToken"]}

    def remove(self, name: str) -> None:
        record = self._record(name)
        self._call("delete_object", name)
        if record is not None:
            self._call("delete_object", _content_name(name, record[1].decode()))

    def _record(self, name: str) -> re.Match[bytes] | None:
        """Return the record that stands for a large object under `name`, None where there is none."""
        try:
            if self._call("head_object", name)["ContentLength"] != RECORD_BYTES:
                return None
            return _RECORD.fullmatch(self._get(name))
        except FileNotFoundError:
            return None

    def open(self, name: str) -> BinaryIO:
        """Open an object; of one above the limit the size is checked, and its sha256 only by `read`."""
        file = self.fs.open(f"{self.root}/{name}", "rb")
        if file.details["type"] != "file":
            raise FileNotFoundError(f"{self.root}/{name}")
        record = _RECORD.fullmatch(self._get(name)) if file.size == RECORD_BYTES else None
        if record is not None:
            content = _content_name(name, record[1].decode())
            file = self.fs.open(f"{self.root}/{content}", "rb")
            if file.size != int(record[2]):
                raise CorruptError(f"{self.root}/{content} has {file.size} bytes, {name} names it with {int(record[2])}")
        return cast(BinaryIO, file)

    def multipart_create(self, name: str, parts: Sequence[bytes]) -> bool:
        """Upload `parts` as one create-only object, and return whether the server carried it out."""
        upload = self._call("create_multipart_upload", name)["UploadId"]
        try:
            sent = []
            for number, part in enumerate(parts, 1):
                answer = self._call("upload_part", name, PartNumber=number, UploadId=upload, Body=part)
                sent.append({"PartNumber": number, "ETag": answer["ETag"]})
            self._call(
                "complete_multipart_upload", name, UploadId=upload, MultipartUpload={"Parts": sent}, IfNoneMatch="*"
            )
        except (FileExistsError, StoreRefusedError) as error:
            with contextlib.suppress(FileNotFoundError):
                self._call("abort_multipart_upload", name, UploadId=upload)
            if isinstance(error, StoreRefusedError) and code_of(error) != "NotImplemented":
                raise
            return False
        return True


def _content_name(name: str, digest: str) -> str:
    # With the name's digest: `remove` may take the content away, for no other name shares it.
    return f"large/{digest}-{sha256(name.encode())[:KEY_CHARS]}"


def _upload_whole(upload: Callable[[], object]) -> None:
    """Call `upload`, again where a multipart upload was completed and the reply lost: its second completion finds none."""
    for last in (False, False, True):
        try:
            upload()
            return
        except FileNotFoundError as error:
            if last or code_of(error) != "NoSuchUpload":
                raise
