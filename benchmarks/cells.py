"""Every sampler against random on three data sets and two models, by sweeps: `python -m benchmarks.cells`.

Each cell is one data set with one model; its keeps are two sweeps, as samplers that drop a part of the ranking want other
shares at small budgets. `--cells NAME,...` runs some of them, `--table` only writes `benchmarks/cells.md` from what is in the
store. A sweep that was stopped goes on; an arm that is added computes only its own trainings. MNIST's folder is $MNIST.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.cells_table import write_table
from tasks.samplers.registry import PROTOCOLS

REPLICATES = 10
SCORE = "el2n"

ARMS: dict[str, dict[str, list[Any]]] = {
    "topk": {},
    "exact": {"alpha": [0.2, 0.5, "auto"]},
    "approximate": {"alpha": [0.2, 0.5]},
    "tempered": {"alpha": [0.2, 0.5], "gamma": [0.5]},
    "pps": {},
    "ccs": {"beta": []},
    "band": {"beta": [], "width": []},
    "prototype_band": {"beta": [], "width": []},
    "raked": {"alpha": [0.2, 0.5]},
    "rs2": {},
    "rotate": {"alpha": [0.2, 0.5]},
}
"""The settings of each sampler, an empty list for those of the group of keeps. Samplers that are not there are left out."""


@dataclass(frozen=True)
class Keeps:
    """Hold a group of keeps and the shares that samplers take there."""

    name: str
    keep: tuple[float, ...]
    shares: dict[str, list[float]]


LOW_SHARES, HIGH_SHARES = {"beta": [0.1, 0.3], "width": [0.2]}, {"beta": [0.02, 0.1], "width": [0.4]}
LOW, HIGH = Keeps("low", (0.01, 0.03), LOW_SHARES), Keeps("high", (0.1, 0.3), HIGH_SHARES)


@dataclass(frozen=True)
class Cell:
    """Hold one data set with one model: its sections `data`, `proxy` and `train`, and what the table calls it."""

    title: str
    data: dict[str, Any]
    model: dict[str, Any]
    proxy: dict[str, Any]
    train: dict[str, Any]
    groups: tuple[Keeps, ...] = (LOW, HIGH)

    def config(self, name: str, group: Keeps) -> dict[str, Any]:
        """Return the configuration of the sweep over one group of keeps."""
        return {
            "name": f"cells_{name}_{group.name}",
            "data": self.data,
            "proxy": {"model": self.model, "seeds": 3, "lr": 0.003, **self.proxy},
            "score": {"scores": [SCORE]},
            "sweep": grid(group),
            "shift": False,
            "select": {"keep": list(group.keep)},
            "train": {"model": self.model, "lr": 0.003, "replicates": REPLICATES, "full": True, **self.train},
            "report": {"margin_points": 0.5},
        }


def grid(group: Keeps) -> dict[str, Any]:
    """Return the grid of all samplers that the tree has, with their settings at a group of keeps."""
    axes: dict[str, list[Any]] = {}
    protocols = [name for name in ARMS if name in PROTOCOLS]
    for protocol in protocols:
        for axis, values in ARMS[protocol].items():
            known = axes.setdefault(axis, [])
            known += [value for value in values or group.shares[axis] if value not in known]
    return {"score": SCORE, "protocol": protocols, **axes}


def _mlp(*hidden: int) -> dict[str, Any]:
    return {"use": "mlp", "args": {"hidden": list(hidden)}}


DIGITS = {"source": "sklearn", "train": "digits", "test_fraction": 0.4}
MNIST = {"source": "idx", "train": os.environ.get("MNIST", "data/mnist")}
MNIST1D = {"source": {"use": "mnist1d", "args": {"rows": 4000, "test": 50_000, "seed": 0}}, "train": "mnist1d"}
MNIST1D_LARGE = {"source": {"use": "mnist1d", "args": {"rows": 40_000, "test": 50_000, "seed": 0}}, "train": "mnist1d"}
MNIST1D_LARGEST = {"source": {"use": "mnist1d", "args": {"rows": 100_000, "test": 50_000, "seed": 0}}, "train": "mnist1d"}
DIGITS_GROUPS = (Keeps("low", (0.05,), LOW_SHARES), HIGH)

CELLS: dict[str, Cell] = {
    # Batches of 25, as 97 examples in batches of 32 leave one of a single example, which moves the model as much as any other.
    "digits_mlp": Cell(
        "digits, MLP 64-64-10", DIGITS, _mlp(64), {"epochs": 10, "batch_size": 32}, {"steps": 250, "batch_size": 25},
        DIGITS_GROUPS,
    ),
    "mnist1d_mlp": Cell(
        "MNIST-1D of 4,000, MLP 40-256-10", MNIST1D, _mlp(256), {"epochs": 12, "batch_size": 64},
        {"steps": 400, "batch_size": 64},
    ),
    "mnist_mlp": Cell(
        "MNIST, MLP 784-256-10", MNIST, _mlp(256), {"steps": 900, "batch_size": 128},
        {"epochs": 5, "min_steps": 300, "batch_size": 128},
    ),
    "digits_cnn": Cell(
        "digits, CNN of width 16", DIGITS, {"use": "cnn", "args": {"width": 16, "hidden": 64}},
        {"epochs": 10, "batch_size": 32}, {"steps": 250, "batch_size": 25}, DIGITS_GROUPS,
    ),
    "mnist1d_cnn": Cell(
        "MNIST-1D of 4,000, CNN of width 16", MNIST1D, {"use": "cnn1d"}, {"epochs": 12, "batch_size": 64},
        {"steps": 300, "batch_size": 64},
    ),
    "mnist1d_large_mlp": Cell(
        "MNIST-1D of 40,000, MLP 40-256-10", MNIST1D_LARGE, _mlp(256), {"epochs": 4, "batch_size": 128},
        {"epochs": 5, "min_steps": 400, "batch_size": 64},
    ),
    "mnist_cnn": Cell(
        "MNIST, CNN of width 8", MNIST, {"use": "cnn", "args": {"width": 8, "hidden": 64}}, {"steps": 600, "batch_size": 128},
        {"epochs": 5, "min_steps": 300, "batch_size": 64},
    ),
    "mnist1d_large_cnn": Cell(
        "MNIST-1D of 40,000, CNN of width 16", MNIST1D_LARGE, {"use": "cnn1d"}, {"epochs": 4, "batch_size": 128},
        {"epochs": 5, "min_steps": 400, "batch_size": 64},
    ),
    "mnist1d_largest_mlp": Cell(
        "MNIST-1D of 100,000, MLP 40-256-10", MNIST1D_LARGEST, _mlp(256), {"epochs": 4, "batch_size": 128},
        {"epochs": 5, "min_steps": 400, "batch_size": 64},
    ),
}  # fmt: skip
"""The cells by name, in the order in which they run."""

NOT_CELLS = (
    "MNIST-1D of 100,000 with a CNN: no cell of it, for its time; that of 40,000 took 51 min.",
)
"""What a reader may look for and no cell has."""


def run_cell(name: str, work: Path) -> None:
    """Run the sweeps of a cell, each logged, and keep their results and how long they took."""
    for group in CELLS[name].groups:
        config = CELLS[name].config(name, group)
        path = work / f"{config['name']}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        command = [sys.executable, "-m", "flows.cli", "sweep", str(path), "--store", str(work / "store"), "--json"]
        start = time.monotonic()
        with (work / f"{config['name']}.log").open("ab") as log:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, check=False)
        seconds = time.monotonic() - start
        print(f"{config['name']}: exit code {done.returncode} after {seconds:.0f} s", flush=True)
        with (work / "times.jsonl").open("a") as times:
            times.write(json.dumps({"name": config["name"], "seconds": seconds}) + "\n")
        if done.returncode:
            raise SystemExit(f"{config['name']} failed: see {log.name}; the same command goes on where it stopped")
        (work / f"{config['name']}.json").write_bytes(done.stdout)


def main() -> None:
    """Run the cells that were asked for, then write the table of all that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/cells"), help="folder of configurations, logs and store")
    parser.add_argument("--cells", default=",".join(CELLS), help="cells to run, by commas")
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    for name in () if chosen.table else chosen.cells.split(","):
        run_cell(name, chosen.work)
    write_table(chosen.out, chosen.work, CELLS, NOT_CELLS)


if __name__ == "__main__":
    main()
