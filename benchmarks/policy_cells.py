"""`policy: auto` over the cells of benchmarks/cells.py: `python -m benchmarks.policy_cells --work DIR [--cells NAME,...]`.

DIR is that of the cells, with their configurations, results and store. The family of a cell's race is its own arms, less those
that draw anew in every epoch, so the race finds its trainings in the store and only the confirmations are trained. Regret is
what the split-half hindsight best of those arms gained over random on test (choosing on one half of the ten replicates, scored
on the other; random is one of them), less what the answer gained in its fresh confirmation, 0 where it is random. An answer
that is random is non-inferior to it; any other one where its confirmation says so, and it is not judged where the margin is
below two standard errors of the test set.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from flows.config import NOT_SELECTION
from flows.grid import expand
from tasks.comparison import mean_interval
from tasks.comparison.hindsight import hindsight_best
from tasks.comparison.verdict import NON_INFERIORITY_POINTS
from tasks.policy.halving import RANDOM
from tasks.samplers.registry import protocol_info

HEAD = (
    "cell", "keep", "candidates", "answer", "confirmation on test, points", "hindsight best, split-half", "regret",
    "full trainings", "distinct examples touched",
)  # fmt: skip


def policy_config(sweep: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a race over the arms of a cell's sweep."""
    lines = []
    for arm in expand(sweep["sweep"], sweep["select"]["keep"]).arms:
        info = protocol_info(arm["protocol"])
        if info.ranks and not info.rotates:
            lines.append({name: value for name, value in arm.items() if name not in (*NOT_SELECTION, "score")})
    train = {name: value for name, value in sweep["train"].items() if name != "replicates"}
    rest = {name: value for name, value in sweep.items() if name not in ("sweep", "shift")}
    return {**rest, "name": f"policy_{sweep['name']}", "policy": {"family": lines}, "train": train}


def run_config(work: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Run a configuration, or find it finished in the store of `work`, and return its results."""
    path = work / f"{config['name']}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    command = [sys.executable, "-m", "flows.cli", "run", str(path), "--store", str(work / "store"), "--json"]
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def gains(cell: dict[str, Any], keep: float, candidates: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the test differences to random (A, R) of the candidates and random in a cell's sweep; random is row 0."""
    arms = {arm["name"]: np.array(arm["accuracy"]) for arm in cell["arms"] if arm["keep"] == keep}
    return np.stack([arms[name] - arms[RANDOM] for name in (RANDOM, *candidates) if name in arms])


def rows(work: Path, cells: Sequence[str]) -> Iterator[list[Any]]:
    """Yield a row for each cell and keep, as `row_of` does."""
    for cell in cells:
        config = policy_config(yaml.safe_load((work / f"{cell}.yaml").read_text()))
        results, sweep = run_config(work, config), json.loads((work / f"{cell}.json").read_text())
        for entry in results["policy"]["keeps"]:
            table = gains(sweep, entry["keep"], list(entry["candidates"]))
            yield row_of(cell.removeprefix("cells_"), entry, results, hindsight_best(table).split_half)


def row_of(cell: str, entry: dict[str, Any], results: dict[str, Any], best: float | None) -> list[Any]:
    """Return one keep of a race: texts, regret, and whether the answer is non-inferior, None where it is not judged.

    `best` is what the hindsight best gained, None where nobody looked; there is no regret then.
    """
    touched = {(arm["name"], arm["keep"]): arm["examples_touched"] for arm in results["arms"]}
    confirmed = entry["confirmation"]
    gain = confirmed["mean_difference"] if entry["answer"] != RANDOM else 0.0
    said = "none above random on validation"
    if confirmed is not None:
        low, high = confirmed["ci95"]
        said = f"{entry['winner']}: {confirmed['mean_difference']:+.2f} [{low:+.2f}, {high:+.2f}], {confirmed['verdict']}"
    regret = None if best is None else best - gain
    texts = [
        cell, f"{entry['keep']:g}", str(len(entry["candidates"])), entry["answer"], said, _points(best), _points(regret),
        f"{entry['costs']['full_trainings']:.1f}", f"{touched[entry['answer'], entry['keep']]:,}",
    ]  # fmt: skip
    return [texts, regret, non_inferior(entry["answer"], entry["keep"], results["comparisons"])]


def _points(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def non_inferior(answer: str, keep: float, comparisons: Sequence[dict[str, Any]]) -> bool | None:
    """Return whether a loss of the margin to random is ruled out for the answer, None where that is not judged."""
    if answer == RANDOM:
        return True
    found: bool | None = next(row["non_inferior"] for row in comparisons if (row["arm"], row["keep"]) == (answer, keep))
    return found


def summary(found: Sequence[Sequence[Any]]) -> str:
    """Return the sentence over all rows; each cell that is not shown to be non-inferior, or not judged, is named."""
    regret = np.array([row[1] for row in found if row[1] is not None])
    said_regret = "regret not looked at"
    if len(regret):
        interval = mean_interval(regret)
        bounds = "" if interval is None else f" [{interval[0]:+.2f}, {interval[1]:+.2f}]"
        where = "" if len(regret) == len(found) else f" of {len(regret)} cells"
        said_regret = f"mean regret{where} {regret.mean():+.2f} points{bounds} (t over cells)"
    confirmed = sum(row[0][3] != RANDOM for row in found)
    shown = sum(row[2] is True for row in found)
    said = "every cell" if shown == len(found) else f"{shown} of {len(found)} cells"
    for word, state in (("not shown", False), ("not judged (margin below two standard errors of the test set)", None)):
        names = [f"{row[0][0]} {row[0][1]}" for row in found if row[2] is state]
        said += f"; {word} at {', '.join(names)}" if names else ""
    return (
        f"{len(found)} cells: {confirmed} with a confirmed gain, {len(found) - confirmed} fell back to random; {said_regret}; "
        f"non-inferior to random (margin {NON_INFERIORITY_POINTS:g} points) in {said}."
    )


def print_table(found: Iterator[list[Any]]) -> None:
    """Print a row for each cell and keep as it comes, and what they come to."""
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    kept = []
    for row in found:
        print(f"| {' | '.join(row[0])} |", flush=True)
        kept.append(row)
    print(f"\n{summary(kept)}")


def main() -> None:
    """Race over the arms of the cells in a folder and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cells", default="")
    options = parser.parse_args()
    cells = options.cells.split(",") if options.cells else sorted(path.stem for path in options.work.glob("cells_*.json"))
    print_table(rows(options.work, cells))


if __name__ == "__main__":
    main()
