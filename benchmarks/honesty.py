"""Whether verdicts keep their word, over families of arms that are made up: `python -m benchmarks.honesty PART`.

A cheap stub stands for the learner. The right answers of arm a in replicate r on test example t are drawn as

    hardness_t + initialisation_r + selection_(a,r) + noise_(a,r,t) > 0

with 90 % right on average and the spreads measured on MNIST at keep 0.01 (benchmarks/cells.md, ten replicates): the standard
deviation of random's accuracy is 0.89 points, most of it by the subset (0.25 of it are the examples that flip between
trainings: 12 % between two arms), 0.05 by the initialisation, which the arms share. Null arms are random drawn again, with
the same 0.89, or arms of 0.59, whose paired difference to random then has the 1.07 that `prototype_band`'s had. The quiet
rows have 0.41 for all. Every draw has a fresh test set of 10,000 examples, and goes through the whole decision. PART is
`null`, `spreads`, `power` or `scope`; prints one table each, the same for the same number of runs.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.comparison import Comparison, Sample, compare_with_random
from tasks.comparison.adjustment import Shared
from tasks.comparison.dunnett import degrees_of
from tasks.comparison.paired import ALPHA, Paired
from tasks.comparison.power import needed_replicates

Floats = np.ndarray[Any, np.dtype[np.float64]]

RUNS = 400
MARGIN = 0.5
GAINS = (0.5, 1.0, 2.0)
INITIALISATION, ACCURACY = 0.05, 90.0
EXAMPLES = 10_000
# Spread of the examples' hardness at which two arms of 90 % disagree on 12 %, and where its mean must lie.
HARDNESS, CENTRE = 1.26, 2.0618
FLIPS = 0.245


@dataclass(frozen=True)
class Spread:
    """Hold the standard deviations over selections of random's accuracy and of each arm's, in points."""

    random: float
    arm: float

    def __str__(self) -> str:
        return f"{self.random:g}, {self.arm:g}"

    @property
    def paired(self) -> float:
        """Return the standard deviation of the difference of an arm to random."""
        return float((self.random**2 + self.arm**2) ** 0.5)


AGAIN, MEASURED, QUIET = Spread(0.89, 0.89), Spread(0.89, 0.59), Spread(0.41, 0.41)


@dataclass
class Tally:
    """Count over families of null arms what was claimed, and what the intervals covered."""

    families: int = 0
    better: int = 0
    either: int = 0
    dunnett: int = 0
    joint: int = 0
    arms: int = 0
    equivalent: int = 0
    plain: int = 0
    near: int = 0
    two_way: int = 0

    def add(self, rows: Sequence[Comparison]) -> None:
        """Count one family whose true differences are all 0."""
        self.families += 1
        self.better += any(row.verdict == "better" for row in rows)
        self.either += any(row.verdict in ("better", "worse") for row in rows)
        self.dunnett += rows[0].adjustment == "Dunnett"
        self.joint += all(_covers(row.ci95) for row in rows)
        for row in rows:
            self.arms += 1
            self.equivalent += row.verdict == "equivalent"
            self.plain += _covers(row.ci95_unadjusted)
            self.near += _covers(row.equivalence_ci)
            self.two_way += _covers(row.two_way_ci95)

    def cells(self) -> list[str]:
        """Return the cells of a table's row, after those that say what was drawn."""
        share = self.better / self.families
        error = (share * (1 - share) / self.families) ** 0.5
        return [
            f"{100 * share:.1f} ± {100 * error:.1f}", f"{100 * self.either / self.families:.1f}",
            f"{100 * self.dunnett / self.families:.0f}", f"{100 * self.plain / self.arms:.1f}",
            f"{100 * self.joint / self.families:.1f}", f"{100 * self.equivalent / self.arms:.0f}",
        ]  # fmt: skip


HEAD = ("any false `better`, %", "any false `better` or `worse`, %", "Dunnett used, %", "plain 95 % interval covers, %",
        "all adjusted intervals cover, %", "arms `equivalent`, %")  # fmt: skip


def _covers(interval: tuple[float, float] | None) -> bool:
    return interval is not None and interval[0] <= 0.0 <= interval[1]


def tables(rng: np.random.Generator, arms: int, replicates: int, spread: Spread, unlike: float = 0.0) -> list[Sample]:
    """Return random and `arms` arms without a gain, with their tables of right answers; see this module's docstring.

    `unlike` adds what one arm always finds easier or harder in an example than the others: the arms stay equal over
    all examples there could be, and differ on the 10,000 at hand.
    """
    # A shift of the latent moves accuracy by the density at its centre.
    scale = np.sqrt(1 + HARDNESS**2 + unlike**2)
    centre = CENTRE * scale / np.sqrt(1 + HARDNESS**2)
    slope = 100 * np.exp(-((centre / scale) ** 2) / 2) / np.sqrt(2 * np.pi) / scale
    hardness = rng.normal(centre, HARDNESS, EXAMPLES).astype(np.float32)
    shared = rng.normal(0, INITIALISATION / slope, replicates)
    subset = np.sqrt(np.array([spread.random, *[spread.arm] * arms]) ** 2 - FLIPS**2) / slope
    # A wider spread lowers the mean accuracy (0.02 points): where spreads differ, the latent's mean makes up for it.
    means = centre * (np.sqrt((scale**2 + subset**2) / (scale**2 + subset[0] ** 2)) - 1)
    out = []
    for deviation, mean in zip(subset, means):
        own = rng.normal(0, deviation, replicates) + shared + mean
        place = hardness + unlike * rng.standard_normal(EXAMPLES, dtype=np.float32)
        noise = rng.standard_normal((replicates, EXAMPLES), dtype=np.float32)
        right = noise + own.astype(np.float32)[:, None] + place > 0
        out.append(Sample(100.0 * right.mean(axis=1), right))
    return out


def figures(rng: np.random.Generator, spreads: Sequence[float], replicates: int, tails: float = 0.0) -> list[Sample]:
    """Return arms without tables, random first; `spreads` in units of random's, `tails` degrees of freedom of Student's t."""
    out = []
    shared = rng.normal(0, INITIALISATION, replicates)
    for spread in spreads:
        noise = rng.standard_t(tails, replicates) / np.sqrt(tails / (tails - 2)) if tails else rng.normal(size=replicates)
        out.append(Sample(ACCURACY + shared + MEASURED.random * spread * noise))
    return out


def skewed(rng: np.random.Generator, arms: int, replicates: int, sign: float) -> list[Sample]:
    """Return equal arms of which random alone is skewed, by an exponential of its own spread; `sign` is the long tail's."""
    out = figures(rng, [1.0] * (arms + 1), replicates)
    out[0] = Sample(ACCURACY + sign * MEASURED.random * (rng.exponential(size=replicates) - 1.0))
    return out


def few(rng: np.random.Generator, arms: int, replicates: int, examples: int = 300) -> list[Sample]:
    """Return arms tested on so few examples that accuracy goes by steps of a third of a point and ties are common."""
    rate = np.clip(ACCURACY / 100 + rng.normal(0, AGAIN.random / 100, (arms + 1, replicates)), 0, 1)
    return [Sample(100.0 * rng.binomial(examples, row) / examples) for row in rate]


def relative(spread: Spread, arms: int) -> list[float]:
    """Return the spreads that `figures` takes, random first."""
    return [1.0, *[spread.arm / spread.random] * arms]


def judge(samples: Sequence[Sample], shifts: Sequence[float] = ()) -> list[Comparison]:
    """Return the decision over samples, random first; `shifts` in points are added to the first arms' accuracies."""
    arms = {}
    for number, one in enumerate(samples[1:]):
        shift = shifts[number] if number < len(shifts) else 0.0
        arms[f"arm{number:02d}"] = Sample(one.accuracy + shift, one.correct) if shift else one
    return compare_with_random(arms, samples[0], margin_points=MARGIN)


def over(runs: int, key: int, draw: Callable[[np.random.Generator], list[Sample]]) -> Tally:
    """Return the tally of `runs` families drawn by `draw`, each from a stream of its own."""
    tally = Tally()
    for number in range(runs):
        tally.add(judge(draw(np.random.default_rng([key, number]))))
    return tally


def null_part(runs: int) -> Iterator[list[str]]:
    """Yield the table of families of equal arms with whole tables of right answers."""
    yield ["spread", "arms", "replicates", *HEAD, "two-way interval covers, %", "90 % interval (adjusted) covers, %"]
    for spread, sizes in ((AGAIN, (1, 5, 15, 25)), (QUIET, (1, 5))):
        for arms in sizes:
            for replicates in (5, 10):
                tally = over(runs, 100 * arms + replicates, lambda rng: tables(rng, arms, replicates, spread))  # noqa: B023
                two_way, near = (100 * count / tally.arms for count in (tally.two_way, tally.near))
                yield [str(spread), str(arms), str(replicates), *tally.cells(), f"{two_way:.1f}", f"{near:.1f}"]


def spreads_part(runs: int) -> Iterator[list[str]]:
    """Yield the table of families whose spreads differ, whose tails are heavy, or whose accuracies go by steps."""
    # Without tables of right answers no equivalence is judged: that column is left out.
    yield ["null arms", "arms", "replicates", *HEAD[:-1]]
    for arms in (5, 25):
        even = [1.0] * (arms + 1)
        measured = relative(MEASURED, arms)
        ranging = [1.0, *(np.linspace(0.23, 1.37, arms) / MEASURED.random)]
        cases: dict[str, Callable[[np.random.Generator, int], list[Sample]]] = {
            "equal spreads": lambda rng, r: figures(rng, even, r),  # noqa: B023
            "one arm's spread twice the others'": lambda rng, r: figures(rng, [*even[1:], 2.0], r),  # noqa: B023
            "one arm's spread three times": lambda rng, r: figures(rng, [*even[1:], 3.0], r),  # noqa: B023
            "spreads from half to twice": lambda rng, r: figures(rng, [1.0, *np.linspace(0.5, 2, arms)], r),  # noqa: B023
            "random's spread twice": lambda rng, r: figures(rng, [2.0, *even[1:]], r),  # noqa: B023
            "random's spread half": lambda rng, r: figures(rng, [0.5, *even[1:]], r),  # noqa: B023
            "heavy tails (t, 4 degrees)": lambda rng, r: figures(rng, even, r, 4.0),  # noqa: B023
            "300 test examples": lambda rng, r: few(rng, arms, r),  # noqa: B023
            "as measured: random 0.89, arms 0.59": lambda rng, r: figures(rng, measured, r),  # noqa: B023
            "as measured: random 0.89, arms 0.23 to 1.37": lambda rng, r: figures(rng, ranging, r),  # noqa: B023
            "random skewed to the right (exponential)": lambda rng, r: skewed(rng, arms, r, 1.0),  # noqa: B023
            "random skewed to the left": lambda rng, r: skewed(rng, arms, r, -1.0),  # noqa: B023
        }
        for key, (name, draw) in enumerate(cases.items()):
            for replicates in (5, 10):
                tally = over(runs, 10_000 * (key + 1) + 100 * arms + replicates, lambda rng: draw(rng, replicates))  # noqa: B023
                yield [name, str(arms), str(replicates), *tally.cells()[:-1]]


def scope_part(runs: int) -> Iterator[list[str]]:
    """Yield what a verdict on one test set says about other examples, where arms differ by example and not on average."""
    yield ["spread", "arms", "replicates", "any `better` on this test set, %",
           "any whose two-way interval lies above 0 too, %", "plain interval covers the difference over all examples, %",
           "two-way interval covers it, %"]  # fmt: skip
    for spread, arms, replicates in itertools.product((AGAIN, QUIET), (1, 5), (5, 10)):
        tally, wide = Tally(), 0
        for number in range(runs):
            rows = judge(tables(np.random.default_rng([7, arms, replicates, number]), arms, replicates, spread, unlike=0.7))
            tally.add(rows)
            wide += any(row.verdict == "better" and not _covers(row.two_way_ci95) for row in rows)
        yield [
            str(spread), str(arms), str(replicates), f"{100 * tally.better / runs:.1f}", f"{100 * wide / runs:.1f}",
            f"{100 * tally.plain / tally.arms:.1f}", f"{100 * tally.two_way / tally.arms:.1f}",
        ]  # fmt: skip


def power_part(runs: int) -> Iterator[list[str]]:
    """Yield how often the stated number of replicates gave the verdict: truth known, then taken from pilots."""
    yield ["true gain, points", "arms", "number from", "replicates", "`better`, %", "decided, %"]
    deviation = MEASURED.paired
    for gain in GAINS:
        for arms in (1, 5, 25):
            one = Paired(np.zeros(5), gain, deviation)
            shared = Shared(arms, deviation, degrees_of(arms, 5)) if arms >= 3 else None
            number, _ = needed_replicates(one, ALPHA / arms, 5, shared=shared)
            found = [_first(key, arms, number, gain, runs) for key in range(runs)]
            yield [f"{gain}", str(arms), "the truth", str(number), _share(found, "better"), _share(found)]
            stated, found = [], []
            for key in range(runs):
                pilot = judge(figures(np.random.default_rng([3, arms, key]), relative(MEASURED, arms), 5), [gain])[0]
                if pilot.needed_replicates is None or pilot.needed_capped:
                    continue
                stated.append(pilot.needed_replicates)
                found.append(_first(key, arms, pilot.needed_replicates, gain, runs))
            low, middle, high = np.quantile(stated, (0.1, 0.5, 0.9), method="lower")
            said = f"{len(stated)} pilots of 5 that left it open"
            yield [f"{gain}", str(arms), said, f"{middle} (80 %: {low} to {high})", _share(found, "better"), _share(found)]


def _first(key: int, arms: int, replicates: int, gain: float, runs: int) -> str:
    rng = np.random.default_rng([5, arms, replicates, round(100 * gain), runs + key])
    return judge(figures(rng, relative(MEASURED, arms), replicates), [gain])[0].verdict


def _share(verdicts: Sequence[str], wanted: str = "") -> str:
    hits = sum(one == wanted if wanted else one != "undecided" for one in verdicts)
    return f"{100 * hits / max(len(verdicts), 1):.0f}"


PARTS = {"null": null_part, "spreads": spreads_part, "power": power_part, "scope": scope_part}


def main() -> None:
    """Print the table of the part that the command names, and the time it took."""
    name, runs = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else RUNS
    started = time.perf_counter()
    for number, row in enumerate(PARTS[name](runs)):
        print(f"| {' | '.join(row)} |", flush=True)
        if number == 0:
            print(f"|{'---|' * len(row)}")
    print(f"\n{runs} runs a row, {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
