"""Loops for the tests of the launcher. Imported on workers by name: nothing of pytest here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import InputError

STEPS = 6


@dataclass(frozen=True)
class Job:
    """What a loop is told: the folder its checkpoints and marks are in, and how to go wrong."""

    folder: str
    wrong: str = ""


def loop(job: Job, rank: int, world_size: int, report: Callable[[dict[str, float]], None]) -> None:
    """Add up (step + 1) * (rank + 1) over steps and ranks; rank 0 keeps the sum of each step in a file."""
    import torch
    import torch.distributed as dist

    folder = Path(job.folder)
    tries = len(list(folder.glob(f"try-{rank}-*")))
    (folder / f"try-{rank}-{tries}-{os.getpid()}").touch()
    if job.wrong == "input" and rank == 1:
        raise InputError("labels are wrong")
    if job.wrong == "value" and rank == 1:
        raise ValueError("bad row 17")
    start = torch.zeros(2)
    if rank == 0:
        kept = sorted(folder.glob("step-*"))
        if kept:
            start = torch.tensor([float(kept[-1].name[5:]) + 1, float(kept[-1].read_text())])
    dist.broadcast(start, 0)
    total = float(start[1])
    for step in range(int(start[0]), STEPS):
        value = torch.tensor([float((step + 1) * (rank + 1))])
        dist.all_reduce(value)
        total += float(value)
        if rank == 0:
            (folder / f"step-{step}").write_text(str(total))
        report({"step": step, "total": total})
        if job.wrong == "dies once" and rank == 0 and step == 2 and tries == 0:
            os._exit(9)
        if job.wrong == "dies always" and rank == 1:
            os._exit(9)
        if job.wrong == "hangs" and step == 1:
            (folder / f"hangs-{rank}").touch()
            while True:
                value = torch.zeros(1)
                dist.all_reduce(value)
    if rank == 0:
        (folder / "result").write_text(f"{total} {world_size} {dist.get_backend()}")
