"""The Ray pool against the serial one: results, errors, places, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from pool_workers import Big, Fails, Marks, Overlap, Square, Unmakeable, Where

from cluster.errors import InputError, StageError, StoreOutageError, outage_of
from tasks.pool import FunctionWorker, SerialPool
from tasks.spec import Resources

HERE = str(Path(__file__).parent)


@pytest.fixture
def pool(ray_session: Any) -> Iterator[Any]:
    from cluster.pool import RayPool

    pool = RayPool(code=[HERE])
    yield pool
    pool.cancel()


def _gone(pids: set[int], seconds: float = 5.0) -> bool:
    processes = []
    for pid in pids:
        try:
            processes.append(psutil.Process(pid))
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


def test_every_item_comes_back_once(pool: Any) -> None:
    told: list[tuple[str, int, int]] = []
    pool.progress = lambda *news: told.append(news)
    items = list(range(100))
    got = list(pool.map(Square, items, label="square", resources=Resources(), done=7))
    assert sorted(got) == list(SerialPool().map(Square, items, label="square", resources=Resources()))
    assert told == [("square", 7 + count, 107) for count in range(1, 101)]


def test_nothing_to_do_starts_nothing(pool: Any) -> None:
    assert list(pool.map(Unmakeable, [], label="none", resources=Resources())) == []
    assert not pool._live


def test_items_and_results_of_some_megabytes(pool: Any) -> None:
    got = dict(pool.map(Big, [bytes(size) for size in (10, 3_000_000)], label="big", resources=Resources(workers=1)))
    assert [len(got[0]), len(got[1])] == [10, 3_000_000]


def test_load_of_the_next_overlaps_compute_which_never_runs_twice(pool: Any) -> None:
    got = dict(pool.map(partial(Overlap, 6), range(6), label="overlap", resources=Resources(workers=1)))
    assert got == dict.fromkeys(range(6), (True, 1))


def test_workers_spread_over_nodes_with_fixed_threads_and_no_gpus(pool: Any, tmp_path: Path) -> None:
    got = dict(pool.map(partial(Where, str(tmp_path), 3), range(60), label="where", resources=Resources(cpus=2)))
    assert len({node for _, node, _, _ in got.values()}) == 3
    assert len({pid for pid, _, _, _ in got.values()}) == 3
    assert {(threads, gpus) for _, _, threads, gpus in got.values()} == {("2", "")}


def test_gpu_workers_hold_a_gpu_each(pool: Any, ray_session: Any, tmp_path: Path) -> None:
    got = dict(pool.map(partial(Where, str(tmp_path), 2), range(20), label="where", resources=Resources(gpus=1)))
    assert len({node for _, node, _, _ in got.values()}) == 2
    head = ray_session.cluster.head_node.node_id
    assert head not in {node for _, node, _, _ in got.values()}
    assert {gpus for _, _, _, gpus in got.values()} == {"0"}


def test_workers_stay_warm_for_the_next_map_of_the_same_shape(pool: Any, tmp_path: Path) -> None:
    def pids(name: str, **more: float) -> set[int]:
        (tmp_path / name).mkdir()
        worker = partial(Where, str(tmp_path / name), 2)
        resources = Resources(workers=2, **more)
        return {pid for _, (pid, *_) in pool.map(worker, range(8), label=name, resources=resources)}

    first = pids("first")
    assert len(first) == 2
    assert pids("again") == first
    other = pids("other", cpus=0.5)
    assert not other & first
    assert _gone(first)
    pool.release()
    assert _gone(other)


def test_two_maps_at_once(pool: Any) -> None:
    first = pool.map(Square, range(30), label="a", resources=Resources(workers=2))
    second = pool.map(Square, range(30), label="b", resources=Resources(workers=2, cpus=0.5))
    got = [(next(first), next(second)) for _ in range(30)]
    assert sorted(a for a, _ in got) == sorted(b for _, b in got) == [(i, i * i) for i in range(30)]


def test_failed_items_are_named_after_the_others_are_done(pool: Any) -> None:
    items = ["ok", "value", "clash", "fine", "load", "result", "good"]
    got = []
    with pytest.raises(StageError, match="4 of 7 items failed") as caught:
        for _, result in pool.map(Fails, items, label="score", resources=Resources(workers=2)):
            got.append(result)
    assert sorted(got) == ["fine", "good", "ok"]
    for words in ("value: ValueError: bad row 17", "ClashingError: this and that", "load: OSError: disk on fire"):
        assert words in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)
    assert any("pool_workers.py" in note for note in caught.value.__cause__.__notes__)


def test_wrong_input_is_raised_at_once_and_ends_the_workers(pool: Any) -> None:
    with pytest.raises(InputError, match="labels are wrong") as caught:
        list(pool.map(Fails, ["ok", "input"] + ["fine"] * 50, label="score", resources=Resources(workers=1)))
    assert type(caught.value) is InputError
    assert not pool._live


def test_an_outage_of_the_store_comes_through_whatever_was_made_of_it(pool: Any) -> None:
    with pytest.raises(StoreOutageError, match="still failing after 9 tries") as caught:
        list(pool.map(Fails, ["ok", "outage"], label="score", resources=Resources(workers=1)))
    assert type(caught.value) is StoreOutageError
    # An error of input and output may pass: no ItemsError, and no outage.
    with pytest.raises(StageError, match="disk on fire") as other:
        list(pool.map(Fails, ["ok", "load"], label="score", resources=Resources(workers=1)))
    assert type(other.value) is StageError and outage_of(other.value) is None


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("input", InputError, "no such model"),
        ("x", StageError, "cannot be made .KeyError"),
        ("dies", StageError, "died 3 times in a row"),
    ],
)
def test_a_worker_that_cannot_be_made(pool: Any, kind: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        list(pool.map(partial(Unmakeable, kind), [1, 2], label="score", resources=Resources(workers=1, retries=1)))
    assert not pool._live


def test_closing_the_iterator_ends_the_workers(pool: Any, tmp_path: Path) -> None:
    results = pool.map(partial(Marks, str(tmp_path), 0.05), range(1000), label="long", resources=Resources(workers=3))
    next(results)
    results.close()
    assert _gone({int(path.name.partition("-")[0]) for path in tmp_path.glob("*")})


def test_an_exception_of_the_consumer_ends_the_workers(pool: Any, tmp_path: Path) -> None:
    worker = partial(Marks, str(tmp_path), 0.05)

    def consume() -> None:
        for _ in pool.map(worker, range(999), label="long", resources=Resources(workers=3)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert _gone({int(path.name.partition("-")[0]) for path in tmp_path.glob("*")})


def test_cancel_from_another_thread(pool: Any, tmp_path: Path) -> None:
    import threading

    results = pool.map(partial(Marks, str(tmp_path), 60), range(10), label="long", resources=Resources(workers=2))
    first = threading.Timer(3.0, pool.cancel)
    first.start()
    with pytest.raises(StageError, match="cancelled"):
        list(results)
    first.join()
    assert _gone({int(path.name.partition("-")[0]) for path in tmp_path.glob("*")})
    with pytest.raises(StageError, match="cancelled"):
        list(pool.map(Square, [1], label="after", resources=Resources()))


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        (Resources(gpus=2), r"2 GPU, and the cluster has room for 0 such .*2 CPU, 1 GPU"),
        (Resources(cpus=64), "64 CPU and 0 GPU"),
    ],
)
def test_resources_that_can_never_be_had(pool: Any, resources: Resources, words: str) -> None:
    with pytest.raises(InputError, match=words):
        pool.map(Square, [1], label="score", resources=resources)
    assert not pool._live


def test_a_share_of_a_gpu(pool: Any, tmp_path: Path) -> None:
    resources = Resources(cpus=0.5, gpus=0.5)
    got = dict(pool.map(partial(Where, str(tmp_path), 4), range(40), label="where", resources=resources))
    assert len({pid for pid, _, _, _ in got.values()}) == 4
    assert {gpus for _, _, _, gpus in got.values()} == {"0"}


def test_a_local_function_travels(pool: Any) -> None:
    offset = 5
    worker = partial(FunctionWorker, lambda item: item + offset)
    assert sorted(pool.map(worker, [1, 2], label="add", resources=Resources())) == [(0, 6), (1, 7)]
