"""Budgets of the classes beside none, on the cells' data: `python -m benchmarks.class_budgets --work DIR` prints Markdown.

Random, topk, exact, ccs and band with the budget of a keep spread over the classes in proportion or alike, against random
without. `--grid settings` has what else no cell has: ccs with weights, prototypes in the proxies' features, raked with crossed
margins, each beside its default. One sweep a cell; whoever is stopped runs the same command again. MNIST's folder is $MNIST.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.cells import CELLS, SCORE
from benchmarks.cells_table import section

NAMES = ("digits_mlp", "mnist1d_mlp", "mnist_mlp")
GRIDS: dict[str, dict[str, Any]] = {
    "classes": {
        "score": SCORE, "protocol": ["random", "topk", "exact", "ccs", "band"], "alpha": 0.2, "beta": 0.1, "width": 0.4,
        "classes": [None, "balanced", "proportional"],
    },
    "settings": {
        "score": SCORE, "protocol": ["ccs", "prototype_band", "raked"], "alpha": 0.2, "beta": 0.1, "width": 0.4,
        "weights": ["unit", "ht"], "features": ["pca", "proxy"], "margins": ["separate", "crossed"],
    },
}  # fmt: skip


def config(name: str, grid: str) -> dict[str, Any]:
    """Return the configuration of the sweep of a cell, all its keeps together."""
    cell = CELLS[name]
    body = cell.config(name, cell.groups[0])
    keeps = [keep for group in cell.groups for keep in group.keep]
    return {**body, "name": f"{grid}_{name}", "sweep": GRIDS[grid], "select": {"keep": keeps}}


def main() -> None:
    """Run the sweeps and print a section of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of configurations and store")
    parser.add_argument("--cells", default=",".join(NAMES), help="cells, by commas")
    parser.add_argument("--grid", choices=tuple(GRIDS), default="classes")
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    for name in chosen.cells.split(","):
        path = chosen.work / f"{chosen.grid}_{name}.yaml"
        path.write_text(yaml.safe_dump(config(name, chosen.grid), sort_keys=False))
        command = [sys.executable, "-m", "flows.cli", "sweep", str(path), "--store", str(chosen.work / "store"), "--json"]
        start = time.monotonic()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        print(section(name, CELLS[name], [json.loads(done.stdout)], time.monotonic() - start), flush=True)


if __name__ == "__main__":
    main()
