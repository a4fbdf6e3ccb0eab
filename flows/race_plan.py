"""The plan of a race: the units that the configuration asks for, and those that follow from what is sealed.

A plan of a race grows: after each rung the trainings of the next are known. It is a function of configuration, digests and
sealed results alone, so whoever asks, at any time and after any kill, finds the same. Imports neither torch, Ray nor Prefect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from cluster.errors import CorruptError, InputError
from cluster.fingerprint import canonical_json, sha256
from cluster.record import Unit
from cluster.storage import Store
from flows.config import RunConfig
from flows.plan import FULL, LOOKUPS, Plan, PlannedTraining
from tasks.comparison.paired import least_replicates, least_text
from tasks.policy.family import Family, family_at
from tasks.policy.halving import RANDOM, Race, race_size, run_race
from tasks.policy.spec import PolicySpec
from tasks.seeding import derive_seed
from tasks.selecting import SelectionUnit, selection_key
from tasks.selection.spec import SelectionSpec
from tasks.train import train_key

# The seeds of a confirmation are those of its race alone: another race that asks again, after a look at the test results of this
# one, draws and trains anew. The same race finds its own.
CONFIRM = "confirm"

Selections = dict[tuple[str, float, int], tuple[str, SelectionUnit]]
Made = dict[tuple[str, float, int], tuple[PlannedTraining, tuple[str, SelectionUnit] | None]]
"""Trainings with their selections by (arm, keep, replicate): a key takes half a millisecond, and is made once."""


@dataclass(frozen=True)
class Sources:
    """Hold what the keys of a race's units are made of beside their own settings."""

    config: RunConfig
    shard: str
    merge: str
    code: str

    @property
    def policy(self) -> PolicySpec:
        """Return the policy, which a race has."""
        assert self.config.policy is not None
        return self.config.policy

    def training(
        self, name: str, spec: SelectionSpec | None, keep: float, number: int, words: Sequence[str | int]
    ) -> tuple[PlannedTraining, tuple[str, SelectionUnit] | None]:
        """Return one training of an arm with its selection, None for the full data; `words` make its seeds."""
        train = self.config.train
        seed = derive_seed("train", self.config.seed, *words)
        chosen = None
        if spec is not None:
            unit = SelectionUnit(spec, derive_seed("selection", self.config.seed, *words), number)
            chosen = selection_key(spec, unit.seed, self.shard if spec.score is None else self.merge), unit
        keyed_keep = 1.0 if chosen is None and train.steps is not None else keep
        key = train_key(
            train, keep=keyed_keep, seed=seed, source_key=chosen[0] if chosen else self.shard, index_key=self.shard,
            code=self.code,
        )  # fmt: skip
        return PlannedTraining(name, keep, number, seed, chosen[0] if chosen else None, key), chosen


def families(config: RunConfig) -> dict[float, Family]:
    """Return the family of each keep. Raises InputError where one has no candidate, or a score has no known hard end."""
    policy = config.policy
    assert policy is not None
    return {
        keep: family_at(policy.family, keep, race_scores(config), config.select.missing, policy.direction)
        for keep in config.select.keep
    }


def race_scores(config: RunConfig) -> tuple[str, ...]:
    """Return the columns that candidates rank by: those of the policy, or the first that is computed. Raises InputError."""
    from tasks.imports import nearest
    from tasks.score import score_columns

    policy = config.policy
    assert policy is not None
    if config.score is None or config.proxy is None:
        if not policy.scores:
            raise InputError("policy with scores of your own: name the columns to rank by as policy.scores")
        return policy.scores
    known = [name for name, end in score_columns(config.score, config.proxy.seeds).items() if end is not None]
    for name in policy.scores:
        if name not in known:
            raise InputError(f"policy.scores has {name!r}, which score.scores does not compute; {nearest(name, known)}")
    return policy.scores or (known[0],)


def check_policy(config: RunConfig) -> None:
    """Raise InputError where a policy stands beside arms or a grid, or has no family to race."""
    policy = config.policy
    if policy is None:
        if not config.select.arms:
            raise InputError("select.arms is empty: name the arms, or give `policy: auto`, which finds one")
        return
    if config.sweep is not None or config.select.arms:
        other = "sweep" if config.sweep is not None else "select.arms"
        raise InputError(f"`policy` finds the arm by itself, and {other} names arms; leave one of the two out")
    if config.train.replicates != type(config.train).model_fields["replicates"].default:
        raise InputError(
            f"train.replicates is {config.train.replicates} beside `policy`, whose replicates are policy.rungs and "
            "policy.confirm; leave train.replicates out"
        )
    least = least_replicates(len(config.select.keep))
    if policy.confirm < least:
        raise InputError(f"policy.confirm is {policy.confirm}: {least_text(least)}; give policy.confirm {least} or more")
    for name in ("own_schedule", "soft_labels"):
        if getattr(config.train, name):
            raise InputError(f"train.{name} beside `policy`: the confirmation is of one arm; leave it out, or name arms")
    families(config)


def most_units(config: RunConfig) -> int:
    """Return the most trainings that a race may come to."""
    policy = config.policy
    assert policy is not None
    sizes = [sum(race_size(len(one.candidates), policy.rungs, policy.stay)) for one in families(config).values()]
    return sum(sizes) + len(sizes) * policy.confirm * (3 if config.train.full else 2)


def first_units(sources: Sources) -> tuple[Selections, list[PlannedTraining]]:
    """Return the selections and trainings of the first rung at every keep: all that the configuration alone tells."""
    policy = sources.policy
    races = {
        keep: run_race(list(family.candidates), policy.rungs, policy.stay, {})
        for keep, family in families(sources.config).items()
    }
    return race_units(sources, races, {})


def race_digest(sources: Sources, keep: float, candidates: Mapping[str, SelectionSpec]) -> str:
    """Return what tells the race of one keep from every other: all that its trainings and decisions follow from.

    The key of random's first training stands for data, code, root seed, keep and how is trained. Not in it are the
    run's name, the other keeps, lines that cannot be drawn here, and an arm of the full data. Whatever else is said otherwise
    makes another race, also what decides nothing in this one, as the order of candidates.
    """
    policy = sources.policy
    random, _ = sources.training(RANDOM, SelectionSpec(protocol=RANDOM, keep=keep), keep, 0, (0,))
    race = {
        "candidates": [[name, spec.effective()] for name, spec in candidates.items()], "scores": sources.merge,
        "rungs": list(policy.rungs), "stay": policy.stay, "confirm": policy.confirm, "random": random.key,
    }  # fmt: skip
    return sha256(canonical_json(race, "policy"))


def race_units(sources: Sources, races: Mapping[float, Race], made: Made) -> tuple[Selections, list[PlannedTraining]]:
    """Return the units of races as far as they are decided; those that are not in `made` are put there."""
    selections: Selections = {}
    trainings: list[PlannedTraining] = []

    def add(name: str, spec: SelectionSpec | None, keep: float, number: int, words: Sequence[str | int]) -> None:
        if (name, keep, number) not in made:
            made[name, keep, number] = sources.training(name, spec, keep, number, words)
        training, chosen = made[name, keep, number]
        trainings.append(training)
        if chosen is not None:
            selections[name, keep, number] = chosen

    found = families(sources.config)
    specs = {keep: {RANDOM: SelectionSpec(protocol=RANDOM, keep=keep), **found[keep].candidates} for keep in races}
    for keep, race in races.items():
        for name, number in race.trainings():
            add(name, specs[keep][name], keep, number, (number,))
    for keep, race in races.items():
        if race.winner is None:
            continue
        digest = race_digest(sources, keep, found[keep].candidates)
        for name in (RANDOM, race.winner, *((FULL,) if sources.config.train.full else ())):
            for one, number in enumerate(confirming(sources.policy)):
                add(name, specs[keep].get(name), keep, number, (CONFIRM, digest, one))
    return selections, trainings


def confirming(policy: PolicySpec) -> range:
    """Return the numbers of the replicates that confirm: those after the race's."""
    return range(policy.rungs[-1], policy.rungs[-1] + policy.confirm)


def grow(plan: Plan, store: Store) -> Plan:
    """Return the plan of a race with all units that follow from what is sealed; any other plan as it is.

    Of a training's seal it takes the validation accuracy and nothing else. A seal that is damaged tells nothing here:
    whoever reads the units of the plan meets it.
    """
    first = plan.first or plan
    config = first.config
    if config.policy is None:
        return plan
    sources = Sources(config, first.shard, first.merge, first.code)
    policy = config.policy
    found = {keep: list(family.candidates) for keep, family in families(config).items()}
    known: dict[float, dict[tuple[str, int], float]] = {keep: {} for keep in found}
    made: Made = {place: (one, plan.selections.get(place)) for one in plan.trainings for place in [_place(one)]}
    asked: set[tuple[str, float, int]] = set()
    with ThreadPoolExecutor(LOOKUPS) as readers:
        while True:
            races = {keep: run_race(names, policy.rungs, policy.stay, known[keep]) for keep, names in found.items()}
            selections, trainings = race_units(sources, races, made)
            places = {_place(one): one for one in trainings if one.replicate < policy.rungs[-1]}
            new = [one for place, one in places.items() if place not in asked]
            if not new:
                break
            asked |= set(places)
            for one, accuracy in zip(new, readers.map(lambda one: validation_accuracy(store, one.key), new)):
                if accuracy is not None:
                    known[one.keep][one.arm, one.replicate] = accuracy
    return replace(first, selections=selections, trainings=tuple(trainings), first=first, races=races)


def _place(training: PlannedTraining) -> tuple[str, float, int]:
    return training.arm, training.keep, training.replicate


def validation_accuracy(store: Store, key: str) -> float | None:
    """Return the sealed validation accuracy of a training in percent, None where it is not there."""
    try:
        seal = Unit(store, "train", key).seal()
    except CorruptError:
        return None
    return None if seal is None or seal.meta.get("validation_accuracy") is None else float(seal.meta["validation_accuracy"])


def describe(plan: Plan) -> list[dict[str, Any]]:
    """Return how the race of each keep stands, by keep, as plain values; `plan` is one that has grown."""
    policy = plan.config.policy
    assert policy is not None
    out = []
    for keep, family in families(plan.config).items():
        race = plan.races[keep]
        sizes = race_size(len(family.candidates), policy.rungs, policy.stay)
        out.append(
            {
                "keep": keep,
                "candidates": list(family.candidates),
                "left_out": family.left_out,
                "rungs_decided": len(race.rungs),
                "rungs": len(policy.rungs),
                "replicates": list(policy.rungs),
                "entrants": list(race.entrants),
                "winner": race.winner,
                "decided": race.decided,
                # What later rungs train depends on results; how much does not, but for the confirmation.
                "later_trainings": sum(sizes[len(race.rungs) + 1 :]),
                "confirmation_trainings": policy.confirm * (3 if plan.config.train.full else 2),
            }
        )
    return out


def standing_lines(plan: Plan) -> list[str]:
    """Return the same as lines for people, one or two for each keep."""
    policy = plan.config.policy
    assert policy is not None
    lines = []
    for one in describe(plan):
        start = f"policy at keep {100 * one['keep']:.6g} %: "
        said = f"{len(one['candidates'])} candidates"
        if one["left_out"]:
            said += f", {len(one['left_out'])} left out"
        if one["decided"] and one["winner"] is None:
            said += "; decided: none has a positive mean on validation, nothing to confirm, the answer is random"
        elif one["decided"]:
            said += f"; frozen: {one['winner']}, confirmed or not by {policy.confirm} fresh replicates on test"
        else:
            number = one["rungs_decided"] + 1
            said += f"; rung {number} of {one['rungs']} is open: {len(one['entrants'])} of them and random"
            said += f", {policy.rungs[number - 1]} replicates in all"
            if one["later_trainings"]:
                said += f"; of later rungs only the size is known, {one['later_trainings']} trainings: their arms depend on it"
            said += f"; then {one['confirmation_trainings']} to confirm, if a candidate is above random"
        lines.append(start + said)
    return lines


def family_lines(plan: Plan) -> list[str]:
    """Return the family for people: every candidate once, and what is left out at which keep."""
    lines: dict[str, None] = {}
    for one in describe(plan):
        lines.update(dict.fromkeys(f"  candidate {name}" for name in one["candidates"]))
    for one in describe(plan):
        for name, why in one["left_out"].items():
            lines[f"  left out at keep {100 * one['keep']:.6g} %: {name}: {why}"] = None
    return list(lines)

