"""The law of what is kept against its closed-form limit, in one dimension: `python -m benchmarks.theory.weak_limit`."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.theory.drawing import Panel, Series, figure
from benchmarks.theory.laws import F64, NORMAL, UNIFORM, Base, Law, empirical, kolmogorov, sup_distance, wasserstein
from benchmarks.theory.outcome import Outcome, Table, interval, parser, said, slope
from tasks.seeding import derive_seed
from tasks.selection import ArrayRows, SelectionSpec, calibrated_selection

SIZES = (100, 316, 1000, 3162, 10_000, 31_623, 100_000, 316_228, 1_000_000)
KEEPS = (0.05, 0.3)
FITTED = 1000
"""The rate is fitted from this size on: below, the few kept examples make the distances lattice-valued."""
SETTLED = 10_000
"""The constant is compared from this size on."""


@dataclass(frozen=True)
class Case:
    """Hold a data law and a fixed score |x - centre|, kept at its `direction` end."""

    base: Base
    centre: float
    direction: str

    @property
    def label(self) -> str:
        """Return the case in words."""
        inside = "x" if self.centre == 0 else f"x - {self.centre:g}"
        return f"{self.base.name}, |{inside}| {self.direction}"

    def breaks(self, mass: float) -> tuple[float, float]:
        """Return the edges of the score's acceptance region of probability `mass`."""
        tail = mass / 2 if self.direction == "high" else (1 - mass) / 2
        low, high = self.base.ppf(np.array([tail, 1 - tail]))
        return float(low), float(high)

    def kept(self, points: F64, mass: float) -> Any:
        """Return which points lie in that region (N,)."""
        low, high = self.breaks(mass)
        inside = (points > low) & (points < high)
        return inside if self.direction == "low" else ~inside


@dataclass(frozen=True)
class Arm:
    """Hold a protocol, with the weight of its signal in the limit law when `keep` is kept."""

    protocol: str
    alpha: float | None = None

    @property
    def label(self) -> str:
        """Return the arm in words."""
        return self.protocol if self.alpha is None else f"{self.protocol} {self.alpha:g}"

    @property
    def signal(self) -> float:
        """Return alpha as it applies."""
        return {"topk": 1.0, "random": 0.0}.get(self.protocol, self.alpha or 0.0)

    def share(self, keep: float) -> float:
        """Return the weight that the signal has: alpha, or its own mass alpha keep where weights restore it."""
        return self.signal * keep if self.protocol == "exact" else self.signal

    def spec(self, keep: float, direction: str) -> SelectionSpec:
        """Return the selection's settings."""
        if self.protocol == "random":
            return SelectionSpec(protocol="random", keep=keep)
        return SelectionSpec(score="s", protocol=self.protocol, keep=keep, alpha=self.alpha, direction=direction)


CASES = (Case(NORMAL, 0.0, "high"), Case(UNIFORM, 0.5, "low"))
ARMS = (Arm("topk"), Arm("exact", 0.5), Arm("approximate", 0.5))


def limit_law(case: Case, arm: Arm, keep: float) -> Law:
    """Return the weak limit of the weighted kept law: constant density ratios on the signal's region and off it."""
    mass, share = arm.signal * keep, arm.share(keep)
    on, off = (share / mass if mass else 1.0), (1 - share) / (1 - mass)
    if case.direction == "high":
        return Law(case.base, case.breaks(mass), (on, off, on))
    return Law(case.base, case.breaks(mass), (off, on, off))


def data_law(case: Case, mass: float) -> Law:
    """Return the data law itself, cut at the edges of the region of probability `mass`."""
    return Law(case.base, case.breaks(mass), (1.0, 1.0, 1.0))


def expected_distance(case: Case, arm: Arm, keep: float) -> float:
    """Return the limit of sqrt(n) E W1(kept law, its limit).

    sqrt(n) (F_n - F)(t) tends to a normal law of variance v(t), so the limit is sqrt(2/pi) times the integral of
    sqrt(v). The influence of a data point x on F_n(t), with f = 1[x <= t], c = E[f | score at the threshold], p the
    signal's mass and w the weight of the signal, is (a/p) 1[x in S] (f - c) + b f, where b = (1-w)/(1-p) and
    a = w - b p; the draw of the exploration adds (1-w)^2 (1 - pi) Var_C(f) / ((1-alpha) keep), pi its probability.
    """
    p, w = arm.signal * keep, arm.share(keep)
    low, high = case.breaks(p)
    reach = 9.0 if case.base is NORMAL else 1.0
    t = np.linspace(-reach if case.base is NORMAL else 0.0, reach, 40_001)
    total = case.base.cdf(t)
    inside = case.base.cdf(np.clip(t, low, high)) - case.base.cdf(np.array([low]))
    signal = inside if case.direction == "low" else total - inside
    rest = total - signal
    c = ((t >= low).astype(float) + (t >= high)) / 2
    b = (1 - w) / (1 - p) if p < 1 else 0.0
    scale = (w - b * p) / p if p else 0.0
    first = signal * (scale * (1 - c) + b) - (p - signal) * scale * c + rest * b
    second = signal * (scale * (1 - c) + b) ** 2 + (p - signal) * (scale * c) ** 2 + rest * b**2
    variance = second - first**2
    if arm.signal < 1:
        off = rest / (1 - p)
        explored = (1 - arm.signal) * keep
        variance = variance + (1 - w) ** 2 * (1 - explored / (1 - p)) * off * (1 - off) / explored
    return math.sqrt(2 / math.pi) * float(np.trapezoid(np.sqrt(np.maximum(variance, 0.0)), t))


@dataclass
class Measured:
    """Hold distances (sizes, replicates): to the arm's own limit, to the data law, and the excess weight on S."""

    kolmogorov: F64
    wasserstein: F64
    data_kolmogorov: F64
    data_wasserstein: F64
    shift: F64


def measure(case: Case, arm: Arm, keep: float, sizes: Sequence[int], replicates: int) -> Measured:
    """Draw data, select by the shipped code, and return the distances of the weighted kept law."""
    limit, data = limit_law(case, arm, keep), data_law(case, arm.signal * keep)
    spec = arm.spec(keep, case.direction)
    found = np.empty((5, len(sizes), replicates))
    for i, n in enumerate(sizes):
        ids = np.arange(n, dtype=np.int64)
        for j in range(replicates):
            seed = derive_seed("weak limit", case.label, arm.label, str(keep), n, j)
            points = case.base.draw(np.random.default_rng(seed), n)
            table = calibrated_selection(ArrayRows(ids, np.abs(points - case.centre)), spec, seed)
            kept = points[np.concatenate([table.signal_id, table.explore_id])]
            weights = np.repeat(
                [table.design.signal_weight[0], table.design.explore_weight[0]],
                [len(table.signal_id), len(table.explore_id)],
            )
            at, steps = empirical(kept, weights)
            on = float(weights[case.kept(kept, arm.signal * keep)].sum() / weights.sum())
            found[:, i, j] = (
                kolmogorov(at, steps, limit), wasserstein(at, steps, limit),
                kolmogorov(at, steps, data), wasserstein(at, steps, data), on - arm.signal * keep,
            )  # fmt: skip
    return Measured(*found)


def run(sizes: Sequence[int], replicates: int) -> Outcome:
    """Return tables and figure over all cases, keeps and arms."""
    started = time.monotonic()
    fitted = [i for i, n in enumerate(sizes) if n >= min(FITTED, sizes[-2])]
    settled = [i for i, n in enumerate(sizes) if n >= min(SETTLED, sizes[-1])]
    n = np.array(sizes, dtype=float)
    rates, levels, far, panels = [], [], [], []
    for case in CASES:
        for keep in KEEPS:
            lines = []
            for number, arm in enumerate(ARMS):
                got = measure(case, arm, keep, sizes, replicates)
                constant = expected_distance(case, arm, keep)
                level = (got.wasserstein * np.sqrt(n)[:, None] / constant)[settled].ravel()
                name = [case.label, f"{keep:g}", arm.label]
                rates.append([
                    *name, said(*slope(n[fitted], got.kolmogorov[fitted]), 3),
                    said(*slope(n[fitted], got.wasserstein[fitted]), 3), f"{constant:.3f}", said(*interval(level), 3),
                ])  # fmt: skip
                levels.append([*name, *(f"{row.mean():.2g}" for row in got.kolmogorov)])
                mass = arm.signal * keep
                closed = sup_distance(limit_law(case, arm, keep), data_law(case, mass))
                far.append([
                    *name, f"{closed:.4f}", said(*interval(got.data_kolmogorov[-1]), 4), f"{arm.share(keep) - mass:.4f}",
                    said(*interval(got.shift[-1]), 4),
                ])  # fmt: skip
                lines.append(Series(arm.label, number, _points(n, got.wasserstein), truth=list(constant / np.sqrt(n))))
                if arm.protocol == "topk":
                    lines.append(Series("topk, to the data law", 3, _points(n, got.data_wasserstein)))
            panels.append(Panel(f"{case.label}, keep {keep:g}", "n", "W1", [float(v) for v in n], lines))
    tables = [
        Table(
            "Rates", ["data, score", "keep", "arm", "slope, Kolmogorov", "slope, W1", "sqrt(n) E W1, theory",
                      "measured / theory"], rates,
            f"Slope of log distance on log n from n = {sizes[fitted[0]]:,} on, all replicates, ± 95 % t interval; the "
            f"theory says -0.5. Last column: mean over replicates of n >= {sizes[settled[0]]:,}; the theory says 1.",
        ),
        Table(
            "What remains at the largest n", ["data, score", "keep", "arm", "Kolmogorov to the data law, limit", "measured",
                                              "shift of weight onto S, limit", "measured"], far,
            f"n = {sizes[-1]:,}. S is the signal's region in the limit. For topk the shift is 1 - keep, for exact 0, for "
            "approximate alpha (1 - keep): the total variation distance to the data law.",
        ),
        Table(
            "Mean Kolmogorov distance to the arm's own limit", ["data, score", "keep", "arm", *(f"{size:,}" for size in sizes)],
            levels,
        ),
    ]  # fmt: skip
    drawn = figure(
        "Wasserstein distance of the kept law against n", panels,
        f"mean and 95 % interval of {replicates} replicates; dashed: the theory for the distance to the arm's own limit",
    )  # fmt: skip
    alt = "W1 to its own limit falls as n to the power -1/2 in every arm; that of topk to the data law stays where it is"
    return Outcome("weak_limit", "Weak limit of what is kept", tables, drawn, alt, started)


def _points(n: F64, values: F64) -> list[tuple[float, float, float, float]]:
    out = []
    for size, row in zip(n, values):
        mean, half = interval(row)
        out.append((float(size), mean, mean - half, mean + half))
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Print the distances, and write them with a figure."""
    given = list(sys.argv[1:] if argv is None else argv)
    options = parser(__doc__, 30)
    options.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of examples")
    chosen = options.parse_args(given)
    outcome = run(chosen.sizes, chosen.replicates)
    outcome.write(chosen.out, shlex.join(["python", "-m", "benchmarks.theory.weak_limit", *given]))


if __name__ == "__main__":
    main()
