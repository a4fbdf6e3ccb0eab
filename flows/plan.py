"""The plan of a run: the key of every stage and unit, and what of it is there already. Imports neither torch, Ray nor
Prefect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.code import add_code_dirs, check_code_dirs
from cluster.code_digest import code_digest
from cluster.errors import CorruptError, InputError
from cluster.fingerprint import KEY_CHARS, canonical_json, sha256
from cluster.record import Seal, Unit
from cluster.storage import Store
from flows.config import OWN, RANDOM_ARM, SOFT, ArmSpec, RunConfig
from tasks.merge import merge_key, own_scores_key, scores_digest
from tasks.proxy import proxy_key
from tasks.score import checkpoints_needed, needs_proxies, score_key, scorer_key
from tasks.seeding import derive_seed
from tasks.selecting import SelectionUnit, selection_key
from tasks.shard import shard_key
from tasks.shift.units import features_key, shift_key
from tasks.sources.digest import data_digest
from tasks.spec import Spec, Use
from tasks.subset import subset_key
from tasks.train import train_key

if TYPE_CHECKING:
    from tasks.policy.halving import Race

FULL = "full"
# Look-ups at once: on S3 one takes some 30 ms and no CPU.
LOOKUPS = 8


@dataclass(frozen=True)
class PlannedTraining:
    """Name one training: its arm and keep, its replicate, and the keys of what it reads and makes.

    `teacher` is the key of the training from whose model it learns, one that keeps its model; `steps_keep` is the keep of
    its steps where that is another.
    """

    arm: str
    keep: float
    replicate: int
    seed: int
    selection: str | None
    key: str
    teacher: str | None = None
    keeps_model: bool = False
    steps_keep: float | None = None

    @property
    def steps_at(self) -> float:
        """Return the keep whose number of steps the training has."""
        return self.keep if self.steps_keep is None else self.steps_keep


@dataclass(frozen=True)
class PlannedShift:
    """Name the figures of one arm's selection at one keep: their key, the selection's, and the score whose bins they compare."""

    arm: str
    keep: float
    selection: str
    score: str
    key: str


@dataclass(frozen=True)
class Plan:
    """Hold the keys of a run, all of them functions of configuration, code and data alone."""

    config: RunConfig
    code: str
    source_code: str
    data: str
    shard: str
    proxies: tuple[str, ...]
    checkpoints: tuple[float, ...]
    scorer: str | None
    score: str | None
    scores_digest: str | None
    merge: str
    selections: dict[tuple[str, float, int], tuple[str, SelectionUnit]]
    trainings: tuple[PlannedTraining, ...]
    features: str | None = None
    """The key of the features that distribution shift is measured on; None where it is not measured."""
    shifts: tuple[PlannedShift, ...] = ()
    first: Plan | None = None
    """Of a race that has grown by what is sealed: the plan that its configuration alone makes."""
    races: Mapping[float, Race] = field(default_factory=dict)
    """Of such a plan: the race of each keep as far as it is decided."""

    @property
    def run_name(self) -> str:
        """Return RUN: the name and 12 digits of everything that identifies it, data, code and own scores included."""
        identity = {
            "config": self.config.identity(), "data": self.data, "code": self.code, "scores": self.scores_digest
        }  # fmt: skip
        return f"{self.config.name}-{sha256(canonical_json(identity, 'run'))[:KEY_CHARS]}"

    def subset(self, selection: str) -> str:
        """Return the key of the subset of a selection."""
        return subset_key(selection, self.shard)

    def units(self, store: Store) -> Iterator[tuple[str, Unit]]:
        """Yield (stage, unit) for everything the run needs, each key once, in the order it is computed.

        Of a race these are the units that follow from what is sealed by now.
        """
        for unit in units_of(self.grown(store).own_keys(), store):
            yield unit.stage, unit

    def grown(self, store: Store) -> Plan:
        """Return the plan with what follows from sealed results, as the later rungs of a race do; others are as they are."""
        if self.config.policy is None:
            return self
        from flows.race_plan import grow

        return grow(self, store)

    def keys(self) -> dict[str, Any]:
        """Return the keys by stage, as run.json records them: of a race, those that its configuration alone makes."""
        return (self.first or self).own_keys()

    def own_keys(self) -> dict[str, Any]:
        """Return the keys by stage of this plan as it is."""
        return {
            "data": self.data,
            "code": self.code,
            "source_code": self.source_code,
            "scores": self.scores_digest,
            "shard": self.shard,
            "proxy": list(self.proxies),
            "scorer": self.scorer,
            "score": self.score,
            "merge": self.merge,
            "select": list(dict.fromkeys(key for key, _ in self.selections.values())),
            "train": list(dict.fromkeys(training.key for training in self.trainings)),
            **self._shift_keys(),
        }

    def _shift_keys(self) -> dict[str, Any]:
        """Return the keys of what is measured of the selections; none where nothing is."""
        if self.features is None:
            return {}
        return {"features": self.features, "shift": list(dict.fromkeys(one.key for one in self.shifts))}


def units_of(keys: Mapping[str, Any], store: Store) -> Iterator[Unit]:
    """Yield the units behind the keys of a run, as run.json records them, each once, in the order they are computed."""
    shard = keys["shard"]
    yield Unit(store, "shard", shard)
    for key in keys["proxy"]:
        yield Unit(store, "proxy", key)
    if keys["score"] is not None:
        # Parts by scorer and shard, a seal per index.
        yield Unit(store, "score", keys["score"], f"seal-{shard[:KEY_CHARS]}.json", keys["scorer"])
    yield Unit(store, "merge", keys["merge"])
    for key in keys["select"]:
        yield Unit(store, "select", key)
    for key in keys["select"]:
        yield Unit(store, "subset", subset_key(key, shard))
    if "features" in keys:
        yield Unit(store, "features", keys["features"])
    for key in keys.get("shift", ()):
        yield Unit(store, "shift", key)
    for key in keys["train"]:
        yield Unit(store, "train", key)


@dataclass(frozen=True)
class Digests:
    """Hold what a plan takes from outside the configuration: digests of code, of the source's code, data, own scores."""

    code: str
    source_code: str
    data: str
    scores: str | None


@dataclass(frozen=True)
class StageState:
    """Say how much of a stage is sealed."""

    stage: str
    total: int
    sealed: int
    keys: tuple[str, ...]
    damaged: tuple[str, ...] = ()
    """What is wrong with the seals that are there and say nothing."""

    @property
    def left(self) -> int:
        """Return the number of units still to compute."""
        return self.total - self.sealed


def entry_points(spec: Spec) -> list[str]:
    """Return every package.module:callable that a spec names, nested specs included."""
    found: list[str] = []
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        for item in value if isinstance(value, tuple | list) else [value]:
            if isinstance(item, Use):
                if ":" in item.use:
                    found.append(item.use)
            elif isinstance(item, Spec):
                found += entry_points(item)
    return found


def _digest_of_code(config: RunConfig, entries: list[str]) -> str:
    """Return the digest of the user's code behind the entry points; "" where there are none."""
    if not entries:
        return ""
    if config.code_version is not None:
        return f"version:{config.code_version}"
    return code_digest(entries, [Path(folder) for folder in config.code])


def make_plan(config: RunConfig) -> Plan:
    """Return the plan of a configuration. Reads the data's digests (cached) and the user's code; starts nothing."""
    add_code_dirs(check_code_dirs(config.code))
    source_code = _digest_of_code(config, entry_points(config.data))
    code = _digest_of_code(config, entry_points(config))
    data = data_digest(config.data)
    scores = scores_digest(config.scores) if config.scores is not None else None
    return plan_from(config, Digests(code, source_code, data, scores))


def plan_from(config: RunConfig, digests: Digests) -> Plan:
    """Return the plan of a configuration whose data and code have these digests. Reads nothing."""
    code, data, own = digests.code, digests.data, digests.scores
    shard = shard_key(config.data, data, digests.source_code)
    proxies: tuple[str, ...] = ()
    checkpoints: tuple[float, ...] = (1.0,)
    scorer = score = None
    if own is not None:
        merge = merge_key(own_scores_key(own, config.scores_id_column), shard)
    else:
        assert config.proxy is not None and config.score is not None
        if needs_proxies(config.score):
            checkpoints = checkpoints_needed(config.score)
            proxies = tuple(
                proxy_key(config.proxy, number, shard, checkpoints, code, config.seed)
                for number in range(config.proxy.seeds)
            )
        scorer = scorer_key(
            config.score, config.proxy, list(proxies), code=code, seed=config.seed, data=config.data, index_key=shard
        )
        score = score_key(scorer, shard)
        merge = merge_key(score, shard)
    selections, trainings = _plan_arms(config, shard, merge, code)
    features, shifts = _plan_shifts(config, shard, merge, proxies, selections)
    return Plan(
        config, code, digests.source_code, data, shard, proxies, checkpoints, scorer, score, own, merge, selections,
        tuple(trainings), features, shifts,
    )  # fmt: skip


def _plan_arms(
    config: RunConfig, shard: str, merge: str, code: str
) -> tuple[dict[tuple[str, float, int], tuple[str, SelectionUnit]], list[PlannedTraining]]:
    if config.policy is not None:
        from flows.race_plan import Sources, first_units

        return first_units(Sources(config, shard, merge, code))
    selections: dict[tuple[str, float, int], tuple[str, SelectionUnit]] = {}
    trainings: list[PlannedTraining] = []
    train = config.train
    for keep in config.select.keep:
        for arm in config.arms_at(keep):
            for replicate in range(train.replicates):
                unit = SelectionUnit(arm.at(keep), derive_seed("selection", config.seed, replicate), replicate)
                key = selection_key(unit.spec, unit.seed, shard if unit.spec.score is None else merge)
                selections[arm.label, keep, replicate] = key, unit
                trainings.append(_training(config, arm, keep, replicate, key, shard, code))
        if train.full:
            for replicate in range(train.replicates):
                trainings.append(_training(config, None, keep, replicate, None, shard, code))
                if train.soft_labels is not None:
                    key = selections[RANDOM_ARM.label, keep, replicate][0]
                    teacher = trainings[-1].key
                    trainings.append(_training(config, RANDOM_ARM, keep, replicate, key, shard, code, teacher))
                if train.own_schedule:
                    whole = _training(config, None, 1.0, replicate, None, shard, code)
                    trainings.append(replace(whole, arm=OWN, keep=keep, steps_keep=1.0))
    return selections, trainings


def _plan_shifts(
    config: RunConfig, shard: str, merge: str, proxies: Sequence[str],
    selections: Mapping[tuple[str, float, int], tuple[str, SelectionUnit]],
) -> tuple[str | None, tuple[PlannedShift, ...]]:
    """Return the key of the features, and the figures of replicate 0 of every arm and keep."""
    # Which candidates of a race come to a selection depends on results.
    spec = None if config.policy is not None else config.shift
    ranked = [arm.score for arm in config.select.arms if arm.score is not None]
    if spec is None or not ranked:
        return None, ()
    features = features_key(spec, shard, proxies, config.score)
    out = []
    for (name, keep, replicate), (selection, unit) in selections.items():
        if replicate:
            continue
        # A draw that reads no score is seen by that of the first arm.
        score = unit.spec.score or ranked[0]
        out.append(PlannedShift(name, keep, selection, score, shift_key(spec, score, selection, features, merge)))
    return features, tuple(out)


def _training(
    config: RunConfig, arm: ArmSpec | None, keep: float, replicate: int, selection: str | None, shard: str, code: str,
    teacher: str | None = None,
) -> PlannedTraining:
    # Initialisation and order are shared by the arms of a replicate: the comparison is paired.
    seed = derive_seed("train", config.seed, replicate)
    # A keep reaches the full-data arm only through the number of steps; where that is fixed, one training serves all.
    keyed_keep = 1.0 if arm is None and config.train.steps is not None else keep
    keeps = arm is None and config.train.soft_labels is not None
    key = train_key(
        config.train, keep=keyed_keep, seed=seed, source_key=selection or shard, index_key=shard, code=code, teacher=teacher,
        keeps_model=keeps,
    )
    name = SOFT if teacher is not None else arm.label if arm else FULL
    return PlannedTraining(name, keep, replicate, seed, selection, key, teacher, keeps)


def find_states(plan: Plan, store: Store) -> list[StageState]:
    """Return, stage by stage, how many units are sealed: one look-up a unit, none a shard. Raises CorruptError."""
    return states_of([unit for _, unit in plan.units(store)])


def states_of(units: Sequence[Unit]) -> list[StageState]:
    """Return the same of these units. Raises CorruptError."""
    states = survey(units)
    for said in (said for state in states for said in state.damaged):
        raise CorruptError(said)
    return states


def survey(units: Sequence[Unit]) -> list[StageState]:
    """Return the same, with what is wrong with damaged seals, which are not counted as sealed."""
    with ThreadPoolExecutor(LOOKUPS) as readers:
        there = list(readers.map(_look_up, units))
    return [
        StageState(
            stage,
            sum(unit.stage == stage for unit in units),
            sum(found is True for unit, found in zip(units, there) if unit.stage == stage),
            tuple(unit.key for unit in units if unit.stage == stage),
            tuple(found for unit, found in zip(units, there) if unit.stage == stage and isinstance(found, str)),
        )
        for stage in dict.fromkeys(unit.stage for unit in units)
    ]


def _look_up(unit: Unit) -> bool | str:
    """Return whether a unit is sealed, or what is wrong with its seal."""
    try:
        return unit.seal() is not None
    except CorruptError as error:
        return str(error)


def sealed(unit: Unit) -> Seal:
    """Return the seal of a unit that must be there. Raises InputError."""
    seal = unit.seal()
    if seal is None:
        raise InputError(f"{unit.stage} {unit.key[:12]} is not complete in {unit.store.uri}: run the configuration first")
    return seal
