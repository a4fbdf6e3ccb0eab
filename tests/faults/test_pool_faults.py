"""What the pool does when workers and nodes die under it; whole runs that lose nodes are in `test_node_death.py`."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pool_workers import Dies, Marks, pause

from cluster.errors import StageError
from tasks.spec import Resources

HERE = str(Path(__file__).resolve().parents[1] / "cluster")


@pytest.fixture
def pool(ray_session: Any) -> Iterator[Any]:
    from cluster.pool import RayPool

    pool = RayPool(code=[HERE], wait_seconds=2.0)
    yield pool
    pool.cancel()
    ray_session.restore()


def _tries(folder: Path) -> Counter[int]:
    return Counter(int(path.name[3:].rpartition("-")[0]) for path in folder.glob("try*"))


def test_a_worker_that_exits_is_replaced_and_its_item_done_again(pool: Any, tmp_path: Path) -> None:
    items = [1, 2, 101, 3, 102, 4, 5, 6]
    resources = Resources(workers=2, retries=2)
    got = dict(pool.map(partial(Dies, str(tmp_path)), items, label="score", resources=resources))
    assert got == {index: item * 2 for index, item in enumerate(items)}
    tries = _tries(tmp_path)
    assert tries[101] == tries[102] == 2
    # At most the item beside a dying one is done twice.
    assert sum(tries.values()) <= len(items) + 4


def test_an_item_that_always_kills_its_worker_is_given_up_and_named(pool: Any, tmp_path: Path) -> None:
    items = [1, 2, 3, -7, 4, 5, 6]
    got = []
    with pytest.raises(StageError, match=r"1 of 7 items failed \(-7: its worker died 3 times\)"):
        for _, result in pool.map(
            partial(Dies, str(tmp_path)), items, label="score", resources=Resources(workers=2, retries=2)
        ):
            got.append(result)
    assert sorted(got) == [2, 4, 6, 8, 10, 12]
    tries = _tries(tmp_path)
    assert tries[-7] == 3
    assert max(count for item, count in tries.items() if item > 0) <= 2


def test_a_killed_process_is_replaced(pool: Any, tmp_path: Path) -> None:
    results = pool.map(
        partial(Marks, str(tmp_path), 0.2), range(20), label="score", resources=Resources(workers=2, retries=1)
    )
    got = [next(results)[0]]
    victim = int(next(tmp_path.glob("[0-9]*")).name.partition("-")[0])
    os.kill(victim, signal.SIGKILL)
    got += [index for index, _ in results]
    assert sorted(got) == list(range(20))


def test_when_no_node_is_left_for_a_worker_the_stage_ends_with_what_is_missing(
    pool: Any, ray_session: Any, tmp_path: Path
) -> None:
    results = pool.map(
        partial(Marks, str(tmp_path), 0.2), range(60), label="score", resources=Resources(gpus=1, retries=1)
    )
    next(results)
    for node in list(ray_session.cluster.worker_nodes):
        ray_session.cluster.remove_node(node, allow_graceful=False)
    with pytest.raises(StageError, match=r"no node has had 1 CPU and 1 GPU .*of 60 items are left"):
        list(results)


def test_short_items_that_only_waited_at_a_dying_worker_are_not_charged(pool: Any, tmp_path: Path) -> None:
    # With no retries, whoever is charged is given up: the killer, and at most the two before it, whose replies it may
    # have taken along, out of up to 16 that were at the worker.
    items = [*range(1, 61), -7, *range(61, 100)]
    got = []
    with pytest.raises(StageError, match=r"[123] of 100 items failed .*-7: its worker died 1 times"):
        for _, result in pool.map(
            partial(Dies, str(tmp_path)), items, label="score", resources=Resources(workers=1, retries=0)
        ):
            got.append(result)
    assert len(got) >= 97
    assert len(set(got)) == len(got)


def test_all_workers_lost_at_once_while_they_start_are_started_again(pool: Any, tmp_path: Path) -> None:
    import ray

    def kill_all() -> None:
        while len(pool._live) < 3:
            pause(0.001)
        for handle in list(pool._live):
            ray.kill(handle, no_restart=True)

    killer = threading.Thread(target=kill_all, daemon=True)
    killer.start()
    got = dict(
        pool.map(partial(Marks, str(tmp_path), 0.05), range(9), label="score", resources=Resources(workers=3, retries=1))
    )
    killer.join()
    assert {index: item for index, (item, _) in got.items()} == {index: index for index in range(9)}
