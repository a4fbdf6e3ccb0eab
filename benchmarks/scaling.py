"""Scaling laws on trained models: `python -m benchmarks.scaling` writes `scaling.md` and `docs/figures/scaling.svg`.

MNIST-1D, one draw of 100,000 rows cut to six nested sizes of ratio 3, so that keep 0.3 of one size has about as many examples as
keep 0.1 of the next. Each size is one sweep; `--table` only fits and draws what is in the store. With `--steps N` every training
of every size has N steps, in place of five epochs and at least 400 steps; give it a folder and a page of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from benchmarks.theory.drawing import Panel, Series, figure
from tasks.comparison.paired import mean_interval
from tasks.scaling import Scaling, SlopeDifference, envelope, fit_scaling, slope_difference

F64 = npt.NDArray[np.float64]

ROWS = 100_000
LIMITS = [round(ROWS / 3**step) for step in range(5, -1, -1)]
KEEPS = (0.1, 0.3)
REPLICATES = 5
MODEL = {"use": "mlp", "args": {"hidden": [256]}}
ARMS = {
    "random": "random", "topk": "topk el2n", "exact, alpha 0.2": "exact el2n alpha=0.2",
    "band, beta 0.1, width 0.4": "band el2n beta=0.1 width=0.4",
}  # fmt: skip

HEAD = """# Scaling laws on trained models

`python -m benchmarks.scaling{option}`, {seconds:.0f} s on {cores} cores that had other work too. MNIST-1D, one draw of
{rows:,} rows cut to six nested sizes, the same 50,000 test examples for all; MLP 40-256-10, EL2N from three proxies of
4 epochs at each size; five paired replicates, each a new selection and a new training of {training}.
Errors are on the test set, in %: the mean over replicates, ± half its 95 % interval by t. `n` is the train split that is selected
from; keep n examples are trained on, and no others are touched. {caveat}.
Data are one draw, with one set of proxies a size, which no interval and no p here counts.

![Test error against the size of the data at keep 0.1 and 0.3, log-log]({figure})
"""

FITS = """
## The fits

`err = a + b n^-c` over n at a fixed keep (`tasks/scaling.py`: residuals relative to the error, bootstrap in two levels).
`a` is in %. "Against random" is the difference of c with its interval, replicates drawn together. Where no law is identified,
a and c mean nothing and are left out.

| keep | arm | a | c | fit | against random |
|---|---|---|---|---|---|
"""

ENVELOPE = """
## The envelope

The better of two keeps that hold about as many examples m: 0.3 of a size n, or 0.1 of the next size, about 3 n. Both numbers are
given. `error` is too low, as the keep was chosen by it; `fair` chooses on one half of the replicates and scores on the other.
Both are in %.

| m at 0.3 and at 0.1 | arm | keep | error | fair |
|---|---|---|---|---|
"""


def config(limit: int, steps: int | None = None) -> dict[str, Any]:
    """Return the sweep at one size."""
    length = {"epochs": 5, "min_steps": 400} if steps is None else {"steps": steps}
    return {
        "name": f"scaling_{limit}",
        "data": {
            "source": {"use": "mnist1d", "args": {"rows": ROWS, "test": 50_000, "seed": 0}}, "train": "mnist1d", "limit": limit,
        },
        "proxy": {"model": MODEL, "seeds": 3, "epochs": 4, "batch_size": 64, "lr": 0.003},
        "score": {"scores": ["el2n"]},
        "sweep": {"score": "el2n", "protocol": ["topk", "exact", "band"], "alpha": 0.2, "beta": 0.1, "width": 0.4},
        "select": {"keep": list(KEEPS)},
        "shift": False,
        "train": {
            "model": MODEL, **length, "batch_size": 64, "lr": 0.003, "replicates": REPLICATES, "full": False,
        },
        "report": {"margin_points": 0.5},
    }  # fmt: skip


def run_size(limit: int, work: Path, steps: int | None) -> None:
    """Run the sweep at one size and keep its results; a sweep that was stopped goes on."""
    body = config(limit, steps)
    path = work / f"{body['name']}.yaml"
    path.write_text(yaml.safe_dump(body, sort_keys=False))
    start = time.monotonic()
    with (work / f"{body['name']}.log").open("ab") as log:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "sweep", str(path), "--store", str(work / "store"), "--json"],
            stdout=subprocess.PIPE, stderr=log, check=False,
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{body['name']} failed with exit code {done.returncode}: see {log.name}; the same command goes on")
    seconds = time.monotonic() - start
    print(f"{body['name']}: {seconds:.0f} s", flush=True)
    results = json.loads(done.stdout) | {"seconds": seconds}
    known = work / f"{body['name']}.json"
    if not known.exists():
        known.write_text(json.dumps(results))


def tables(found: Sequence[dict[str, Any]]) -> tuple[list[int], dict[tuple[float, str], F64]]:
    """Return the sizes n, and errors (S, R) in % by (keep, arm)."""
    sizes = [int(results["dataset"]["n_train"]) for results in found]
    errors = {
        (keep, said): np.array([
            100.0 - np.array(next(
                arm["accuracy"] for arm in results["arms"] if (arm["keep"], arm["name"]) == (keep, name)
            )) for results in found
        ]) for keep in KEEPS for said, name in ARMS.items()
    }  # fmt: skip
    return sizes, errors


def write(found: Sequence[dict[str, Any]], out: Path, drawing: Path, steps: int | None) -> None:
    """Fit, write the page and draw the figure."""
    option, training = "", "5 epochs of batch 64, at least 400 steps"
    caveat = "The least of 400 steps gives the small sizes more epochs than the large ones, which bends the curves"
    if steps is not None:
        option, training = f" --steps {steps}", f"{steps:,} steps of batch 64"
        caveat = "Equal steps are more epochs of the small sizes than of the large ones"
    sizes, errors = tables(found)
    fits = {key: fit_scaling(sizes, table) for key, table in errors.items()}
    text = HEAD.format(
        seconds=sum(results["seconds"] for results in found), cores=os.cpu_count() or 1, rows=ROWS, option=option,
        training=training, caveat=caveat, figure=os.path.relpath(drawing, out.parent),
    )  # fmt: skip
    for keep in KEEPS:
        text += f"\n| keep {keep:g} | " + " | ".join(f"n = {size:,}" for size in sizes) + " |\n|---|" + "---|" * len(sizes) + "\n"
        for words, name in (("distinct examples touched", "examples_touched"), ("steps of 64", "steps")):
            counts = same_in_all(found, keep, name)
            text += f"| {words} | " + " | ".join(f"{count:,}" for count in counts) + " |\n"
        for said in ARMS:
            text += f"| {said} | " + " | ".join(_mean(row) for row in errors[keep, said]) + " |\n"
    text += FITS
    for (keep, said), fit in fits.items():
        against = "" if said == "random" else _against(slope_difference(sizes, errors[keep, said], errors[keep, "random"]))
        text += f"| {keep:g} | {said} | {_law(fit)} | {against} |\n"
    text += ENVELOPE
    for said in ARMS:
        for kept, points in _envelopes(sizes, errors, said):
            text += f"| {kept} | {said} | {points} |\n"
    out.write_text(text)
    drawing.write_text(draw(sizes, errors, fits))


def same_in_all(found: Sequence[dict[str, Any]], keep: float, name: str) -> list[int]:
    """Return a count that all arms of a keep share, size by size: subsets are fixed and of one size."""
    out = []
    for results in found:
        (count,) = {int(arm[name]) for arm in results["arms"] if arm["keep"] == keep}
        out.append(count)
    return out


def _mean(replicates: F64) -> str:
    low, high = mean_interval(replicates) or (0.0, 0.0)
    return f"{replicates.mean():.2f} ± {(high - low) / 2:.2f}"


def _law(fit: Scaling) -> str:
    if not fit.identified:
        return f"– | – | not identified: {fit.reason}"
    a, c = (f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, (low, high) in ((fit.a, fit.a_ci95), (fit.c, fit.c_ci95)))
    return f"{a} | {c} | identified"


def _against(found: SlopeDifference) -> str:
    if found.finding == "not identified":
        return f"not identified ({found.reason.split(':')[0]})"
    low, high = found.ci95
    return f"{found.difference:+.2f} [{low:+.2f}, {high:+.2f}] {found.finding}"


def _envelopes(sizes: Sequence[int], errors: dict[tuple[float, str], F64], said: str) -> list[tuple[str, str]]:
    """Return (both m; keep, error and fair error) as parts of a row, wherever both keeps have about as many examples."""
    cells, both = {}, {}
    for place, (size, larger) in enumerate(itertools.pairwise(sizes)):
        kept = round(max(KEEPS) * size)
        both[kept] = f"{kept:,} and {round(min(KEEPS) * larger):,}"
        cells[kept, max(KEEPS)] = errors[max(KEEPS), said][place]
        cells[kept, min(KEEPS)] = errors[min(KEEPS), said][place + 1]
    return [(both[point.kept], f"{point.keep:g} | {point.error:.2f} | {point.fair_error:.2f}") for point in envelope(cells)]


def draw(sizes: Sequence[int], errors: dict[tuple[float, str], F64], fits: dict[tuple[float, str], Scaling]) -> str:
    """Return the figure: points with intervals over replicates, dashed the law where it is identified."""
    panels = []
    for keep in KEEPS:
        series = []
        for kind, said in enumerate(ARMS):
            points = []
            for size, row in zip(sizes, errors[keep, said]):
                interval = mean_interval(row) or (row.mean(), row.mean())
                points.append((float(size), float(row.mean()), float(interval[0]), float(interval[1])))
            fit = fits[keep, said]
            truth = [fit.a + fit.b * size**-fit.c for size in sizes] if fit.identified else []
            series.append(Series(said, kind, points, truth, joined=not truth))
        panels.append(Panel(f"keep {keep:g}", "n, examples to select from", "test error, %", [float(n) for n in sizes], series))
    caption = "MNIST-1D, MLP; intervals over five replicates; dashed: a + b n^-c where it is identified"
    return figure("Test error against the size of the data, at a fixed share kept", panels, caption)


def main() -> None:
    """Run the sizes, smallest first, then fit and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/scaling"), help="folder of configurations, logs and store")
    parser.add_argument("--steps", type=int, help="steps of every training")
    parser.add_argument("--table", action="store_true", help="only fit and draw")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/scaling.svg"))
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    for limit in () if chosen.table else LIMITS:
        run_size(limit, chosen.work, chosen.steps)
    found = [json.loads((chosen.work / f"scaling_{limit}.json").read_text()) for limit in LIMITS]
    write(found, chosen.out, chosen.figure, chosen.steps)


if __name__ == "__main__":
    main()
