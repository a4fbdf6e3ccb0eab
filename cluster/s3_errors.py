"""What an error of S3 means: worth another try, a name that is not there or taken, or a refusal with its next act."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from cluster.errors import StoreError


class ShortReadError(OSError):
    """Signal that a reply held other bytes than it announced."""


TRANSIENT_CODES = frozenset({
    "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "ServiceUnavailable",
    "InternalError", "InternalFailure", "RequestTimeout", "RequestTimeoutException", "IncompleteBody", "BadDigest",
    "XAmzContentSHA256Mismatch", "OperationAborted", "ConditionalRequestConflict",
})  # fmt: skip

_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_WRONG_KEY = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity", "401"})
_DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "403"})
_ELSEWHERE = frozenset({
    "PermanentRedirect", "TemporaryRedirect", "Redirect", "301", "302", "307", "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
})  # fmt: skip
_NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"})
# Exceptions of botocore and aiohttp by the name of a base class: both are imported only where S3 is used.
_BROKEN = frozenset({
    "HTTPClientError", "ConnectTimeoutError", "EndpointConnectionError", "ProxyConnectionError", "IncompleteReadError",
    "ClientPayloadError", "ClientConnectionError", "FSTimeoutError", "ResponseParserError", "CredentialRetrievalError",
})  # fmt: skip
NO_S3 = (
    "what answers is no S3 service: a proxy's or a login page, or AWS_ENDPOINT_URL names another server; "
    "correct the endpoint"
)


def answer_of(error: BaseException | None) -> Mapping[str, Any] | None:
    """Return the server's parsed answer that the error, or the error it was made from, holds; None without one."""
    while error is not None:
        found = getattr(error, "response", None)
        if isinstance(found, Mapping):
            return found
        error = error.__cause__
    return None


def code_of(error: BaseException) -> str:
    """Return the code of the server's error, as in SlowDown, or the error's type where no server answered."""
    answer = answer_of(error)
    return type(error).__name__ if answer is None else str(answer.get("Error", {}).get("Code", ""))


def status_of(error: BaseException) -> int:
    """Return the HTTP status of the server's error, 0 where no server answered."""
    answer = answer_of(error) or {}
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _is_page(error: BaseException) -> bool:
    """Return whether a web page came where S3 sends XML. Gateways before S3 send pages too, with a status above 500."""
    answer = answer_of(error)
    if answer is None:
        return "ResponseParserError" in _names(error) and "<html" in str(error).lower()
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    from_s3 = any(name.startswith("x-amz") for name in headers)
    return not from_s3 and "html" in str(headers.get("content-type")) and status_of(error) < 500 and status_of(error) != 429


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def is_transient(error: BaseException) -> bool:
    """Return whether a later try may succeed: throttling, server errors, broken connections, time-outs, cut replies."""
    if isinstance(error, StoreError) or _is_page(error):
        return False
    if answer_of(error) is not None:
        status = status_of(error)
        return code_of(error) in TRANSIENT_CODES or (status >= 500 and status not in (501, 505)) or status in (408, 429)
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return False
    names = _names(error)
    if names & _NO_CREDENTIALS or ("SSLError" in names and "certificate" in str(error).lower()):
        return False
    return isinstance(error, ShortReadError | TimeoutError | ConnectionError) or bool(names & (_BROKEN | {"SSLError"}))


def unknown_host(error: BaseException) -> tuple[str, bool] | None:
    """Return the host whose name cannot be resolved, and whether there is no such name or only no answer yet; else None."""
    seen: BaseException | None = error
    host = ""
    while seen is not None:
        host = host or str(getattr(seen, "host", ""))
        if isinstance(seen, socket.gaierror):
            return host, seen.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
        seen = seen.__cause__ or seen.__context__
    return None


def is_taken(error: BaseException) -> bool:
    """Return whether a conditional request met an object that is there, or is another."""
    return code_of(error) in ("PreconditionFailed", "412")


def is_absent(error: BaseException) -> bool:
    """Return whether the object, not its bucket, is what is not there."""
    if _is_page(error) or not isinstance(error, FileNotFoundError):
        return False
    return code_of(error) in ("NoSuchKey", "NoSuchUpload", "404", "FileNotFoundError")


def refusal(error: BaseException) -> str:
    """Return what the server refuses and the next act. Holds codes only: a server's own text may repeat what it was
    sent."""
    code, names = code_of(error), _names(error)
    if _is_page(error):
        return NO_S3
    if code in _EXPIRED:
        words = "the credentials have expired; renew them"
    elif code in _WRONG_KEY:
        words = "the credentials are not known there or do not match; check the environment's access key and secret"
    elif code in _DENIED:
        words = "access is denied; use credentials that may read, write, list and delete there"
    elif code == "NoSuchBucket":
        words = "there is no such bucket; make it or correct its name"
    elif code in _ELSEWHERE:
        words = "the bucket lies in another region or at another endpoint; set AWS_DEFAULT_REGION or AWS_ENDPOINT_URL"
    elif code == "400":
        # All that a reply to HEAD can say.
        words = "the request is refused with no reason given, as for expired credentials or a wrong region; renew or correct them"
    elif code == "RequestTimeTooSkewed":
        words = "this machine's clock is wrong; set it"
    elif names & _NO_CREDENTIALS:
        words = "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or an instance role"
    elif "SSLError" in names:
        words = "the endpoint's certificate is not trusted; set AWS_CA_BUNDLE or correct AWS_ENDPOINT_URL"
    elif isinstance(error, ValueError):
        words = "the endpoint or the bucket's name is not valid; correct AWS_ENDPOINT_URL or the address"
    else:
        words = "the request is refused; look the code up in the server's documentation"
    return f"{words} ({code})"
