"""The S3 store against a server: create-only, retried, without listing caches or secrets in pickles."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cluster import s3
from cluster.errors import InputError, StoreError
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


def test_a_large_object_is_one_put(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fs = store.objects.fs  # type: ignore[attr-defined]
    call = fs._call_s3

    async def counted(method: str, *args: Any, **more: Any) -> Any:
        calls.append(method)
        return await call(method, *args, **more)

    monkeypatch.setattr(fs, "_call_s3", counted)
    assert store.create("a/large", bytes(60 * 2**20))
    assert not store.create("a/large", b"x")
    assert set(calls) <= {"put_object", "head_object"}
    assert calls.count("put_object") == 2


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


def test_transient_errors_are_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3.time, "sleep", lambda _: None)
    fs = store.objects.fs  # type: ignore[attr-defined]
    put, errors = fs.pipe_file, [ConnectionResetError("reset"), OSError(16, "Please reduce your request rate")]

    def flaky(*args: Any, **more: Any) -> Any:
        if errors:
            raise errors.pop(0)
        return put(*args, **more)

    monkeypatch.setattr(fs, "pipe_file", flaky)
    assert store.create("a/b", b"x")
    assert not errors
    assert store.read("a/b") == b"x"


def test_a_create_whose_answer_was_lost_meets_its_own_object(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3.time, "sleep", lambda _: None)
    fs = store.objects.fs  # type: ignore[attr-defined]
    put, tries = fs.pipe_file, []

    def lost(*args: Any, **more: Any) -> Any:
        tries.append(1)
        result = put(*args, **more)
        if len(tries) == 1:
            raise ConnectionResetError("reset after the server had it")
        return result

    monkeypatch.setattr(fs, "pipe_file", lost)
    # Not its own creation as far as it can tell: the caller reads the winner back and adopts it.
    part = Unit(store, "stage", "0" * 64).publish_part("a.bin", b"12345", len)
    assert len(tries) == 2
    assert (part.rows, part.size) == (5, 5)


def test_an_error_that_stays_is_told_with_its_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3.time, "sleep", lambda _: None)
    fs = store.objects.fs  # type: ignore[attr-defined]

    def always(*_: Any, **__: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(fs, "cat_file", always)
    with pytest.raises(StoreError, match=r"read a/b: still failing after 6 tries \(TimeoutError\)"):
        store.read("a/b")


@pytest.mark.parametrize(
    ("error", "cause", "transient"),
    [
        (OSError(5, "conflict"), Exception("An error occurred (ConditionalRequestConflict) when calling PutObject"), True),
        (OSError(16, "SlowDown"), None, True),
        (TimeoutError(), None, True),
        (PermissionError("Forbidden"), None, False),
        (FileNotFoundError("NoSuchKey"), None, False),
        (OSError(22, None), None, False),
        (ValueError("x"), None, False),
    ],
)
def test_which_errors_are_transient(error: Exception, cause: Exception | None, transient: bool) -> None:
    error.__cause__ = cause
    assert s3.is_transient(error) is transient


def test_a_missing_bucket_is_wrong_input(store: Store) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        Store("s3://no-such-bucket-here/x").check_writable()
    store.check_writable()
    assert store.list("tmp") == []
