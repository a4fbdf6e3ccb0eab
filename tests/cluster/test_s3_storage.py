"""The S3 store against a small server in this process; tests/s3 holds it to a real one, through faults."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster import retrying, s3_errors
from cluster.errors import InputError
from cluster.record import Unit
from cluster.storage import Store, open_uri, read_uri, replace_uri

SECRET = "wJalrXUtnFEMI-secret"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Store:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = "b-" + str(abs(hash(request.node.name)))
    store = Store(f"s3://{bucket}/some/prefix")
    store.objects.fs.mkdir(bucket)  # type: ignore[attr-defined]
    return store


def test_create_is_refused_where_the_name_is_taken(store: Store) -> None:
    assert store.create("a/b", b"first")
    assert not store.create("a/b", b"second")
    assert store.read("a/b") == b"first"


def test_one_of_many_writers_wins(store: Store) -> None:
    start = threading.Barrier(6)

    def race(number: int) -> bool:
        mine = Store(store.uri)
        start.wait()
        return mine.create("a/b", b"%d" % number)

    with ThreadPoolExecutor(6) as threads:
        won = list(threads.map(race, range(6)))
    assert sum(won) == 1
    assert store.read("a/b") == b"%d" % won.index(True)


def test_replace_list_remove_open(store: Store) -> None:
    store.replace("runs/r/beat", b"1")
    store.replace("runs/r/beat", b"2")
    assert store.list("runs/r") == ["runs/r/beat"]
    # Another instance writes: no listing of this one is stale.
    Store(store.uri).create("runs/r/attempts/x.json", b"{}")
    assert store.list("runs/r") == ["runs/r/attempts/x.json", "runs/r/beat"]
    assert store.list("runs/other") == []
    with store.open("runs/r/beat") as file:
        assert file.seekable()
        assert file.read() == b"2"
    assert store.exists("runs/r/beat")
    store.remove("runs/r/beat")
    store.remove("runs/r/beat")
    assert not store.exists("runs/r/beat")
    for act in (store.read, store.open):
        with pytest.raises(FileNotFoundError):
            act("runs/r/beat")


def test_user_objects_by_uri(store: Store) -> None:
    uri = f"{store.uri}/mine/out.bin"
    replace_uri(uri, b"one")
    replace_uri(uri, b"two")
    assert read_uri(uri) == b"two"
    with open_uri(uri) as file:
        assert file.read(1) == b"t"


def test_no_secret_in_a_pickle_or_a_record(store: Store) -> None:
    data = pickle.dumps(store)
    assert SECRET.encode() not in data
    assert b"AKIDTEST" not in data
    assert pickle.loads(data).uri == store.uri
    seal = Unit(store, "stage", "0" * 64).publish_seal([], {})
    assert SECRET.encode() not in seal.to_bytes()
    assert SECRET not in repr(store) + store.url("a")


class AnsweredError(Exception):
    """Be an error of botocore's, with the server's parsed answer."""

    def __init__(self, code: str, status: int, kind: str = "application/xml") -> None:
        super().__init__(code)
        meta = {"HTTPStatusCode": status, "HTTPHeaders": {"content-type": kind}}
        self.response = {"Error": {"Code": code}, "ResponseMetadata": meta}


@pytest.mark.parametrize(
    ("error", "cause", "transient"),
    [
        (OSError(5, "conflict"), AnsweredError("ConditionalRequestConflict", 409), True),
        (OSError(16, "SlowDown"), AnsweredError("SlowDown", 503), True),
        (OSError(121, "x"), AnsweredError("SomethingNew", 502), True),
        (OSError(5, "x"), AnsweredError("502", 502, "text/html"), True),
        (OSError(38, "x"), AnsweredError("NotImplemented", 501), False),
        (PermissionError("x"), AnsweredError("ExpiredToken", 400), False),
        (FileNotFoundError("x"), AnsweredError("404", 404, "text/html"), False),
        (OSError(22, None), AnsweredError("PreconditionFailed", 412), False),
        (TimeoutError(), None, True),
        (ConnectionResetError(), None, True),
        (s3_errors.ShortReadError("x"), None, True),
        (PermissionError("Forbidden"), None, False),
        (FileNotFoundError("NoSuchKey"), None, False),
        (OSError(22, None), None, False),
        (ValueError("x"), None, False),
    ],
)
def test_which_errors_are_transient(error: Exception, cause: Exception | None, transient: bool) -> None:
    error.__cause__ = cause
    assert s3_errors.is_transient(error) is transient


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("ExpiredToken", 400, "have expired; renew"),
        ("InvalidAccessKeyId", 403, "are not known"),
        ("403", 403, "access is denied"),
        ("NoSuchBucket", 404, "no such bucket"),
        ("301", 301, "another region"),
        ("RequestTimeTooSkewed", 403, "clock"),
        ("400", 400, "no reason given"),
        ("QuotaExceeded", 403, "is refused"),
    ],
)
def test_a_refusal_names_the_next_act_and_the_code(code: str, status: int, words: str) -> None:
    error = OSError(5, SECRET)
    error.__cause__ = AnsweredError(code, status)
    text = s3_errors.refusal(error)
    assert words in text and f"({code})" in text and SECRET not in text


def test_waits_grow_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(retrying.time, "monotonic", lambda: now[0])
    patience, waits = retrying.Patience(), []
    while (wait := patience.delay("PutObject of x", "SlowDown", 100.0)) is not None:
        waits.append(wait)
        now[0] += wait
    assert now[0] == pytest.approx(100.0)
    assert len(waits) > 12 and max(waits) <= retrying.LONGEST_DELAY_S and waits[0] <= 0.2


def test_a_missing_bucket_is_wrong_input(store: Store) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        Store("s3://no-such-bucket-here/x").check_writable()
    store.check_writable()
    assert store.list("tmp") == []
