"""A run on 60 rows in a fraction of a second, for forked children of one warm process; and what such a store holds."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sklearn.cluster
import sklearn.decomposition
import sklearn.linear_model
import torch
import torch._dynamo

from cluster.fingerprint import sha256
from cluster.storage import Store
from flows.config import RunConfig, parse_config
from flows.plan import Plan
from tasks import leasing, proxy_worker, score_worker, subset_worker, train_worker
from tasks.pool import SerialPool
from tasks.shift import worker as shift_worker
from tests.flows import serial_run

# Imported here so that no child has to; the first optimizer imports torch._dynamo, which takes over a second.
WARM = (
    torch._dynamo, proxy_worker, score_worker, shift_worker, subset_worker, train_worker,
    sklearn.cluster, sklearn.decomposition, sklearn.linear_model,
)  # fmt: skip

STAGES = {
    "shard": "shard_stage", "proxy": "proxy_stage", "score": "score_stage", "merge": "merge_stage",
    "select": "selection_stage", "subset": "subset_stage", "shift": "shift_stage", "train": "train_stage",
    "report": "make_report",
}  # fmt: skip
FAILED = 78


class Stop(BaseException):
    """End a run after the stage that was asked for."""


def make_config(folder: Path, proxies: int = 1) -> RunConfig:
    """Write 60 rows, two shards' worth, one of them bad, and return a run on them: tiny models, two arms."""
    rng = np.random.default_rng(0)
    label = np.arange(60) % 2
    x = (rng.normal(size=(60, 3)) + label[:, None]).astype(np.float32)
    x[7, 1] = np.nan
    features = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 3)
    pq.write_table(pa.table({"features": features, "label": pa.array(label)}), folder / "train.parquet", row_group_size=30)
    model = {"use": "mlp", "args": {"hidden": [2]}}
    return parse_config(
        {
            "name": "tiny",
            "data": {
                "source": "parquet", "train": str(folder / "train.parquet"), "test_fraction": 0.2, "shard_rows": 30,
                "max_bad_fraction": 0.05,
            },
            "proxy": {"model": model, "seeds": proxies, "epochs": 2, "batch_size": 32, "checkpoint_every_s": 0},
            "score": {"scores": ["el2n"]},
            "select": {"keep": 0.4, "arms": [{"protocol": "exact", "score": "el2n", "alpha": 0.5}]},
            "train": {
                "model": model, "steps": 2, "batch_size": 16, "replicates": 1, "full": False, "checkpoint_every_s": 0
            },
        }
    )


def run_until(stage: str, plan: Plan, store: Store) -> None:
    """Run the stages up to this one, each serially; those that are sealed cost a look."""
    following = [*list(STAGES)[list(STAGES).index(stage) + 1 :], ""][0]

    def stop(*_: Any) -> None:
        raise Stop

    if following:
        setattr(serial_run, STAGES[following], stop)
    try:
        serial_run.run_serially(plan, store, SerialPool())
    except Stop:
        return


def warm_up() -> None:
    """Make this process ready to be forked: one thread, and pages that children do not have to copy."""
    torch.set_num_threads(1)
    leasing.POLL_S = 0.01
    # The allocators' own threads are the C library's business.
    if threading.active_count() > 1:
        raise SystemExit(f"forking is not safe beside {threading.enumerate()}")
    gc.collect()
    gc.disable()
    gc.freeze()


def fork(act: Callable[[], None]) -> int:
    """Return the process id of a fork that does `act` and ends with 0, or FAILED for an exception."""
    child = os.fork()
    if child:
        return child
    code = FAILED
    try:
        act()
        code = 0
    except Exception:
        if os.environ.get("TINY_RUN_TELLS"):
            traceback.print_exc()
    except BaseException:
        traceback.print_exc()
    finally:
        # Neither the parent's buffers nor its exit handlers are the child's.
        os._exit(code)
    raise AssertionError("unreachable")


def wait(child: int) -> int:
    """Return the exit code of a fork, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(act: Callable[[], None]) -> int:
    """Do `act` in a fork and return its exit code."""
    return wait(fork(act))


def committed(root: Path) -> dict[str, tuple[int, int]]:
    """Return name -> (inode, mtime) of every object of a store but scratch files of writers that died."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_file() and not name.startswith("tmp/"):
            status = path.stat()
            found[name] = status.st_ino, status.st_mtime_ns
    return found


def contents(root: Path) -> dict[str, str]:
    """Return the sha256 of those objects."""
    return {name: sha256((root / name).read_bytes()) for name in committed(root)}


def kept(root: Path) -> dict[str, tuple[int, int]]:
    """Return name -> (inode, mtime) of what must stay as it is once it is there: all but work in progress and views."""
    return {
        name: status
        for name, status in committed(root).items()
        if (name.startswith("stages/") and "/work/" not in name) or name.endswith("/run.json")
    }


def differing(root: Path, want: dict[str, str]) -> list[str]:
    """Return the names under which a store differs from `contents` of another."""
    got = contents(root)
    return sorted(name for name in {*got, *want} if got.get(name) != want.get(name))


def clone(source: Path, target: Path) -> Path:
    """Copy a store by links: no object is ever changed in place."""
    if target.exists():
        shutil.rmtree(target)
    if source.exists():
        shutil.copytree(source, target, copy_function=os.link)
    else:
        target.mkdir()
    return target
