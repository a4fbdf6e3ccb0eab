"""Bias and variance of the weighted samplers over 10,000 draws of the shipped code: `python -m benchmarks.samplers`.

`--part unbiased` or `--part raked` simulates one table again and leaves the other as it is.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.selection import SelectionSpec, calibrated_selection
from tasks.selection.rows import ArrayRows

F64 = npt.NDArray[np.float64]

N = 400
HEAD = """# Samplers that promise an unbiased estimate, over {draws:,} draws

`python -m benchmarks.samplers --part unbiased` ({seconds:.0f} s on {cores} cores). {n} examples, a value that goes with the
score but not all the way; each draw is one seed through `calibrated_selection`. `z` is the bias of the estimated mean in its
standard errors, for `ccs` over the examples it retains; `ratio` is the simulated variance over the approximation of Hartley & Rao
(1962), which is of `pps`; `relative` is the simulated variance over that of a simple random sample of the same size, without
replacement, of the same population. At {draws:,} draws a variance is known to about {error:.1f} %.

| population | protocol | keep | bias | z | variance | ratio | relative |
|---|---|---|---|---|---|---|---|
"""
RAKED = "# Calibrated weights"
RAKED_HEAD = RAKED + """, over {draws:,} draws

`python -m benchmarks.samplers --part raked` ({seconds:.0f} s on {cores} cores). {n:,} examples of {classes} classes, scores u^2,
alpha 0.2; each draw is one seed through `calibrated_selection`, and all values are estimated from the same draws. `rows` are the
explored rows a margin, `deviation` the greatest relative deviation of any margin in any draw, of the float64 weights and of the
float32 column. `bias` is that of the estimated mean over the standard deviation of one estimate: of order 1/m and not 0. `ratio`
is the simulated variance over the residual formula, that of a simple random sample of the residuals of a regression on the
margins over the complement; `exact` is that formula over the design variance of `exact`, whose rows these are, and `relative` the
simulated variance over it. No margin was joined in any draw. At {draws:,} draws a variance is known to about {error:.1f} %.

| margins | number | rows | deviation | value | bias | z | variance | ratio | exact | relative |
|---|---|---|---|---|---|---|---|---|---|---|
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


N_RAKED, CLASSES, ALPHA = 3000, 4, 0.2


def classed() -> tuple[ArrayRows, dict[str, F64]]:
    """Return rows with scores and classes, and values (N,) by name, from well explained by margins to not at all."""
    generator = np.random.default_rng(9)
    score, code = generator.random(N_RAKED) ** 2, generator.integers(0, CLASSES, N_RAKED)
    noise = generator.random(N_RAKED)
    values = {
        "1 + 2 s + class / 2 + u": 1 + 2 * score + code / 2 + noise,
        "(1 + class) s + u / 2": (1 + code) * score + noise / 2,
        "u": noise,
    }
    return ArrayRows(np.arange(N_RAKED, dtype=np.int64), score, code, CLASSES), values


def raked_protocols() -> dict[str, SelectionSpec]:
    """Return the calibrated selections that are simulated: 30 rows a margin or more, and the 20 that are the least."""
    raked = {"protocol": "raked", "score": "el2n", "alpha": ALPHA}
    return {
        "4 classes + 5 bins": SelectionSpec(bins=5, keep=0.1, **raked),
        "4 classes x 5 bins": SelectionSpec(bins=5, keep=0.3, margins="crossed", **raked),
        "4 classes + 9 bins": SelectionSpec(bins=9, keep=0.1, **raked),
    }


def families(rows: ArrayRows, found: dict[str, Any]) -> list[npt.NDArray[np.int64]]:
    """Return the margin (N,) of each row in each family, from the edges of a record."""
    assert rows.score is not None and rows.code is not None
    bins = np.sum([rows.score <= edge for edge in found["bin_edges"]], axis=0)
    return [rows.code * (bins.max() + 1) + bins] if found["bin_margins"] is None else [rows.code, bins]


def residual_variance(value: F64, margins: Sequence[npt.NDArray[np.int64]], drawn: int) -> float:
    """Return the variance of the estimated mean by the residuals, for rows (N,) of the complement (Deville & Särndal 1992)."""
    columns = np.concatenate([family[:, None] == np.unique(family) for family in margins], axis=1).astype(np.float64)
    left = value - columns @ np.linalg.lstsq(columns, value, rcond=None)[0]
    n = len(value)
    return float((n / N_RAKED) ** 2 * (1 - drawn / n) * left.var(ddof=1) / drawn)


def raked_lines(name: str, chosen: SelectionSpec, rows: ArrayRows, values: dict[str, F64], draws: int) -> list[str]:
    """Return the rows of the table of one calibrated selection, one a value."""
    means = np.empty((len(values), draws))
    every = np.array(list(values.values()))
    deviations = np.zeros(2)
    for seed in range(draws):
        table = calibrated_selection(rows, chosen, seed)
        found = table.facts["calibration"]
        if found["joined_margins"]:
            raise RuntimeError(f"seed {seed}: margins were joined, and the formula is of others; fewer bins")
        deviations = np.maximum(deviations, [found["deviation"], found["deviation_float32"]])
        assert table.signal_group is not None and table.explore_group is not None
        total = every[:, table.explore_id] @ table.design.explore_weight[table.explore_group]
        total += every[:, table.signal_id] @ table.design.signal_weight[table.signal_group]
        means[:, seed] = total / table.num_rows
    rest = np.setdiff1d(np.arange(N_RAKED), table.signal_id)
    explored = len(table.explore_id)
    labels = [family[rest] for family in families(rows, found)]
    lines = []
    for (which, value), estimates in zip(values.items(), means):
        variance, formula = estimates.var(ddof=1), residual_variance(value[rest], labels, explored)
        exact = residual_variance(value[rest], [np.zeros(len(rest), dtype=np.int64)], explored)
        bias = (estimates.mean() - value.mean()) / math.sqrt(variance)
        cells = [
            name, f"{found['num_margins']}", f"{explored / found['num_margins']:.0f}",
            f"{deviations[0]:.0e} / {deviations[1]:.0e}", which, f"{bias:+.3f}", f"{bias * math.sqrt(draws):+.2f}",
            f"{variance:.3e}", f"{variance / formula:.3f}", f"{formula / exact:.2f}", f"{variance / exact:.2f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def unbiased_table(draws: int) -> list[str]:
    """Return the rows of the table of the unbiased samplers."""
    lines = []
    for name, (scores, value) in populations().items():
        for chosen in protocols():
            lines.append(line(name, chosen, scores, value, draws))
            print(lines[-1], flush=True)
    return lines


def raked_table(draws: int) -> list[str]:
    """Return the rows of the table of calibrated weights."""
    rows, values = classed()
    lines = []
    for name, chosen in raked_protocols().items():
        found = raked_lines(name, chosen, rows, values, draws)
        print("\n".join(found), flush=True)
        lines += found
    return lines


def main() -> None:
    """Simulate, print, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--out", default="benchmarks/samplers.md")
    parser.add_argument("--part", choices=["unbiased", "raked"])
    options = parser.parse_args()
    parts = {"unbiased": (HEAD, unbiased_table, N), "raked": (RAKED_HEAD, raked_table, N_RAKED)}
    old = dict.fromkeys(parts, "")
    if options.part is not None:
        first, mark, second = Path(options.out).read_text().partition(RAKED)
        old = {"unbiased": first.rstrip("\n"), "raked": (mark + second).rstrip("\n")}
    texts = []
    for name, (head, simulated, n) in parts.items():
        if options.part not in (None, name):
            texts.append(old[name])
            continue
        started = time.perf_counter()
        lines = simulated(options.draws)
        said = head.format(
            draws=options.draws, seconds=time.perf_counter() - started, cores=os.cpu_count(), n=n, classes=CLASSES,
            error=100 * math.sqrt(2 / options.draws),
        )  # fmt: skip
        texts.append(said + "\n".join(lines))
    Path(options.out).write_text("\n\n".join(text for text in texts if text) + "\n")


if __name__ == "__main__":
    main()
