"""Bias and variance of the unbiased samplers over 10,000 draws of the shipped code: `python -m benchmarks.samplers`."""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.selection import SelectionSpec, calibrated_selection
from tasks.selection.rows import ArrayRows

F64 = npt.NDArray[np.float64]

N = 400
HEAD = """# Samplers that promise an unbiased estimate, over {draws:,} draws

`python -m benchmarks.samplers` ({seconds:.0f} s on {cores} cores). {n} examples, a value that goes with the score but not all
the way; each draw is one seed through `calibrated_selection`. `z` is the bias of the estimated mean in its standard errors, for
`ccs` over the examples it retains; `ratio` is the simulated variance over the approximation of Hartley & Rao (1962), which is of
`pps`; `relative` is the simulated variance over that of a simple random sample of the same size, without replacement, of the same
population. At {draws:,} draws a variance is known to about {error:.1f} %.

| population | protocol | keep | bias | z | variance | ratio | relative |
|---|---|---|---|---|---|---|---|
"""


def populations() -> dict[str, tuple[F64, F64]]:
    """Return (scores, values), both (N,), by name."""
    generator = np.random.default_rng(8)
    skewed = generator.random(N) ** 3
    heavy = generator.lognormal(0, 1, N)
    return {
        "score u^3, value 1 + 2 s + u": (skewed, 1 + 2 * skewed + generator.random(N)),
        "log-normal score, value s (0.5 + u)": (heavy, heavy * (0.5 + generator.random(N))),
    }


def protocols() -> list[SelectionSpec]:
    """Return the selections that are simulated."""
    return [
        SelectionSpec(protocol="exact", score="el2n", alpha=0.3, keep=0.1),
        SelectionSpec(protocol="ccs", score="el2n", beta=0.1, strata=20, weights="ht", keep=0.1),
        SelectionSpec(protocol="pps", score="el2n", keep=0.05),
        SelectionSpec(protocol="pps", score="el2n", keep=0.2),
    ]


def simulate(rows: ArrayRows, chosen: SelectionSpec, value: F64, draws: int) -> tuple[F64, F64]:
    """Return the estimated means (draws,), and the probability of each row that was ever drawn (N,), 0 elsewhere."""
    means, chance = np.empty(draws), np.zeros(N)
    for seed in range(draws):
        table = calibrated_selection(rows, chosen, seed)
        if table.explore_prob is not None and table.explore_weight is not None:
            probability, weight = table.explore_prob, table.explore_weight
        else:
            group = np.zeros(len(table.explore_id), dtype=int) if table.explore_group is None else table.explore_group
            probability, weight = table.design.explore_prob[group], table.design.explore_weight[group]
        chance[table.explore_id], chance[table.signal_id] = probability, 1
        total = (value[table.explore_id] * weight).sum() + value[table.signal_id].sum() * table.design.signal_weight[0]
        means[seed] = total / table.num_rows
    return means, chance


def hartley_rao(value: F64, chance: F64) -> float:
    """Return the approximate variance of the estimated mean under systematic sampling in random order."""
    free = (chance > 0) & (chance < 1)
    y, pi = value[free], chance[free]
    m = pi.sum()
    return float((pi * (1 - (m - 1) / m * pi) * (y / pi - y.sum() / m) ** 2).sum()) / N**2


def line(name: str, chosen: SelectionSpec, scores: F64, value: F64, draws: int) -> str:
    """Return one row of the table."""
    means, chance = simulate(ArrayRows(np.arange(N, dtype=np.int64), scores), chosen, value, draws)
    spoken_for = value[chance > 0]
    bias, variance = means.mean() - spoken_for.mean(), means.var(ddof=1)
    m = round(chosen.keep * N)
    plain = spoken_for.var(ddof=1) / m * (1 - m / len(spoken_for))
    ratio = f"{variance / hartley_rao(value, chance):.3f}" if chosen.protocol == "pps" else ""
    z = bias / math.sqrt(variance / draws)
    cells = [name, chosen.protocol, f"{chosen.keep:g}", f"{bias:+.2e}", f"{z:+.2f}", f"{variance:.3e}", ratio]
    return f"| {' | '.join(cells)} | {variance / plain:.2f} |"


def main() -> None:
    """Simulate, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--out", default="benchmarks/samplers.md")
    options = parser.parse_args()
    started = time.perf_counter()
    lines = []
    for name, (scores, value) in populations().items():
        for chosen in protocols():
            lines.append(line(name, chosen, scores, value, options.draws))
            print(lines[-1], flush=True)
    head = HEAD.format(
        draws=options.draws, seconds=time.perf_counter() - started, cores=os.cpu_count(), n=N,
        error=100 * math.sqrt(2 / options.draws),
    )  # fmt: skip
    Path(options.out).write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
