"""Excess risk of a learner of anything on what is kept, as n grows: `python -m benchmarks.theory.inconsistency`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.theory.drawing import Panel, Series, figure
from benchmarks.theory.laws import F64
from benchmarks.theory.learners import DEFAULT, FIRST, MARGIN, Histogram, Neighbours, draw_labels
from benchmarks.theory.outcome import Outcome, Table, interval, parser, said, slope
from benchmarks.theory.weak_limit import Arm
from tasks.seeding import derive_seed
from tasks.selection import ArrayRows, calibrated_selection

SIZES = (100, 316, 1000, 3162, 10_000, 31_623, 100_000)
KEEPS = (0.05, 0.1, 0.3)
ARMS = (Arm("random"), Arm("topk"), Arm("exact", 0.2), Arm("exact", 0.5), Arm("exact", 0.8), Arm("approximate", 0.5))
KINDS = {"random": 3, "topk": 1, "exact 0.2": 5, "exact 0.5": 0, "exact 0.8": 4, "approximate 0.5": 2}
LEARNERS = (Histogram(), Neighbours())
FITTED = 1000


def measure(keep: float, arm: Arm, sizes: Sequence[int], replicates: int) -> F64:
    """Return excess risks (learners, sizes, replicates): fresh data, a fresh selection and fresh labels in each."""
    spec = arm.spec(keep, "low")
    found = np.empty((len(LEARNERS), len(sizes), replicates))
    for i, n in enumerate(sizes):
        ids = np.arange(n, dtype=np.int64)
        for j in range(replicates):
            seed = derive_seed("inconsistency", arm.label, str(keep), n, j)
            generator = np.random.default_rng(seed)
            x = generator.random(n)
            y = draw_labels(x, generator)
            table = calibrated_selection(ArrayRows(ids, np.abs(x - FIRST)), spec, seed)
            kept = np.concatenate([table.signal_id, table.explore_id])
            weights = np.repeat(
                [table.design.signal_weight[0], table.design.explore_weight[0]],
                [len(table.signal_id), len(table.explore_id)],
            )
            offset = float(generator.random())
            for number, learner in enumerate(LEARNERS):
                found[number, i, j] = learner.excess(x[kept], 2.0 * y[kept] - 1.0, weights, offset)
    return found


def run(sizes: Sequence[int], replicates: int) -> Outcome:
    """Return tables and figure over all keeps, arms and learners."""
    started = time.monotonic()
    fitted = [i for i, n in enumerate(sizes) if n >= min(FITTED, sizes[-2])]
    n = np.array(sizes, dtype=float)
    stays, vanishes, panels = [], [], []
    for keep in KEEPS:
        lines: list[list[Series]] = [[] for _ in LEARNERS]
        for arm in ARMS:
            got = measure(keep, arm, sizes, replicates)
            for number, learner in enumerate(LEARNERS):
                name = [learner.name, f"{keep:g}", arm.label]
                means = [f"{row.mean():.4f}" for row in got[number]]
                limit = learner.limit(keep)
                last = interval(got[number, -1])
                if arm.protocol == "topk":
                    rest = abs(last[0] - limit)
                    stays.append([
                        *name[:2], f"{1 - keep:.2f}", f"{limit / (1 - keep):.4f}", f"{limit:.4f}", *means, said(*last, 4),
                        f"{rest:.4f}", f"{learner.reach(keep, round(keep * sizes[-1])):.4f}",
                    ])  # fmt: skip
                else:
                    vanishes.append([*name, *means, said(*last, 4), said(*slope(n[fitted], got[number][fitted]), 2)])
                truth = [limit] * len(n) if arm.protocol == "topk" else []
                points = [(float(size), *_span(row)) for size, row in zip(n, got[number])]
                lines[number].append(Series(arm.label, KINDS[arm.label], points, truth))
        for learner, series in zip(LEARNERS, lines):
            panels.append(Panel(f"{learner.name}, keep {keep:g}", "n", "excess risk", list(n), series))
    sizes_said = [f"n = {size:,}" for size in sizes]
    tables = [
        Table(
            "topk: the excess risk stays",
            ["learner", "keep", "mass outside", "default loss", "limit, closed form", *sizes_said, "last, 95 % interval",
             "abs(last - limit)", "one cell"], stays,
            f"Limit = mass outside A_r times the default loss: the mean, over the outside, of the excess risk of what the "
            f"learner says there. Histogram: label {DEFAULT} in an empty cell. k-NN: the label at the nearer edge of A_r. "
            "Last column: what one cell, or one window of neighbours, at the edge of A_r or at a jump of the labels is worth.",
        ),
        Table(
            "The other arms: the excess risk vanishes",
            ["learner", "keep", "arm", *sizes_said, "last, 95 % interval", "slope"], vanishes,
            f"Slope of log excess risk on log n from n = {sizes[fitted[0]]:,} on, ± 95 % t interval. The Bayes risk is "
            f"{(1 - MARGIN) / 2:.2g}.",
        ),
    ]  # fmt: skip
    drawn = figure(
        "Excess risk of a local learner against n", panels,
        f"mean and 95 % interval of {replicates} replicates; dashed: where topk tends, in closed form",
    )  # fmt: skip
    alt = "the excess risk of topk stays at its closed-form limit; that of random, exact and approximate goes to zero"
    return Outcome("inconsistency", "Inconsistency of the top alone", tables, drawn, alt, started)


def _span(values: F64) -> tuple[float, float, float]:
    mean, half = interval(values)
    return mean, mean - half, mean + half


def main(argv: Sequence[str] | None = None) -> None:
    """Print the excess risks, and write them with a figure."""
    given = list(sys.argv[1:] if argv is None else argv)
    options = parser(__doc__, 100)
    options.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of examples")
    chosen = options.parse_args(given)
    outcome = run(chosen.sizes, chosen.replicates)
    outcome.write(chosen.out, shlex.join(["python", "-m", "benchmarks.theory.inconsistency", *given]))


if __name__ == "__main__":
    main()
