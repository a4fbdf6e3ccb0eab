"""The lineage of a run: its units, from run.json alone, and which of them were computed from which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import CorruptError, InputError
from cluster.record import Unit
from cluster.storage import Store
from flows.config import RunConfig, parse_config
from flows.plan import Digests, Plan, plan_from, units_of
from flows.runs import find_run, list_runs, read_record
from tasks.shift.spec import PROXY

STAGES = ("shard", "proxy", "score", "merge", "select", "subset", "features", "shift", "train")

Node = tuple[str, str]
"""Stage and key of a unit: the same node in every run that uses it."""


@dataclass(frozen=True)
class Lineage:
    """Hold what run.json says of a run, and the plan that follows from its configuration and digests here.

    Of a race run.json names the units of the first rung. The others follow from sealed results, and only where the plan does.
    """

    run: str
    config: RunConfig
    record: Mapping[str, Any]
    derived: Plan

    @property
    def plan(self) -> Plan | None:
        """Return the plan of the recorded keys; None where they do not follow here, as under another torch."""
        return self.derived if self.derived.keys() == self.keys else None

    @property
    def keys(self) -> Mapping[str, Any]:
        """Return the recorded keys by stage."""
        keys: Mapping[str, Any] = self.record["keys"]
        return keys

    def units(self, store: Store) -> list[Unit]:
        """Return the units of the run in the order they are computed."""
        if self.plan is not None:
            return [unit for _, unit in self.plan.units(store)]
        return list(units_of(self.keys, store))

    def unknown(self, store: Store) -> list[str]:
        """Return what of the run cannot be named now: the later rungs of a race whose earlier ones do not decide it here."""
        if self.config.policy is None:
            return []
        if self.plan is not None and all(race.decided for race in self.plan.grown(store).races.values()):
            return []
        return ["later rungs of the race, which follow from results that are not there, or damaged, or another torch's"]

    def sources(self, store: Store) -> dict[Node, set[Node]]:
        """Return, for every unit, the units it was computed from.

        Without a plan these are all units of earlier stages: more than were read, never fewer.
        """
        if self.plan is None:
            nodes = [(unit.stage, unit.key) for unit in self.units(store)]
            return {
                node: {other for other in nodes if STAGES.index(other[0]) < STAGES.index(node[0])} for node in nodes
            }
        # Grown once: a rung that is sealed meanwhile would be in one plan and not in the other.
        plan = self.plan.grown(store)
        nodes = [(unit.stage, unit.key) for unit in units_of(plan.own_keys(), store)]
        out: dict[Node, set[Node]] = {node: {("shard", plan.shard)} for node in nodes}
        out["shard", plan.shard] = set()
        if plan.score is not None:
            out["score", plan.score] |= {("proxy", key) for key in plan.proxies}
            out["merge", plan.merge] |= {("score", plan.score)}
        for key, unit in plan.selections.values():
            if unit.spec.score is not None:
                out["select", key] |= {("merge", plan.merge)}
            out["subset", plan.subset(key)] |= {("select", key)}
        if plan.features is not None and plan.config.shift is not None and plan.config.shift.features == PROXY:
            out["features", plan.features] |= {("proxy", plan.proxies[0])}
        for one in plan.shifts:
            out["shift", one.key] |= {
                ("merge", plan.merge), ("features", plan.features or ""), ("select", one.selection),
                ("subset", plan.subset(one.selection)),
            }  # fmt: skip
        for training in plan.trainings:
            if training.selection is not None:
                out["train", training.key] |= {("select", training.selection), ("subset", plan.subset(training.selection))}
            if training.teacher is not None:
                out["train", training.key] |= {("train", training.teacher)}
        return out


def load_lineage(run: str, store: Store) -> Lineage:
    """Return the lineage of a run, named in whole or by its start. Raises InputError, CorruptError."""
    name = find_run(run, store)
    record = read_record(name, store)
    keys = record["keys"]
    try:
        config = parse_config(record["config"], f"run {name}")
        plan = plan_from(config, Digests(keys["code"], keys["source_code"], keys["data"], keys["scores"]))
    except InputError as error:
        raise CorruptError(
            f"{store.url(f'runs/{name}/run.json')} holds no configuration of this version's: {error}; remove it, and `secateur "
            "run CONFIG` makes a new run of what is sealed"
        ) from error
    return Lineage(name, config, record, plan)


def all_lineages(store: Store) -> Iterator[Lineage]:
    """Yield the lineage of every run in the store."""
    for name in list_runs(store):
        yield load_lineage(name, store)


def computed_from(start: Iterable[Node], sources: Iterable[Mapping[Node, set[Node]]]) -> set[Node]:
    """Return the nodes of `start` and everything that was computed from them, in any of the graphs."""
    users: dict[Node, set[Node]] = {}
    for graph in sources:
        for node, read in graph.items():
            for source in read:
                users.setdefault(source, set()).add(node)
    found, waiting = set(start), list(start)
    while waiting:
        for user in users.get(waiting.pop(), ()):
            if user not in found:
                found.add(user)
                waiting.append(user)
    return found
