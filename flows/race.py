"""The race as the flow runs it: rung by rung through the stages select, subset and train, then the confirmation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from cluster.errors import StageError
from cluster.storage import Store
from flows.artifacts import publish_table
from flows.plan import Plan, StageState, states_of, units_of
from flows.progress import print_line
from flows.race_plan import families
from tasks.policy.halving import Rung
from tasks.report.policy import rung_text
from tasks.report.wording import percent, plural

STAGES = ("select", "subset", "train")

Train = Callable[[Plan], None]
"""Selects, cuts out and trains the arms of a plan."""
Begin = Callable[[str, list[StageState]], None]
"""Is told the name of each round, and what of it is sealed."""


def race_to_the_end(plan: Plan, store: Store, train: Train, begin: Begin) -> Plan:
    """Run the race of every keep, and the confirmation where it has a winner; return the plan with all units of it.

    Every decision is read from the store: where rungs are sealed already, by an attempt that was killed or by another run,
    it goes on from there. The rungs of all keeps are trained together. Raises StageError where seals that were just
    published do not decide a rung.
    """
    told: set[tuple[float, int]] = set()
    done: set[tuple[str, float, int]] = set()
    _tell_family(plan)
    while True:
        plan = plan.grown(store)
        _tell(plan, told)
        part = _without(plan, done)
        if not part.trainings:
            break
        done |= {(one.arm, one.keep, one.replicate) for one in part.trainings}
        begin(_round_name(plan), states_of(list(_units(part, store))))
        train(part)
    if not all(race.decided for race in plan.races.values()):
        raise StageError("a rung of the race is trained and cannot be judged: its trainings have no validation accuracy")
    begin("", [])
    return plan


def _without(plan: Plan, done: set[tuple[str, float, int]]) -> Plan:
    """Return the part of the plan that was not trained in this process; the first time that is all of it."""
    trainings = tuple(one for one in plan.trainings if (one.arm, one.keep, one.replicate) not in done)
    selections = {place: chosen for place, chosen in plan.selections.items() if place not in done}
    return replace(plan, selections=selections, trainings=trainings)


def _units(part: Plan, store: Store) -> Iterable[Any]:
    return (unit for unit in units_of(part.own_keys(), store) if unit.stage in STAGES)


def _round_name(plan: Plan) -> str:
    """Return `rung 2`, or `confirm` where every race is decided; keeps go through their rungs together."""
    open_rungs = [len(race.rungs) + 1 for race in plan.races.values() if not race.decided]
    return f"rung {min(open_rungs)}" if open_rungs else "confirm"


def _tell_family(plan: Plan) -> None:
    """Say how many candidates there are at each keep, and which lines of the family cannot be drawn there."""
    for keep, family in families(plan.config).items():
        left = f"; left out, by reasons that `secateur plan` gives: {', '.join(family.left_out)}" if family.left_out else ""
        print_line(f"race    keep {percent(keep)}: {plural(len(family.candidates), 'candidate')} and random{left}")


def _tell(plan: Plan, told: set[tuple[float, int]]) -> None:
    """Say what the rungs that were decided since the last call came to, and which candidates are frozen."""
    for keep, race in plan.races.items():
        for number, rung in enumerate(race.rungs, 1):
            if (keep, number) not in told:
                told.add((keep, number))
                print_line(f"race    keep {percent(keep)}, rung {number}: {rung_text(rung)}")
                publish_table(f"race-{plan.run_name}-{keep:g}-{number}", _rows(rung), f"Rung {number} at keep {percent(keep)}")
        if race.decided and (keep, 0) not in told:
            told.add((keep, 0))
            frozen = race.winner or "nothing: no candidate has a positive mean, the answer is random"
            print_line(f"race    keep {percent(keep)}: frozen {frozen}")


def _rows(rung: Rung) -> list[dict[str, Any]]:
    return [
        {"candidate": one.name, "replicates": rung.replicates, "points to random": one.mean_difference, "stays": one.stays}
        for one in rung.standings
    ]
