"""`policy: auto` as it ships, over the cells of benchmarks/cells.py: `python -m benchmarks.policy_shipped --work DIR`.

The family is the default one, and all keeps of a cell are one race. For the cells of `--hindsight` every candidate then has its
ten replicates, as an arm of a run with named arms (the race's own trainings are found in the store), of which regret takes the
split-half best on test; the others have no regret. Whoever is stopped runs the same command again. MNIST's folder is $MNIST.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cells import CELLS, REPLICATES, SCORE
from benchmarks.policy_cells import gains, print_table, row_of, run_config
from tasks.comparison.hindsight import hindsight_best
from tasks.policy.family import FAMILY, family_at

MISSING = "exclude"


def shipped_config(cell: str) -> dict[str, Any]:
    """Return the configuration of a race of the default family over all keeps of a cell."""
    described = CELLS[cell]
    configs = [described.config(cell, group) for group in described.groups]
    rest = {name: value for name, value in configs[0].items() if name not in ("sweep", "shift")}
    train = {name: value for name, value in rest["train"].items() if name not in ("replicates", "full")}
    keeps = [keep for config in configs for keep in config["select"]["keep"]]
    return {**rest, "name": f"shipped_{cell}", "policy": "auto", "select": {"keep": keeps}, "train": {**train, "full": False}}


def named_config(cell: str, keep: float) -> dict[str, Any]:
    """Return the configuration of a run whose arms are the default family's candidates at one keep."""
    raced = shipped_config(cell)
    arms = []
    for name, spec in family_at(FAMILY, keep, (SCORE,), MISSING).candidates.items():
        given = {key: value for key, value in spec.effective().items() if value is not None and key not in ("keep", "missing")}
        arms.append({"name": name, **given})
    rest = {name: value for name, value in raced.items() if name != "policy"}
    train = {**raced["train"], "replicates": REPLICATES}
    return {
        **rest, "name": f"hindsight_{cell}_{keep:g}".replace(".", "_"), "shift": False, "select": {"keep": keep, "arms": arms},
        "train": train,
    }  # fmt: skip


def rows(work: Path, cells: Sequence[str], looked_back: Sequence[str]) -> Iterator[list[Any]]:
    """Yield a row for each cell and keep, as `row_of` does."""
    for cell in cells:
        results = run_config(work, shipped_config(cell))
        for entry in results["policy"]["keeps"]:
            best = None
            if cell in looked_back:
                named = run_config(work, named_config(cell, entry["keep"]))
                best = hindsight_best(gains(named, entry["keep"], list(entry["candidates"]))).split_half
            yield row_of(cell, entry, results, best)


def main() -> None:
    """Race over the cells that were asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of configurations and store")
    parser.add_argument("--cells", default=",".join(CELLS), help="cells to race over, by commas")
    parser.add_argument("--hindsight", default="", help="cells with regret, by commas")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print_table(rows(options.work, options.cells.split(","), options.hindsight.split(",")))


if __name__ == "__main__":
    main()
