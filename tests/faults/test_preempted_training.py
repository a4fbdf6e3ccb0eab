"""Trainings whose worker is killed in mid-training: they go on from the last checkpoint to an undisturbed run's bytes."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.record import Seal
from cluster.storage import Store
from tasks.pool import SerialPool
from tasks.spec import Resources
from tasks.train import TrainInputs, TrainJob, TrainSpec, TrainUnit, run_train_job, train_key, train_stage
from tests.faults import preempted_loss
from tests.tasks.stage_case import DATA, indexed, part_bytes
from tests.tasks.training_case import free_port, spawn

STEPS, BATCH = 36, 32
POINTS, GRID = 5, [8, 15, 22, 29, 36]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give the folder that the loss writes to; while the marker is there, nobody dies."""
    folder = tmp_path / "told"
    folder.mkdir()
    (folder / preempted_loss.MARKER).touch()
    return folder


@pytest.fixture
def pool(ray_session: Any) -> Iterator[Any]:
    from cluster.pool import RayPool

    pool = RayPool(wait_seconds=60.0)
    yield pool
    pool.cancel()


def spec_of(folder: Path, rank: int, world_size: int) -> TrainSpec:
    use = {"use": "tests.faults.preempted_loss:loss", "args": {"folder": str(folder), "at": 20, "rank": rank}}
    return TrainSpec.model_validate(
        {"model": {"use": "mlp", "args": {"hidden": [16]}}, "steps": STEPS, "batch_size": BATCH, "lr": 0.02,
         "checkpoint_every_s": 0, "recipe": {"loss": use}, "world_size": world_size,
         "curve": POINTS, "resources": {"workers": 1, "retries": 2}}
    )  # fmt: skip


def train(spec: TrainSpec, store: Store, index: Seal, pool: Any, launch: Any = None) -> Seal:
    unit = TrainUnit("full", 1.0, 0, None, None, STEPS, 3)
    key = train_key(spec, keep=1.0, seed=3, source_key=index.key, index_key=index.key, code="")
    return train_stage(spec, TrainInputs(DATA, index, "", [(key, unit)]), store, pool, launch)[0]


def assert_went_on(undisturbed: list[int], calls: list[int], num_train: int) -> None:
    """Assert that one process did everything undisturbed, and of two the second only what followed a checkpoint."""
    assert undisturbed == [STEPS]
    epoch = math.ceil(num_train / BATCH)
    assert epoch < 19 < STEPS
    # A checkpoint lies at the end of every pass; the twentieth step was never finished.
    assert calls == [20, STEPS - 19 // epoch * epoch]


@pytest.mark.timeout(300)
def test_one_worker(pool: Any, folder: Path, tmp_path: Path) -> None:
    spec = spec_of(folder, 0, 1)
    store, index = indexed(tmp_path / "undisturbed")
    want = train(spec, store, index, SerialPool())
    undisturbed = preempted_loss.counts(folder, 0)
    (folder / preempted_loss.MARKER).unlink()
    struck, index = indexed(tmp_path / "struck")
    seal = train(spec, struck, index, pool)
    assert (folder / preempted_loss.MARKER).exists()
    assert_went_on(undisturbed, preempted_loss.counts(folder, 0), index.meta["num_train"])
    assert part_bytes(struck, seal) == part_bytes(store, want)
    # The points before the death are there too.
    assert seal.meta["curve"]["steps"] == GRID
    assert not [name for name in struck.list("stages") if "/train-" in name and "/work/" in name]


def _rank(rank: int, payload: bytes, world_size: int, port: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    try:
        run_train_job(pickle.loads(payload), rank, world_size, lambda metrics: None)
    finally:
        torch.distributed.destroy_process_group()


def _spawned(job: TrainJob, name: str, world_size: int, resources: Resources) -> None:
    spawn(_rank, (pickle.dumps(job), world_size, free_port()), world_size)


@pytest.mark.timeout(600)
def test_rank_1_of_2(ray_session: Any, folder: Path, tmp_path: Path) -> None:
    from cluster.launcher import RayLauncher

    spec = spec_of(folder, 1, 2)
    store, index = indexed(tmp_path / "undisturbed")
    want = train(spec, store, index, SerialPool(), _spawned)
    undisturbed = preempted_loss.counts(folder, 1)
    (folder / preempted_loss.MARKER).unlink()
    struck, index = indexed(tmp_path / "struck")
    launch = RayLauncher(run_train_job, tmp_path / "ray")
    seal = train(spec, struck, index, SerialPool(), launch)
    assert (folder / preempted_loss.MARKER).exists()
    assert_went_on(undisturbed, preempted_loss.counts(folder, 1), index.meta["num_train"])
    assert part_bytes(struck, seal) == part_bytes(store, want)
    # The points before the death are there too.
    assert seal.meta["curve"]["steps"] == GRID
