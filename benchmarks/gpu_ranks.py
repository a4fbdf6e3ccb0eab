"""Process groups on one GPU: NCCL with one rank, and two ranks that share the card through gloo."""

from __future__ import annotations

import math
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_promises import MODELS
from benchmarks.gpu_scoring import numerics_of
from benchmarks.gpu_stages import CLASSES, SHAPE, synthetic, write_parquet
from benchmarks.gpu_timing import Bench
from cluster.record import Unit
from cluster.storage import Store
from tasks.models.build import build_model
from tasks.pool import SerialPool
from tasks.recipe import Pipeline
from tasks.shard import shard_stage
from tasks.spec import Numerics, Use
from tasks.train import TrainJob, TrainSpec, TrainUnit, run_train_job
from tasks.training import Settings, TrainingArrays, own_state, train_model


def _join(backend: str, port: int, rank: int, world_size: int) -> None:
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group(backend, init_method=address, rank=rank, world_size=world_size)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _nccl(rank: int, port: int, folder: str, device: str) -> None:
    """Be the one rank: reduce a number, wrap a model, and do a job of the train stage."""
    if device == "cuda":
        torch.cuda.set_device(0)
    _join("nccl" if device == "cuda" else "gloo", port, rank, 1)
    value = torch.full((4,), 3.0, device=device)
    torch.distributed.all_reduce(value)
    assert value.tolist() == [3.0] * 4
    model = build_model(Use(use="cnn"), SHAPE, CLASSES, 0).to(device)
    wrapped = torch.nn.parallel.DistributedDataParallel(model, device_ids=[0] if device == "cuda" else None)
    wrapped(torch.rand(8, *SHAPE, device=device)).sum().backward()
    store = Store(f"{folder}/store")
    data = write_parquet(Path(folder) / "data.parquet", 1000)
    index = shard_stage(data, store, SerialPool())
    numerics = Numerics(device=device)
    spec = TrainSpec(model=Use(use="cnn"), steps=20, numerics=numerics)
    unit = TrainUnit("full", 1.0, 0, None, None, 20, 7)
    run_train_job(TrainJob(spec, data, index, "0" * 64, unit, store), 0, 1, lambda metrics: None)
    seal = Unit(store, "train", "0" * 64).seal()
    assert seal is not None
    (Path(folder) / "said").write_text(f"{torch.distributed.get_backend()}: all_reduce, DDP step, a sealed training")
    torch.distributed.destroy_process_group()


def _two(rank: int, port: int, folder: str, name: str, numerics: Numerics) -> None:
    """Be one of two ranks that train one model on one device; rank 0 keeps its weights."""
    _join("gloo", port, rank, 2)
    state = _trained(name, numerics, rank, 2)
    if rank == 0:
        torch.save(state, f"{folder}/two.pt")
    torch.distributed.destroy_process_group()


def _trained(name: str, numerics: Numerics, rank: int = 0, world_size: int = 1) -> dict[str, torch.Tensor]:
    x, y = synthetic(330, seed=4)
    data = TrainingArrays(x, y, np.ones(len(y), np.float32), np.arange(len(y), dtype=np.int64))
    model = build_model(MODELS[name][0], SHAPE, CLASSES, 5)
    settings = Settings(steps=12, seed=5, batch_size=64, lr=1e-3, weight_decay=0.01, numerics=numerics)
    train_model(model, data, settings, Pipeline(MODELS[name][1], numerics), rank=rank, world_size=world_size)
    return own_state(model)


def ranks(bench: Bench) -> None:
    """Check process groups: what one GPU can show of them."""
    spawn: Any = torch.multiprocessing.spawn

    def rows() -> Iterator[tuple[object, ...]]:
        with tempfile.TemporaryDirectory() as folder:
            spawn(_nccl, args=(_free_port(), folder, bench.device.type), nprocs=1)
            yield "one rank", (Path(folder) / "said").read_text()
            for name in ("cnn",) if bench.quick else ("cnn", "encoder"):
                numerics = numerics_of(bench)
                spawn(_two, args=(_free_port(), folder, name, numerics), nprocs=2)
                two = torch.load(f"{folder}/two.pt", weights_only=True)
                one = _trained(name, numerics)
                change = build_model(MODELS[name][0], SHAPE, CLASSES, 5).state_dict()
                apart, moved = (
                    math.sqrt(sum(float((one[key] - other[key]).double().pow(2).sum()) for key in one)) for other in (two, change)
                )
                yield f"two ranks on one device, gloo, {name}", f"weights apart by {apart / moved:.1e} of what training moved"
            yield "two ranks, NCCL", "not possible on one GPU: NCCL takes one rank a device"

    bench.table("Process groups", ("what", "seen"), rows())
