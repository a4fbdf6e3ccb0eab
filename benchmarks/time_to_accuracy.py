"""When does each arm reach which accuracy, scoring and search included? `python -m benchmarks.time_to_accuracy --work DIR`.

MNIST, MLP 784-256-10, at keep 0.03 and 0.10: random, a fresh random subset every epoch (rs2), random with soft labels from the
full-data model, approximate, prototype_band, the full data at equal steps and on its own schedule; ten paired replicates, each
evaluated at thirty points. Then a race of the default family at both keeps, whose winner is charged with the search. Three runs
of `secateur run` on one store: they share proxies, scores and the full data's own schedule. A run that was stopped goes on; one
that is whole is read. MNIST's folder is $MNIST. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

POINTS, REPLICATES = 30, 10
# Shares of prototype_band that were good in other runs on MNIST (cells.md, policy.md): a search that is not charged.
BANDS = {0.03: {"beta": 0.02, "width": 0.08}, 0.1: {"beta": 0.02, "width": 0.4}}
MODEL = {"use": "mlp", "args": {"hidden": [256]}}


def config(keep: float) -> dict[str, Any]:
    """Return the configuration of one keep; two of them differ in the share kept and in the band's shares."""
    return {
        "name": f"time_{round(1000 * keep)}",
        "data": {"source": "idx", "train": os.environ.get("MNIST", "data/mnist")},
        "proxy": {"model": MODEL, "seeds": 3, "steps": 900, "batch_size": 128, "lr": 0.003},
        "score": {"scores": ["el2n"]},
        "shift": False,
        "select": {
            "keep": keep,
            "arms": [
                {"protocol": "rs2"},
                {"protocol": "approximate", "score": "el2n", "alpha": 0.5},
                {"protocol": "prototype_band", "score": "el2n", **BANDS[keep]},
            ],
        },
        "train": {
            "model": MODEL, "epochs": 15, "min_steps": 300, "batch_size": 128, "lr": 0.003, "replicates": REPLICATES,
            "soft_labels": True, "own_schedule": True, "curve": POINTS,
        },
    }  # fmt: skip


def search_config() -> dict[str, Any]:
    """Return the configuration of the race at both keeps: data, proxies and training as where the arms are named."""
    named = config(min(BANDS))
    train = {name: value for name, value in named["train"].items() if name not in ("replicates", "soft_labels", "own_schedule")}
    return {**named, "name": "time_search", "policy": "auto", "select": {"keep": list(BANDS)}, "train": train}


def run(body: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """Run a configuration to its end, or read what there is, and return results.json; the time it took goes to standard error."""
    path = work / f"{body['name']}.yaml"
    path.write_text(yaml.safe_dump(dict(body), sort_keys=False))
    command = [sys.executable, "-m", "flows.cli", "run", str(path), "--store", str(work / "store"), "--json"]
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    print(f"{body['name']}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    results: dict[str, Any] = json.loads(done.stdout)
    return results


def tables(results: Mapping[str, Any]) -> str:
    """Return a table for each keep: an arm a row, for each share its own steps, those with all costs, and the seconds."""
    return "\n\n".join(_table(results, entry) for entry in results["time_to_accuracy"]["keeps"])


def _table(results: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    many = results["time_to_accuracy"]["many"]
    accuracy = {arm["name"]: (arm["mean"], arm["ci95"]) for arm in results["arms"] if arm["keep"] == entry["keep"]}
    heads = ["arm", "touched", "accuracy at the end, %", "paid before, steps"]
    heads += [f"{100 * one['share']:g} % ({one['accuracy']:.2f})" for one in entry["targets"]]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in entry["arms"]:
        mean, interval = accuracy[row["arm"]]
        cells = [row["arm"], f"{row['examples_touched']:,}", f"{mean:.2f} ± {(interval[1] - interval[0]) / 2:.2f}"]
        cells.append(f"{row['charge']['steps']:,}")
        cells += [_cell(one, row["charge"]["steps"] > 0) for one in row["reached"]]
        lines.append(f"| {' | '.join(cells)} |")
    legend = (
        f"Columns of percentages: optimiser steps until that share of the full data's accuracy is reached for good; of arms that "
        f"paid before, alone / with all of it / with 1/{many} of it; then the seconds of the same."
    )
    return "\n".join([entry["sentence"], "", *lines, "", legend])


def _cell(one: Mapping[str, Any], charged: bool) -> str:
    if one["steps"] is None:
        return f"never ({one['replicates']} of {one['of']})" if one["replicates"] else "never"
    steps = [one["steps"], one["steps_one"], one["steps_many"]] if charged else [one["steps"]]
    seconds = [one["seconds"], one["seconds_one"], one["seconds_many"]] if charged else [one["seconds"]]
    return f"{_numbers(steps, 0)}; {_numbers(seconds, 1)} s"


def _numbers(values: Sequence[float | None], digits: int) -> str:
    return " / ".join("–" if value is None else f"{value:,.{digits}f}" for value in values)


def main() -> None:
    """Run both keeps and the race, and print their tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("time-to-accuracy"), help="folder of the store and the configurations")
    keeps = ",".join(f"{keep:g}" for keep in BANDS)
    parser.add_argument("--keeps", default=keeps, help="which keeps, with commas; '' is none, the race alone")
    parser.add_argument("--no-search", action="store_true", help="leave the race out")
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    for keep in filter(None, chosen.keeps.split(",")):
        print(tables(run(config(float(keep)), chosen.work)), end="\n\n", flush=True)
    if not chosen.no_search:
        print(tables(run(search_config(), chosen.work)), flush=True)


if __name__ == "__main__":
    main()
