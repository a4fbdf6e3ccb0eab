"""Bias and design variance of the calibrated protocols, theory over simulation: `python -m benchmarks.theory.moments`."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.theory.drawing import Panel, Series, figure
from benchmarks.theory.laws import F64
from benchmarks.theory.outcome import Outcome, Table, parser
from benchmarks.theory.population import Population, log_normal, signal_share, take_all, variance_curve
from tasks.seeding import derive_seed
from tasks.selection import ArrayRows, SelectionSpec, calibrated_selection

EXAMPLES = 500
KEEP = 0.1
ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)
ARMS = (("exact", None), ("tempered", 0.75), ("tempered", 0.5), ("tempered", 0.25), ("approximate", None))
RHO = 0.9
"""Correlation of score and log value in the table of bias and variance."""
SEARCHED = ((1.0, 0.05), (1.0, 0.1), (1.0, 0.3), (0.9, 0.05), (0.9, 0.1), (0.9, 0.3), (0.3, 0.05), (0.3, 0.1), (0.3, 0.3))
POPULATION_SEED = 4


def label(protocol: str, gamma: float | None) -> str:
    """Return the arm in words."""
    return protocol if gamma is None else f"{protocol} {gamma:g}"


def simulate(
    population: Population, protocol: str, keep: float, alpha: float, gamma: float | None, seeds: range
) -> F64:
    """Return the weighted mean of the values (R,) in selections by the shipped code, each of a seed of its own."""
    spec = SelectionSpec(score="s", protocol=protocol, keep=keep, alpha=alpha, gamma=gamma, direction="high")
    rows = ArrayRows(np.arange(population.size, dtype=np.int64), population.score)
    found = np.empty(len(seeds))
    for place, j in enumerate(seeds):
        table = calibrated_selection(rows, spec, derive_seed("moments", protocol, str((keep, alpha, gamma)), j))
        weighted = float(table.design.signal_weight[0]) * population.value[table.signal_id].sum()
        weighted += float(table.design.explore_weight[0]) * population.value[table.explore_id].sum()
        # Weights have mean 1 by design: over the number kept, not over their realised sum.
        found[place] = weighted / table.num_rows
    return found


@dataclass(frozen=True)
class Checked:
    """Hold one arm at one alpha: theory, simulation, and the difference of biases in standard errors.

    `fourth` is the mean fourth power of the standardised error: its standard error needs no estimate of the spread.
    """

    bias: float
    variance: float
    found_bias: float
    found_variance: float
    z_bias: float
    fourth: float
    count: int

    def z_variance(self, fourth: float) -> float:
        """Return the difference of variances in standard errors, for errors of the given standardised fourth moment."""
        return (self.found_variance / self.variance - 1) / math.sqrt((fourth - 1) / self.count)


def check(population: Population, protocol: str, alpha: float, gamma: float | None, seeds: range) -> Checked:
    """Return theory over simulation of one arm at one alpha."""
    m = round(KEEP * population.size)
    signal = round(alpha * m)
    share = signal_share(protocol, population.size, signal, m - signal, gamma)
    bias, variance = population.moments(signal, m - signal, share)
    error = simulate(population, protocol, KEEP, alpha, gamma, seeds) - population.value.mean()
    fourth = float((((error - bias) / math.sqrt(variance)) ** 4).mean())
    z_bias = (float(error.mean()) - bias) / math.sqrt(variance / len(seeds))
    return Checked(bias, variance, float(error.mean()), float(error.var(ddof=1)), z_bias, fourth, len(seeds))


def variance_error(values: F64) -> float:
    """Return the standard error of the sample variance of values (R,), whatever their law."""
    count = len(values)
    centred = values - values.mean()
    fourth, second = float((centred**4).mean()), float((centred**2).mean())
    return math.sqrt(max(fourth - second**2 * (count - 3) / (count - 1), 0.0) / count)


def brute_force(population: Population, kept: int) -> int:
    """Return the signal size of least Var_exact: the variance worked out anew for every split."""
    n = population.size
    return min(range(kept), key=lambda k: population.moments(k, kept - k, k / n)[1])


def _search(seeds: range) -> tuple[Table, list[Series]]:
    rows, lines = [], []
    for rho, keep in SEARCHED:
        population = log_normal(EXAMPLES, rho, POPULATION_SEED)
        kept = round(keep * EXAMPLES)
        best = brute_force(population, kept)
        curve = variance_curve(population.ranked, kept)
        rule = take_all(population.ranked, kept)
        got = simulate(population, "exact", keep, best / kept, None, seeds)
        ratio, error = float(got.var(ddof=1) / curve[0]), variance_error(got) / curve[0]
        rows.append([
            f"{rho:g}", f"{keep:g}", f"{best / kept:.3f}", f"{int(curve.argmin()) / kept:.3f}", f"{rule / kept:.3f}",
            f"{curve[best] / curve[0]:.4f}", f"{ratio:.4f}", f"{(ratio - curve[best] / curve[0]) / error:+.2f}",
            f"{curve[rule] / curve[0]:.4f}",
        ])  # fmt: skip
        if keep == KEEP:
            spot = [(best / kept, ratio, ratio - 1.96 * error, ratio + 1.96 * error)]
            lines.append(Series(f"score with rho {rho:g}", 5 + len(lines), spot, [float(v) for v in curve / curve[0]], False))
    table = Table(
        "alpha* for exact", ["rho", "keep", "alpha*, brute force", "by prefix sums", "by the take-all rule",
                             "Var(alpha*)/Var_random", "simulated", "z", "Var(rule)/Var_random"], rows,
        "rho: correlation of the score with log y. Brute force works the variance out anew for every signal size; prefix "
        "sums give the whole curve from one sort; the take-all rule stops at the first example not worth a certain place.",
    )  # fmt: skip
    return table, lines


def run(seeds: range, search_seeds: range) -> Outcome:
    """Return tables and figure over all arms and alphas."""
    from scipy.stats import chi2

    started = time.monotonic()
    population = log_normal(EXAMPLES, RHO, POPULATION_SEED)
    m = round(KEEP * EXAMPLES)
    xs = [k / m for k in range(1, m)]
    rows, z_bias, z_variance = [], [], []
    lines: list[list[Series]] = [[], [], []]
    checks = {
        (protocol, gamma, alpha): check(population, protocol, alpha, gamma, seeds)
        for protocol, gamma in ARMS for alpha in ALPHAS
    }  # fmt: skip
    # The standardised error is the same affine function of the exploration's mean in every arm of one alpha.
    fourth = {alpha: float(np.mean([got.fourth for (*_, at), got in checks.items() if at == alpha])) for alpha in ALPHAS}
    for kind, (protocol, gamma) in enumerate(ARMS):
        spots: list[list[tuple[float, float, float, float]]] = [[], [], []]
        for alpha in ALPHAS:
            got = checks[protocol, gamma, alpha]
            z_bias.append(got.z_bias)
            z_variance.append(got.z_variance(fourth[alpha]))
            off = "" if not got.bias else f"{100 * (got.found_bias / got.bias - 1):+.2f} %"
            rows.append([
                label(protocol, gamma), f"{alpha:g}", f"{got.bias:.5f}", f"{got.found_bias:.5f}", off or "-",
                f"{got.z_bias:+.2f}", f"{got.variance:.6f}", f"{got.found_variance:.6f}",
                f"{100 * (got.found_variance / got.variance - 1):+.2f} %", f"{z_variance[-1]:+.2f}",
                f"{math.sqrt(got.bias**2 + got.variance):.4f}",
            ])  # fmt: skip
            error = math.hypot(got.found_bias, math.sqrt(got.found_variance))
            for place, value in enumerate((got.found_bias, math.sqrt(got.found_variance), error)):
                spots[place].append((alpha, value, value, value))
        truth = []
        for k in range(1, m):
            bias, variance = population.moments(k, m - k, signal_share(protocol, EXAMPLES, k, m - k, gamma))
            truth.append((bias, math.sqrt(variance), math.hypot(bias, math.sqrt(variance))))
        for place, line in enumerate(lines):
            line.append(Series(label(protocol, gamma), kind, spots[place], [values[place] for values in truth], False))
    count = len(z_bias)
    sums = [float(np.square(z).sum()) for z in (z_bias, z_variance)]
    checked = Table(
        "Bias and variance in alpha",
        ["arm", "alpha", "bias, theory", "simulated", "error", "z", "variance, theory", "simulated", "error", "z",
         "root of mean squared error"], rows,
        f"n = {EXAMPLES}, keep {KEEP:g}, mean of y {population.value.mean():.4f}, rho {RHO:g}, {len(seeds):,} seeds an arm and "
        f"alpha, none shared. Sum of z squared over {count}: bias {sums[0]:.1f} (p = {chi2.sf(sums[0], count):.3f}), variance "
        f"{sums[1]:.1f} (p = {chi2.sf(sums[1], count):.3f}).",
    )  # fmt: skip
    best, searched = _search(search_seeds)
    panels = [
        Panel(name, "alpha", y_name, xs, line, False, False)
        for name, y_name, line in zip(("Bias", "Standard deviation", "Root of mean squared error"), ("bias", "sd", "rmse"), lines)
    ]
    curve_xs = [k / m for k in range(m)]
    panels.append(Panel("exact: variance over random's", "alpha", "ratio", curve_xs, searched, False, True))
    drawn = figure(
        f"Bias and variance of the weighted mean, keep {KEEP:g}", panels,
        "dashed: closed forms; points: simulation by the shipped code, in the last panel at alpha*",
    )  # fmt: skip
    alt = "simulated bias, standard deviation and error lie on the closed-form curves in alpha for every protocol"
    return Outcome("moments", "Bias and variance of calibrated selections", [checked, best], drawn, alt, started)


def main(argv: Sequence[str] | None = None) -> None:
    """Print theory over simulation, and write it with a figure."""
    given = list(sys.argv[1:] if argv is None else argv)
    options = parser(__doc__, 10_000)
    options.add_argument("--search-replicates", type=int, default=5000, help="seeds at each alpha*; default 5000")
    options.add_argument("--first", type=int, default=0, help="number of the first seed; another gives a fresh set")
    chosen = options.parse_args(given)
    outcome = run(*(range(chosen.first, chosen.first + count) for count in (chosen.replicates, chosen.search_replicates)))
    outcome.write(chosen.out, shlex.join(["python", "-m", "benchmarks.theory.moments", *given]))


if __name__ == "__main__":
    main()
