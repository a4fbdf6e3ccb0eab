"""A report that several write at once: what they leave is one writer's files under that writer's seal."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import StoreError
from cluster.fingerprint import sha256
from cluster.storage import Store
from tasks.report import publish
from tasks.report.inputs import PageInputs, StageTiming
from tasks.report.publish import FILES, read_results, report_name, sealed_digests, write_report
from tasks.report.results import build_results
from tests.tasks import report_case as case

pytestmark = pytest.mark.timeout(300)

RUN = "mnist-abc"
BESIDE = {"results.parquet": b"the table", "curves.svg": b"the figure"}


@functools.cache
def _made(folder: str) -> tuple[dict[str, Any], PageInputs]:
    store = Store(folder)
    arms = [
        case.arm(store, "random", "random", 0.1, [90.0, 90.4], test=100),
        case.arm(store, "el2n-exact", "exact", 0.1, [91.0, 91.2], alpha=0.5, score="el2n", test=100),
    ]
    return build_results(RUN, case.index_seal(test=100), arms, 0.5, store), case.page_inputs(arms)


@pytest.fixture(scope="session")
def writing(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Store, float], str]:
    """Return what writes the report of a run whose training took so many seconds."""
    folder = tmp_path_factory.mktemp("made")

    def write(store: Store, seconds: float) -> str:
        results, page = _made(str(folder))
        return write_report(store, RUN, results, replace(page, stages=[StageTiming("train", seconds, True, 4)]), BESIDE)

    return write


@pytest.fixture(params=["files", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    if request.param == "files":
        yield Store(str(tmp_path / "store"))
        return
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing-only")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    made = Store("s3://report-bucket/prefix")
    made.objects.fs.mkdir("report-bucket")  # type: ignore[attr-defined]
    yield made
    server.stop()


def assert_whole(store: Store) -> None:
    wanted = sealed_digests(store.read(report_name(RUN, "seal.json")))
    assert set(wanted) == set(FILES)
    assert {name: sha256(store.read(report_name(RUN, name))) for name in wanted} == wanted
    assert read_results(store, RUN) is not None


def test_a_writer_between_any_two_writes_of_another_leaves_one_report(
    store: Store, writing: Callable[[Store, float], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = store.replace
    for place in range(len(FILES) + 1):
        left = [place]

        def interrupted(name: str, data: bytes, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                # Another run writes its report, from its first file to its seal, right before this write.
                with monkeypatch.context() as other:
                    other.setattr(store, "replace", whole)
                    writing(store, 2.0)
            whole(name, data)

        monkeypatch.setattr(store, "replace", interrupted)
        writing(store, 1.0)
        assert left[0] < 0
        assert_whole(store)


def test_writers_at_once_leave_one_report(tmp_path: Path, writing: Callable[[Store, float], str]) -> None:
    store = Store(str(tmp_path / "store"))
    writing(store, 0.0)
    for number in range(5):
        gate = threading.Barrier(3)
        failed: list[BaseException] = []

        def write(seconds: float, gate: threading.Barrier = gate, failed: list[BaseException] = failed) -> None:
            gate.wait(60)
            try:
                writing(store, seconds)
            except BaseException as error:
                failed.append(error)
                raise

        threads = [threading.Thread(target=write, args=(float(3 * number + writer),)) for writer in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert_whole(store)


def test_what_never_agrees_is_one_message_with_the_way_to_go_on(
    tmp_path: Path, writing: Callable[[Store, float], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "PAUSE_S", 0.0)
    store = Store(str(tmp_path / "store"))
    whole, seals = store.replace, []

    def spoiled(name: str, data: bytes) -> None:
        if name.endswith("/seal.json"):
            seals.append(name)
        whole(name, data + b" " if name.endswith("index.html") else data)

    monkeypatch.setattr(store, "replace", spoiled)
    with pytest.raises(StoreError, match=f"secateur report {RUN} --store {store.uri}"):
        writing(store, 1.0)
    assert len(seals) == publish.ROUNDS
