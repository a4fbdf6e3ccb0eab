"""Time to accuracy: the curve of every arm, what had to be paid before its training, and when it reaches a stated accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from cluster.errors import CorruptError
from cluster.record import Unit
from cluster.storage import Store
from tasks.curve import read_times
from tasks.report.inputs import ArmResult
from tasks.report.results import keeps_of, plain
from tasks.report.wording import count, listed, percent

SHARES = (0.9, 0.95, 0.98, 0.99)
"""Shares of the full data's accuracy that are asked for."""
MANY = 100
"""Later trainings that share the costs, beside one that bears them alone."""


@dataclass(frozen=True)
class Charge:
    """Hold what is paid before an arm is trained, in optimiser steps and in seconds, None where nobody measured these.

    `scoring` are those of the proxies, None where the scores were brought; `teacher` those of the model that soft labels come
    from; `search` those of a race and its confirmation. `scored` are the examples of forward passes, which are no steps.
    """

    scoring: int | None = 0
    scored: int = 0
    teacher: int = 0
    search: int = 0
    seconds: float | None = 0.0

    @property
    def steps(self) -> int:
        """Return all of them."""
        return (self.scoring or 0) + self.teacher + self.search


def time_record(
    arms: Sequence[ArmResult], charges: Mapping[tuple[str, float], Charge], store: Store, points: int
) -> dict[str, Any]:
    """Return `time_to_accuracy` of results.json, from trainings with curves; `charges` are by (arm, keep).

    An arm reaches an accuracy at the first step of its grid from which on the mean over its replicates never is below it. The
    accuracies are shares of that of the full data's last step, on its own schedule where that was trained; without a full-data
    arm at a keep there are none there. Raises CorruptError where replicates of an arm have different grids.
    """
    keeps = []
    for keep in keeps_of(arms):
        own = [arm for arm in arms if arm.keep == keep]
        full = max((arm for arm in own if arm.is_full), key=lambda arm: int(arm.trains[0].meta["steps"]), default=None)
        best = None if full is None else _means(full, "accuracy")[-1]
        reference = None if full is None else {"arm": full.name, "accuracy": best}
        targets = [] if best is None else [{"share": one, "accuracy": one * best} for one in SHARES]
        rows = [_row(arm, charges.get((arm.name, keep), Charge()), targets, store) for arm in own]
        keeps.append({"keep": keep, "reference": reference, "targets": targets, "arms": rows})
    record: dict[str, Any] = plain({"points": points, "many": MANY, "keeps": keeps})
    for entry in record["keeps"]:
        entry["sentence"] = time_sentence(entry, MANY)
    return record


def _means(arm: ArmResult, name: str) -> list[float]:
    """Return the mean over replicates of the curve, point by point."""
    found = [seal.meta["curve"][name] for seal in arm.trains]
    return [sum(values) / len(values) for values in zip(*found)]


def _row(arm: ArmResult, charge: Charge, targets: Sequence[Mapping[str, float]], store: Store) -> dict[str, Any]:
    steps = list(arm.trains[0].meta["curve"]["steps"])
    if any(list(seal.meta["curve"]["steps"]) != steps for seal in arm.trains):
        raise CorruptError(f"arm {arm.name!r} at keep {arm.keep:g}: its trainings were evaluated at different steps")
    times = [read_times(Unit(store, "train", seal.key), steps) for seal in arm.trains]
    measured = [one for one in times if one is not None]
    # The first training of a process loads libraries too, for seconds.
    seconds = [median(values) for values in zip(*measured)] if len(measured) == len(times) else None
    validated = all(seal.meta["curve"]["validation_accuracy"] is not None for seal in arm.trains)
    row: dict[str, Any] = {
        "arm": arm.name,
        "full": arm.is_full,
        "random": arm.is_random,
        "examples_touched": round(sum(seal.meta["examples_touched"] for seal in arm.trains) / len(arm.trains)),
        "steps": steps,
        "accuracy": _means(arm, "accuracy"),
        "validation_accuracy": _means(arm, "validation_accuracy") if validated else None,
        "seconds": seconds,
        "charge": {
            "scoring_steps": charge.scoring, "scored_examples": charge.scored, "teacher_steps": charge.teacher,
            "search_steps": charge.search, "steps": charge.steps, "seconds": charge.seconds,
        },
        "reached": [],
    }  # fmt: skip
    for target in targets:
        at = reached(row["accuracy"], target["accuracy"])
        alone = [reached(seal.meta["curve"]["accuracy"], target["accuracy"]) is not None for seal in arm.trains]
        found: dict[str, Any] = {"share": target["share"], "replicates": sum(alone), "of": len(alone)}
        own, took = (None, None) if at is None else (steps[at], None if seconds is None else seconds[at])
        found |= {"steps": own, "seconds": took}
        for name, trainings in (("one", 1), ("many", MANY)):
            paid = None if own is None else own + charge.steps / trainings
            spent = None if took is None or charge.seconds is None else took + charge.seconds / trainings
            found[f"steps_{name}"], found[f"seconds_{name}"] = paid, spent
        row["reached"].append(found)
    return row


def reached(accuracy: Sequence[float], target: float) -> int | None:
    """Return the first place from which on no accuracy is below the target; None where the last one is."""
    below = [place for place, value in enumerate(accuracy) if value < target]
    first = below[-1] + 1 if below else 0
    return first if first < len(accuracy) else None


def told_share(entry: Mapping[str, Any]) -> float | None:
    """Return the share that is told first: the highest that an arm of the pruned data reaches, else the least; None for none."""
    pruned = [row for row in entry["arms"] if not row["full"]]
    got = [one["share"] for row in pruned for one in row["reached"] if one["steps"] is not None]
    return max(got, default=entry["targets"][0]["share"] if entry["targets"] else None)


def time_sentence(entry: Mapping[str, Any], many: int) -> str:
    """Return what one keep came to in a sentence: who is first alone, with all the costs and with a share of them, and random."""
    start = f"Keep {percent(entry['keep'])}: "
    share = told_share(entry)
    if share is None:
        return f"{start}no arm was trained on the full data, so there is no accuracy of which the others could reach a share."
    target = next(one["accuracy"] for one in entry["targets"] if one["share"] == share)
    got = [(row, one) for row in entry["arms"] for one in row["reached"] if one["share"] == share]
    there = [(row, one) for row, one in got if one["steps"] is not None and not row["full"]]
    start += f"{percent(share)} of the full data's accuracy, {target:.2f} % on test, "
    if not there:
        return f"{start}is reached by the full data alone."
    said: list[str] = []
    ways = (("steps", "is first reached for good"), ("steps_one", "with costs borne by one training"),
            ("steps_many", f"with costs shared by {many}"))  # fmt: skip
    last = ""
    for name, words in ways:
        least = min(one[name] for _, one in there)
        who = f"by {listed([row['arm'] for row, one in there if one[name] == least])} ({count(least)} steps)"
        said.append(f"{words} {who if who != last else 'too'}")
        last = who
    others = {"random": [one for row, one in got if row["random"]], "the full data": [one for row, one in got if row["full"]]}
    for who, found in others.items():
        steps = [one["steps"] for one in found if one["steps"] is not None]
        if found:
            said.append(f"{who} reaches it after {count(min(steps))}" if steps else f"{who} never reaches it")
    return f"{start}{'; '.join(said)}."
