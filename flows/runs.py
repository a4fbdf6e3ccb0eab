"""What the store knows of a run: run.json, the results of its sealed units, and the report made of them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from cluster.errors import CorruptError, InputError
from cluster.fingerprint import KEY_CHARS, canonical_json, sha256
from cluster.record import Seal, Unit
from cluster.storage import Store
from flows.attempts import stage_timings
from flows.config import OWN, RANDOM_ARM, SOFT, RunConfig, parse_config
from flows.plan import FULL, Plan, make_plan, sealed
from tasks.imports import nearest
from tasks.report.inputs import SOFT_LABELS, ArmResult, PageInputs, StageTiming

PACKAGES = ("secateur", "torch", "ray", "prefect", "pyarrow", "numpy", "s3fs", "scikit-learn", "scipy")


ONE_KEY = ("data", "code", "source_code", "shard", "merge")
MANY_KEYS = ("proxy", "select", "train")
_RUN = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_]*-[0-9a-f]{{{KEY_CHARS}}}\Z")
_log = logging.getLogger("secateur.runs")
# Runs that this process knows to be recorded: where a run ends, its store may not answer any more.
_recorded: set[str] = set()
_REMAKE = "remove it, and `secateur run CONFIG` records the run anew; what is sealed stays"


def versions() -> dict[str, str]:
    """Return the versions of the packages that results may depend on."""
    return {name: version(name) for name in PACKAGES}


def record_run(plan: Plan, store: Store) -> None:
    """Publish run.json, create-only; where it is there already it stays as it is.

    Its `digest` is the sha256 of the same canonical JSON without that field.
    """
    body = {
        "run": plan.run_name,
        "config": plan.config.model_dump(mode="json"),
        "keys": plan.keys(),
        "versions": versions(),
    }
    whole = {**body, "digest": sha256(canonical_json(body, "run.json"))}
    store.create(f"runs/{plan.run_name}/run.json", canonical_json(whole, "run.json"))
    _recorded.add(store.url(f"runs/{plan.run_name}/run.json"))


def is_recorded(plan: Plan, store: Store, ask: bool = False) -> bool:
    """Return whether this process knows that the run has its run.json; `ask` looks in the store."""
    name = f"runs/{plan.run_name}/run.json"
    if ask:
        change = _recorded.add if store.exists(name) else _recorded.discard
        change(store.url(name))
    return store.url(name) in _recorded


def list_runs(store: Store) -> list[str]:
    """Return the names of all runs in the store; folders that no run has the name of are counted in the log."""
    folders = _folders(store)
    strays = sorted(name for name in folders if not _RUN.match(name))
    if strays:
        _log.warning(
            "secateur: %d entries of %s/runs are no run's, first %r; they are passed over", len(strays), store.uri, strays[0]
        )
    return _recorded_in(folders)


def _folders(store: Store) -> dict[str, bool]:
    """Return what lies below runs/, by name, and whether it has a run.json."""
    out: dict[str, bool] = {}
    for name in store.list("runs"):
        _, folder, *rest = name.split("/")
        out[folder] = out.get(folder, False) or rest == ["run.json"]
    return out


def _recorded_in(folders: dict[str, bool]) -> list[str]:
    return sorted(name for name, recorded in folders.items() if recorded and _RUN.match(name))


def find_run(run: str, store: Store) -> str:
    """Return the full name of the run that `run` names, in whole or by an unambiguous start. Raises InputError."""
    if not run:
        raise InputError("RUN is empty; name a run, or its start")
    folders = _folders(store)
    names = _recorded_in(folders)
    if run in names:
        return run
    found = [name for name in names if name.startswith(run)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"run {run!r} is the start of {len(found)} runs in {store.uri}: {', '.join(found)}; name one")
    lost = sorted(name for name in folders if name.startswith(run) and _RUN.match(name))
    if lost:
        raise InputError(f"run {lost[0]} in {store.uri} has lost its run.json; `secateur run CONFIG` records it anew")
    hint = nearest(run, names) if names else "it holds no run"
    raise InputError(f"no run {run!r} in {store.uri}; {hint}; name the store with --store or SECATEUR_STORE")


def load_run(run: str, store: Store) -> tuple[str, RunConfig, dict[str, Any]]:
    """Return the run's name, its configuration and its record. Raises InputError, CorruptError."""
    name = find_run(run, store)
    record = read_record(name, store)
    try:
        return name, parse_config(record["config"], f"run {name}"), record
    except InputError as error:
        raise CorruptError(
            f"run.json of {name} in {store.uri} holds no configuration of this version's: {error}; `secateur run CONFIG` "
            "makes a new run of what is sealed"
        ) from error


def read_record(name: str, store: Store) -> dict[str, Any]:
    """Return run.json of a run, without its digest. Raises CorruptError unless it is as `record_run` writes it."""
    place = f"runs/{name}/run.json"
    try:
        data = store.read(place)
        record = json.loads(data)
        whole = canonical_json(record) == data and record["run"] == name
        whole = record.pop("digest", None) == sha256(canonical_json(record)) and whole
        keys, config = record["keys"], record["config"]
        texts = [record["versions"].get("torch"), *(keys[one] for one in ONE_KEY), *(k for many in MANY_KEYS for k in keys[many])]
        maybe = [keys["scorer"], keys["score"], keys["scores"]]
        # Only where selections are measured.
        texts += [*keys.get("shift", ()), keys.get("features", "")]
        whole = whole and isinstance(config, dict) and all(isinstance(text, str) for text in texts)
        whole = whole and all(text is None or isinstance(text, str) for text in maybe)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, InputError) as error:
        raise CorruptError(f"{store.url(place)} cannot be read ({type(error).__name__}: {error}): {_REMAKE}") from error
    if not whole:
        raise CorruptError(f"{store.url(place)} is not as it was written: {_REMAKE}")
    return dict(record)


def plan_of(run: str, store: Store) -> Plan:
    """Return the plan of a recorded run. Raises InputError when its data or code are not what they were."""
    name, config, record = load_run(run, store)
    plan = make_plan(config)
    if plan.run_name != name:
        changed = [what for what, key in plan.keys().items() if record["keys"].get(what) != key]
        raise InputError(
            f"run {name} cannot go on: {', '.join(changed)} changed since it was recorded (data or code are not what they "
            "were); `secateur run CONFIG` makes a new run of what is there now"
        )
    return plan


def arm_results(plan: Plan, store: Store) -> list[ArmResult]:
    """Return the sealed results of every arm at each of its keeps. Raises InputError where something is not complete."""
    if plan.config.policy is not None:
        from flows.race_results import race_arms

        return race_arms(plan, store)
    selections = {key: sealed(Unit(store, "select", key)) for key, _ in plan.selections.values()}
    trainings = {training.key: sealed(Unit(store, "train", training.key)) for training in plan.trainings}
    results: list[ArmResult] = []
    replicates = range(plan.config.train.replicates)
    by_place = {(t.arm, t.keep, t.replicate): t.key for t in plan.trainings}
    for keep in plan.config.select.keep:
        for arm in plan.config.arms_at(keep):
            picked = [selections[plan.selections[arm.label, keep, r][0]] for r in replicates]
            # Where it was auto it is resolved there.
            alpha = picked[0].meta["alpha"]
            results.append(
                ArmResult(
                    arm.label, arm.score, arm.shown_protocol, keep, alpha, arm.gamma, picked,
                    [trainings[by_place[arm.label, keep, r]] for r in replicates],
                )
            )
        if plan.config.train.soft_labels is not None:
            picked = [selections[plan.selections[RANDOM_ARM.label, keep, r][0]] for r in replicates]
            trains = [trainings[by_place[SOFT, keep, r]] for r in replicates]
            results.append(ArmResult(SOFT, None, SOFT_LABELS, keep, None, None, picked, trains))
        if plan.config.train.full:
            trains = [trainings[by_place[FULL, keep, r]] for r in replicates]
            results.append(ArmResult(FULL, None, FULL, keep, None, None, None, trains))
        if plan.config.train.own_schedule:
            trains = [trainings[by_place[OWN, keep, r]] for r in replicates]
            results.append(ArmResult(OWN, None, FULL, keep, None, None, None, trains))
    return results


def make_report(
    plan: Plan, store: Store, stages: Sequence[StageTiming], index: Seal | None = None, merge: Seal | None = None
) -> dict[str, Any]:
    """Write the report, its table and its figure from the sealed units and return the results. Raises InputError.

    A seal that is given is not read again: of 10,000 shards it takes 4 MiB while it is read.
    """
    from flows.costs import arm_steps, scoring_of
    from flows.curves import add_curves
    from flows.measured import add_shift
    from flows.sweep import grid_of
    from tasks.comparison import SEARCH_REPLICATES, least_replicates
    from tasks.report.curves import FIGURE, curve_figure
    from tasks.report.publish import write_report
    from tasks.report.results import build_results
    from tasks.report.table import TABLE, results_table, table_bytes

    plan = plan.grown(store)
    index = index or sealed(Unit(store, "shard", plan.shard))
    merge = merge or sealed(Unit(store, "merge", plan.merge))
    num_train = int(index.meta["num_train"])
    arms = [replace(arm, scoring_steps=arm_steps(plan, arm, num_train)) for arm in arm_results(plan, store)]
    least, scoring = None, None
    if plan.config.sweep is not None:
        # A sweep is a search, were its grid of one arm.
        least = SEARCH_REPLICATES
    if plan.config.policy is not None:
        # One comparison a keep, whether or not there is a winner to be compared.
        least = least_replicates(len(plan.config.select.keep))
    else:
        scoring = scoring_of(plan, arms, num_train)
    results = build_results(
        plan.run_name, index, arms, plan.config.report.margin_points, store, min_replicates=least, scoring=scoring
    )
    if plan.config.sweep is not None:
        results["sweep"] = grid_of(plan.config).facts()
    if plan.config.policy is not None:
        from flows.race_results import add_race, race_specs

        add_race(plan, store, index, results)
        settings = {place: spec.effective() for place, spec in race_specs(plan).items()}
    else:
        settings = {
            (arm.label, keep): arm.at(keep).effective()
            for keep in plan.config.select.keep
            for arm in plan.config.arms_at(keep)
        }
    add_curves(plan, store, num_train, arms, results)
    table = results_table(plan.run_name, arms, settings, num_train)
    figure = curve_figure(results)
    beside = {TABLE: table_bytes(table), **({} if figure is None else {FIGURE: figure})}
    page = PageInputs(
        arms, merge, stages, plan.config.model_dump(mode="json"), versions(), add_shift(plan, store, results)
    )
    write_report(store, plan.run_name, results, page, beside)
    return results


def subset_units(plan: Plan, selections: dict[str, Seal]) -> list[tuple[str, Seal]]:
    """Return (subset key, selection seal) for each selection, each once."""
    return [(plan.subset(key), seal) for key, seal in selections.items()]


def recorded_stages(store: Store, run: str) -> list[StageTiming]:
    """Return, for each stage, the time of all attempts that computed of it, or of the last that found it sealed."""
    best: dict[str, StageTiming] = {}
    for timing in stage_timings(store, run):
        found = StageTiming(timing.name, timing.seconds, timing.computed > 0, timing.items)
        known = best.get(timing.name)
        if known is not None and known.computed and found.computed:
            found = replace(found, seconds=known.seconds + found.seconds)
        if known is None or found.computed or not known.computed:
            best[timing.name] = found
    return list(best.values())
