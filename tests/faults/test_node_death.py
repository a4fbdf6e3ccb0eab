"""Whole runs on three nodes with pretend GPUs while workers, actors and nodes die in every stage: the same bytes.

Two runs, each with its kills in every one of proxy, score, merge, select and train: in one a worker's process is killed and
then all actors are through Ray, in the other a node is lost.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from cluster.pool import RayPool
from cluster.session import RaySession
from cluster.storage import Store
from flows.config import RunConfig, load_config
from flows.plan import make_plan
from tasks.pool import SerialPool
from tests.faults import driver_case as case
from tests.flows.serial_run import run_serially

STAGES = ("proxy", "score", "merge", "select", "train")

# One GPU a proxy, half of one a scorer: placement is real, arithmetic stays on the CPU. A worker a node: each costs its start.
SETTINGS = (
    "data.shard_rows=150", "score.scores=[el2n,grand,forgetting,random]", "proxy.epochs=2", "train.replicates=3",
    "train.steps=30", "proxy.resources.gpus=1", "score.resources.gpus=0.5", "train.resources.gpus=0.5",
    "data.resources.workers=2", "score.resources.workers=3", "select.resources.workers=3", "train.resources.workers=3",
)  # fmt: skip

Objects = dict[str, tuple[int, int, bytes]]


def config(*more: str) -> RunConfig:
    return load_config(case.CONFIG, (*SETTINGS, *more))


def sealed(root: Path) -> Objects:
    return {**case.published(root), **case.published(root, "stages/*/seal*.json")}


def contents(objects: Objects) -> dict[str, bytes]:
    return {name: data for name, (_, _, data) in objects.items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return every sealed part and seal, and the results, of the same run in one process."""
    root = tmp_path_factory.mktemp("undisturbed")
    results = run_serially(make_plan(config()), Store(str(root)), SerialPool())
    return contents(sealed(root)), results


def hosts() -> list[psutil.Process]:
    """Return the processes that hold a worker."""
    return [process for process in psutil.Process().children(recursive=True) if case.is_worker(process)]


class Killer:
    """In each stage, do the kills one after the other, each when one more item is done and others are left."""

    def __init__(self, root: Path, *kills: Callable[[RayPool], None]) -> None:
        self.root, self.kills = root, kills
        self.pool: RayPool | None = None
        self.killed = dict.fromkeys(STAGES, 0)
        self.kept: Objects = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in STAGES or self.killed[stage] == len(self.kills) or done >= total:
            return
        assert self.pool is not None
        self.kept |= sealed(self.root)
        self.kills[self.killed[stage]](self.pool)
        self.killed[stage] += 1


def run_under(killer: Killer, root: Path, scratch: Path, *more: str) -> dict[str, Any]:
    with RaySession("auto", scratch=scratch) as session:
        killer.pool = session.pool(killer)
        return run_serially(make_plan(config(*more)), Store(str(root)), killer.pool)


def check(killer: Killer, root: Path, results: dict[str, Any], undisturbed: tuple[dict[str, bytes], Any]) -> None:
    assert killer.killed == dict.fromkeys(STAGES, len(killer.kills))
    end = sealed(root)
    # What was there at a kill is the same file still, not a copy with equal bytes.
    assert {name: end[name] for name in killer.kept} == killer.kept
    assert contents(end) == undisturbed[0]
    assert results == undisturbed[1]
    rows = [
        example
        for path in root.glob("stages/merge-*/parts/*.parquet")
        for example in pq.read_table(path).column("example_id").to_pylist()
    ]
    assert len(rows) == len(set(rows)) == results["dataset"]["n_train"]


@pytest.mark.timeout(600)
def test_workers_and_actors_killed_in_every_stage(
    ray_session: Any, tmp_path: Path, undisturbed: tuple[dict[str, bytes], Any], caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    def kill_process(pool: RayPool) -> None:
        os.kill(hosts()[-1].pid, signal.SIGKILL)

    def kill_actors(pool: RayPool) -> None:
        # All of them at once, as when somebody stops the whole pool from outside.
        for handle in list(pool._live):
            ray.kill(handle, no_restart=True)

    killer = Killer(tmp_path / "store", kill_process, kill_actors)
    ray_session.restore()
    with caplog.at_level(logging.INFO, "secateur.ray"):
        # Two for each stage: all of them are started again twice in each.
        two = [f"{part}.resources.workers=2" for part in ("score", "select", "train")]
        results = run_under(killer, tmp_path / "store", tmp_path / "scratch", *two)
    check(killer, tmp_path / "store", results, undisturbed)
    for stage in STAGES:
        assert f"{stage}: a worker died" in caplog.text


@pytest.mark.timeout(600)
def test_nodes_lost_in_every_stage(
    ray_session: Any, tmp_path: Path, undisturbed: tuple[dict[str, bytes], Any]
) -> None:
    lost: list[str] = []

    def kill(pool: RayPool) -> None:
        # What was lost in the stage before is back; one of the two nodes with a GPU has to do the rest of this one.
        ray_session.restore()
        node = min(ray_session.cluster.worker_nodes, key=lambda node: node.node_id)
        lost.append(node.node_id)
        ray_session.cluster.remove_node(node, allow_graceful=False)

    killer = Killer(tmp_path / "store", kill)
    ray_session.restore()
    try:
        results = run_under(killer, tmp_path / "store", tmp_path / "scratch")
    finally:
        ray_session.restore()
    assert len(set(lost)) == len(STAGES)
    check(killer, tmp_path / "store", results, undisturbed)

