"""A small finished run, made once in a process, and copies of its store to damage."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.record import Part, Seal
from cluster.storage import Store
from flows.config import RunConfig, load_config
from flows.plan import Plan, make_plan
from tasks.pool import SerialPool
from tests.flows.serial_run import run_serially

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "proxy.epochs=1", "proxy.seeds=1", "train.steps=4", "train.replicates=2", "score.scores=[el2n]", "data.limit=300",
    "data.shard_rows=400", "select.arms=[{protocol: topk, score: el2n}]", "train.full=false",
)  # fmt: skip
OTHER = "select.keep=0.3"


def config(*settings: str) -> RunConfig:
    return load_config(str(ROOT / "configs/quickstart.yaml"), [*SETTINGS, *settings])


def plan(*settings: str) -> Plan:
    return make_plan(config(*settings))


@functools.cache
def _made() -> Path:
    """Return a store with two finished runs that differ in `keep` only: all up to the score table is shared."""
    folder = Path(tempfile.mkdtemp(prefix="verify-case-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for settings in ((), (OTHER,)):
        run_serially(plan(*settings), Store(str(folder / "store")), SerialPool())
    return folder


def made(folder: Path) -> Path:
    """Return a fresh copy of the store, in `folder`."""
    shutil.copytree(_made() / "store", folder / "store")
    return folder / "store"


def tree(store: Path) -> dict[str, bytes]:
    """Return every file of the store with its bytes."""
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


def seals(store: Path, stage: str) -> list[Path]:
    """Return the seals of the first run's units of a stage."""
    units = [unit for name, unit in plan().units(Store(str(store))) if name == stage]
    return sorted(store / unit.folder / unit.seal_name for unit in units)


def parts(store: Path, stage: str, suffix: str = ".parquet") -> list[Path]:
    """Return the parts of the first run's units of a stage."""
    folders = [path.parent / "parts" for path in seals(store, stage)]
    return sorted(path for folder in folders for path in folder.glob(f"*{suffix}"))


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def edit_seal(path: Path, change: Callable[[dict[str, Any]], Any], *, forge: bool = False) -> None:
    """Change fields of a seal; a forger also makes the digest match."""
    body = json.loads(path.read_bytes())
    change(body)
    if forge:
        listed = tuple(Part(**part) for part in body["parts"])
        path.write_bytes(Seal(body["stage"], body["key"], listed, body["meta"]).to_bytes())
        return
    path.write_bytes(json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


class Elsewhere:
    """Take files of a store away and publish them later, once, whole and in order, as if a run wrote them then."""

    def __init__(self, aside: Path, paths: list[Path]) -> None:
        aside.mkdir()
        self.lock = threading.Lock()
        self.files = [(aside / str(number), path) for number, path in enumerate(paths)]
        for taken, path in self.files:
            path.rename(taken)

    def write(self) -> None:
        with self.lock:
            while self.files:
                taken, path = self.files.pop(0)
                taken.rename(path)


def stages_of(tree_of: dict[str, bytes]) -> dict[str, bytes]:
    """Return what a run must make again byte for byte: all but what was retired, and reports, which hold times."""
    return {name: data for name, data in tree_of.items() if not name.startswith("retired/") and "/report/" not in name}


def quarantined(tmp_path: Path) -> tuple[Path, Plan, Path]:
    """Run a plan whose data hold one bad row; return the store, the plan and the only quarantine table."""
    rows = np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32)
    rows[7, 1] = np.nan
    table = pa.table({"a": rows[:, 0], "b": rows[:, 1], "c": rows[:, 2], "label": np.arange(120) % 2})
    pq.write_table(table, tmp_path / "data.parquet")
    own = config(
        "data.source={use: parquet, args: {features: [a, b, c]}}", f"data.train={tmp_path}/data.parquet", "data.limit=null",
        "data.max_bad_fraction=0.1",
    )  # fmt: skip
    store, made_of = tmp_path / "store", make_plan(own)
    run_serially(made_of, Store(str(store)), SerialPool())
    found = sorted(store.glob("stages/shard-*/quarantine/*.parquet"))
    assert len(found) == 1
    return store, made_of, found[0]
