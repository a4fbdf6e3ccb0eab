"""`policy: auto` as it ships, over the cells of benchmarks/cells.py: `python -m benchmarks.policy_shipped --work DIR`.

The family is the default one, and all keeps of a cell are one race; every training is made here, none is taken from the
cells. The hindsight best is the one that benchmarks/policy.md has for the cells' own arms (its table "Over the cells"): made of
other replicates, of another family. Whoever is stopped runs the same command again. MNIST's folder is $MNIST.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cells import CELLS
from benchmarks.policy_cells import print_table, row_of, run_race

PAGE = Path(__file__).with_name("policy.md")


def shipped_config(cell: str) -> dict[str, Any]:
    """Return the configuration of a race of the default family over all keeps of a cell."""
    described = CELLS[cell]
    configs = [described.config(cell, group) for group in described.groups]
    rest = {name: value for name, value in configs[0].items() if name not in ("sweep", "shift")}
    train = {name: value for name, value in rest["train"].items() if name not in ("replicates", "full")}
    keeps = [keep for config in configs for keep in config["select"]["keep"]]
    return {**rest, "name": f"shipped_{cell}", "policy": "auto", "select": {"keep": keeps}, "train": {**train, "full": False}}


def hindsight_of_the_page() -> dict[tuple[str, str], float]:
    """Return the split-half hindsight best in points by cell and keep, as benchmarks/policy.md has it for the cells' own arms."""
    found: dict[tuple[str, str], float] = {}
    section = PAGE.read_text().split("## Over the cells of benchmarks/cells.py")[1].split("\n## ")[0]
    for line in section.splitlines():
        texts = [text.strip() for text in line.strip("|").split("|")]
        if len(texts) == 7 and texts[0].endswith(("_low", "_high")):
            found[texts[0].rpartition("_")[0], texts[1]] = float(texts[4])
    return found


def rows(work: Path, cells: Sequence[str]) -> Iterator[list[Any]]:
    """Yield a row for each cell and keep, as `row_of` does."""
    best = hindsight_of_the_page()
    for cell in cells:
        results = run_race(work, shipped_config(cell))
        for entry in results["policy"]["keeps"]:
            yield row_of(cell, entry, results, best[cell, f"{entry['keep']:g}"])


def main() -> None:
    """Race over the cells that were asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of configurations and store")
    parser.add_argument("--cells", default=",".join(CELLS), help="cells to race over, by commas")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print_table(rows(options.work, options.cells.split(",")))


if __name__ == "__main__":
    main()
