"""The race: successive halving by paired differences to random on validation. Pure functions of what is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RANDOM = "random"
# Accuracies are percentages of whole examples: beyond these digits they hold rounding noise, which must break no tie.
DIGITS = 9

Accuracies = Mapping[tuple[str, int], float]
"""Validation accuracy in percent by (arm, replicate): all that a race may know."""


@dataclass(frozen=True)
class Standing:
    """Hold what one candidate came to in a rung: differences to random in replicate order and their mean, in points."""

    name: str
    differences: tuple[float, ...]
    mean_difference: float
    stays: bool


@dataclass(frozen=True)
class Rung:
    """Hold a decided rung: its replicates in all, and its candidates, the best first."""

    replicates: int
    standings: tuple[Standing, ...]


@dataclass(frozen=True)
class Race:
    """Hold a race as far as it is decided.

    `entrants` and `replicates` are those of the rung that waits for trainings; where there is none the race is decided,
    and `winner` is the candidate that is frozen, None where none has a positive mean.
    """

    rungs: tuple[Rung, ...]
    entrants: tuple[str, ...]
    replicates: int
    winner: str | None

    @property
    def decided(self) -> bool:
        """Return whether no rung waits."""
        return not self.entrants

    def trainings(self) -> list[tuple[str, int]]:
        """Return every (arm, replicate) that the race has asked for so far, each once, random first."""
        out: dict[tuple[str, int], None] = {}
        entered = [([one.name for one in rung.standings], rung.replicates) for rung in self.rungs]
        if self.entrants:
            entered.append((list(self.entrants), self.replicates))
        for names, replicates in entered:
            for name in [RANDOM, *names]:
                out.update(dict.fromkeys((name, number) for number in range(replicates)))
        return list(out)


def staying(candidates: int, share: float) -> int:
    """Return how many of so many candidates stay: the share of them rounded up, at least one."""
    return max(1, math.ceil(share * candidates - 1e-9))


def run_race(candidates: Sequence[str], rungs: Sequence[int], stay: float, known: Accuracies) -> Race:
    """Return the race of candidates as far as the known accuracies decide it.

    A rung is judged when random and all that entered it have all of its replicates: by the mean over all replicates so
    far of the paired difference to random, ties in the order of `candidates`. The best `staying(...)` go on; the last
    rung's best wins if its mean is above 0. What is known of others, and of later replicates, decides nothing.
    """
    place = {name: number for number, name in enumerate(candidates)}
    entrants = tuple(candidates)
    decided: list[Rung] = []
    for number, replicates in enumerate(rungs):
        wanted = [(name, one) for name in (RANDOM, *entrants) for one in range(replicates)]
        if any(pair not in known for pair in wanted):
            return Race(tuple(decided), entrants, replicates, None)
        found = [(name, _differences(name, replicates, known)) for name in entrants]
        means = {name: round(math.fsum(values) / replicates, DIGITS) for name, values in found}
        best = sorted(found, key=lambda one: (-means[one[0]], place[one[0]]))
        go_on = 1 if number == len(rungs) - 1 else staying(len(entrants), stay)
        standings = tuple(Standing(name, values, means[name], rank < go_on) for rank, (name, values) in enumerate(best))
        decided.append(Rung(replicates, standings))
        # In the family's order: who entered does not depend on how.
        entrants = tuple(sorted((one.name for one in standings if one.stays), key=place.__getitem__))
    first = decided[-1].standings[0]
    return Race(tuple(decided), (), 0, first.name if first.mean_difference > 0 else None)


def _differences(name: str, replicates: int, known: Accuracies) -> tuple[float, ...]:
    return tuple(round(known[name, number] - known[RANDOM, number], DIGITS) for number in range(replicates))


def race_size(candidates: int, rungs: Sequence[int], stay: float) -> list[int]:
    """Return the new trainings of each rung of a race of so many candidates, random's included."""
    out, before = [], 0
    for replicates in rungs:
        out.append((candidates + 1) * (replicates - before))
        candidates, before = staying(candidates, stay), replicates
    return out
