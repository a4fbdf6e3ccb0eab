"""Whether the race keeps its word, over races that are made up: `python -m benchmarks.policy [RACES]`.

A cheap stub stands for the learner; everything after it is the decision that a run takes: `run_race` over the candidates,
the winner frozen, ten fresh replicates on test, `compare_with_random`, `answer_of`. In points, after MNIST at keep 0.01:

    validation accuracy of arm a in replicate r = 90 + gain_a + quirk_a + initialisation_r + selection_(a,r)

with 0.89 between random's selections and 0.59 between a candidate's (1.07 for their difference), as measured, or 0.89 for
both, or in the quiet rows 0.41 for both; 0.05 between initialisations; and a quirk: what the arm finds easier in these
validation examples than in others, which no number of replicates averages out. The confirmation is a table of right answers on
10,000 test examples (benchmarks/honesty.py). Prints one table, the same for the same number of races.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.honesty import AGAIN, INITIALISATION, MARGIN, MEASURED, QUIET, Spread, tables
from tasks.comparison import Comparison, Sample, compare_with_random
from tasks.policy.answer import answer_of
from tasks.policy.halving import RANDOM, Race, run_race
from tasks.policy.spec import PolicySpec

RACES = 2000
QUIRK = 0.3


@dataclass
class Tally:
    """Collect what races came to; gains in points."""

    races: int = 0
    random: int = 0
    untested: int = 0
    covered: int = 0
    naive: int = 0
    promised: list[float] = field(default_factory=list)
    confirmed: list[float] = field(default_factory=list)
    regret: list[float] = field(default_factory=list)

    def add(self, race: Race, comparison: Comparison | None, gains: Sequence[float]) -> None:
        """Count one race whose candidates have these true gains."""
        self.races += 1
        answer = answer_of(race.winner, None if comparison is None else comparison.verdict)
        self.random += answer == RANDOM
        true = {RANDOM: 0.0} | {name_of(number): gain for number, gain in enumerate(gains)}
        self.regret.append(max(true.values()) - true[answer])
        if race.winner is None or comparison is None:
            self.untested += 1
            return
        last = race.rungs[-1].standings[0]
        values = np.array(last.differences)
        own = compare_with_random({last.name: Sample(90.0 + values)}, Sample(np.full(len(values), 90.0)), margin_points=0.0)[0]
        self.naive += own.verdict == "better"
        self.promised.append(last.mean_difference - true[last.name])
        self.confirmed.append(comparison.mean_difference - true[last.name])
        assert comparison.ci95 is not None
        self.covered += comparison.ci95[0] <= true[last.name] <= comparison.ci95[1]

    def cells(self) -> list[str]:
        """Return the cells of a table's row, after those that say what was raced."""
        share = self.random / self.races
        error = (share * (1 - share) / self.races) ** 0.5
        tested = self.races - self.untested
        return [
            f"{100 * share:.1f} ± {100 * error:.1f}", f"{100 * self.untested / self.races:.1f}",
            f"{np.mean(self.regret):.2f}", f"{np.mean(self.promised):+.2f}", f"{np.mean(self.confirmed):+.2f}",
            f"{100 * self.covered / tested:.1f}", f"{100 * self.naive / self.races:.1f}",
        ]  # fmt: skip


HEAD = (
    "spread of random, of a candidate",
    "candidates", "their true gains", "answer is random, %", "nothing to confirm, %", "mean regret, points",
    "winner on validation less its gain", "winner on test less its gain", "interval on test covers the gain, %",
    "`better` if the race judged itself, %",
)  # fmt: skip


def name_of(number: int) -> str:
    """Return what a made-up candidate is called."""
    return f"candidate{number:02d}"


def one_race(
    rng: np.random.Generator, gains: Sequence[float], policy: PolicySpec, quirk: float = QUIRK, spread: Spread = MEASURED
) -> tuple[Race, Comparison | None]:
    """Return a race over candidates of these true gains, and the comparison that confirms its winner or does not."""
    replicates = policy.rungs[-1]
    arms = len(gains) + 1
    shared = 90.0 + rng.normal(0, INITIALISATION, replicates)
    deviations = np.array([spread.random, *[spread.arm] * len(gains)])[:, None]
    validation = shared + deviations * rng.normal(size=(arms, replicates)) + rng.normal(0, quirk, (arms, 1))
    validation += np.array([0.0, *gains])[:, None]
    names = [RANDOM, *(name_of(number) for number in range(len(gains)))]
    known = {(name, number): float(row[number]) for name, row in zip(names, validation) for number in range(replicates)}
    race = run_race(names[1:], policy.rungs, policy.stay, known)
    if race.winner is None:
        return race, None
    random, winner = tables(rng, 1, policy.confirm, spread)
    gain = gains[names.index(race.winner) - 1]
    moved = Sample(winner.accuracy + gain, winner.correct)
    return race, compare_with_random({race.winner: moved}, random, margin_points=MARGIN)[0]


def tally(key: int, gains: Sequence[float], races: int, quirk: float = QUIRK, spread: Spread = MEASURED) -> Tally:
    """Return the tally of races over candidates of these gains, each from a stream of its own."""
    out = Tally()
    for number in range(races):
        race, comparison = one_race(np.random.default_rng([11, key, number]), gains, PolicySpec(), quirk, spread)
        out.add(race, comparison, gains)
    return out


CASES: tuple[tuple[str, tuple[float, ...], float], ...] = (
    ("all 0", (0.0,), QUIRK),
    ("all 0", (0.0,) * 15, QUIRK),
    ("all 0", (0.0,) * 45, QUIRK),
    ("all 0, quirks of 1 point", (0.0,) * 15, 1.0),
    ("all 0 or far below", (0.0,) * 5 + (-10.0,) * 10, QUIRK),
    ("all -0.5", (-0.5,) * 15, QUIRK),
    ("one 0.5, the others 0", (0.5, *(0.0,) * 14), QUIRK),
    ("one 1, the others 0", (1.0, *(0.0,) * 14), QUIRK),
    ("one 2, the others 0", (2.0, *(0.0,) * 14), QUIRK),
    ("one 2, the others -10 to 1", (2.0, *np.linspace(-10, 1, 14)), QUIRK),
)
OTHER_SPREADS = (AGAIN, QUIET)
AT_OTHER_SPREADS = ((0.0,) * 15, *((gain, *(0.0,) * 14) for gain in (0.5, 1.0, 2.0)))
"""The gains of the cases that are raced at the other spreads too."""


def rows(races: int) -> Iterator[list[str]]:
    """Yield the rows of the table."""
    yield list(HEAD)
    for spread in (MEASURED, *OTHER_SPREADS):
        for key, (said, gains, quirk) in enumerate(CASES):
            if spread == MEASURED or (gains in AT_OTHER_SPREADS and quirk == QUIRK):
                yield [str(spread), str(len(gains)), said, *tally(key, gains, races, quirk, spread).cells()]


def main() -> None:
    """Print the table and the time it took."""
    races = int(sys.argv[1]) if len(sys.argv) > 1 else RACES
    started = time.perf_counter()
    for number, row in enumerate(rows(races)):
        print(f"| {' | '.join(row)} |", flush=True)
        if number == 0:
            print(f"|{'---|' * len(row)}")
    print(f"\n{races} races a row, {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
