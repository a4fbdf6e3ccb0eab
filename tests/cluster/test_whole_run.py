"""The whole job on three nodes with pretend GPUs, a node lost on the way: the same bytes as one process makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.session import RaySession
from cluster.storage import Store
from flows.config import RunConfig, load_config
from flows.plan import make_plan
from tasks.pool import SerialPool
from tests.faults.driver_case import CONFIG, published
from tests.flows.serial_run import run_serially

# One GPU a proxy, half of one a scorer: placement is real, arithmetic stays on the CPU.
SETTINGS = (
    "data.shard_rows=100", "score.scores=[el2n,grand,forgetting,random]", "proxy.epochs=2", "train.replicates=2",
    "train.steps=30", "proxy.resources.gpus=1", "score.resources.gpus=0.5", "train.resources.gpus=0.5",
)  # fmt: skip


def config() -> RunConfig:
    return load_config(CONFIG, SETTINGS)


def sealed(root: Path) -> dict[str, bytes]:
    found = {**published(root), **published(root, "stages/*/seal*.json")}
    return {name: data for name, (_, _, data) in found.items()}


def test_three_nodes_and_one_process_make_the_same_store(ray_session: Any, tmp_path: Path) -> None:
    plan = make_plan(config())
    serial = run_serially(plan, Store(str(tmp_path / "serial")), SerialPool())
    lost: list[Any] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "score" and not lost:
            lost.append(ray_session.cluster.list_all_nodes()[-1])
            ray_session.cluster.remove_node(lost[0], allow_graceful=False)

    ray_session.restore()
    try:
        with RaySession("auto", scratch=tmp_path / "scratch") as session:
            spread = run_serially(plan, Store(str(tmp_path / "spread")), session.pool(progress))
    finally:
        ray_session.restore()
    assert lost, "no node was taken away"
    assert sealed(tmp_path / "spread") == sealed(tmp_path / "serial")
    assert spread == serial
