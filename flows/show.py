"""Commands that read the store and print: plan, status, show, report."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from cluster.control_characters import show_controls_in
from cluster.errors import CorruptError, InputError, StageError
from cluster.storage import Store
from flows.advice import advised, mending
from flows.attempts import AttemptState, attempt_states
from flows.cli import print_json
from flows.config import RunConfig
from flows.lineage import Lineage, load_lineage
from flows.output import results as output
from flows.output import say
from flows.plan import StageState, find_states, make_plan, survey
from flows.runs import list_runs, load_run, make_report, read_record, recorded_stages, versions
from tasks.report.publish import read_results, report_name

STAGES = ("data", "code", "shard", "proxy", "scorer", "score", "merge", "select", "features", "shift", "train")


def show_plan(config: RunConfig, store_uri: str, as_json: bool) -> None:
    """Print what would run and why: stage by stage, what is sealed and which key changed since the last run."""
    store = Store(store_uri)
    plan = make_plan(config)
    with advised(plan.run_name, store):
        states = find_states(plan, store)
    before, unreadable = latest_keys(store, config.name)
    changed = [stage for stage in STAGES if before is not None and before.get(stage) != plan.keys().get(stage)]
    document = {
        "run": plan.run_name,
        "store": store.uri,
        "changed": changed,
        "unreadable": unreadable,
        "stages": [
            {"stage": state.stage, "total": state.total, "sealed": state.sealed, "left": state.left,
             "keys": list(state.keys)}
            for state in states
        ],
    }
    lines: list[str] = []
    if config.policy is not None:
        from flows.race_plan import describe, family_lines, standing_lines

        grown = plan.grown(store)
        document["policy"] = describe(grown)
        lines = [*standing_lines(grown), *family_lines(grown)]
    if as_json:
        print_json(document)
        return
    say(f"run {plan.run_name} in {store.uri}")
    for state in states:
        keys = state.keys[0][:12] + (f" and {state.total - 1} more" if state.total > 1 else "")
        what = "sealed" if state.left == 0 else f"{state.left} of {state.total} to compute"
        say(f"  {state.stage:<10}{what:<24}{keys}")
    for line in lines:
        say(line)
    for bad in unreadable:
        say(f"run {bad} is passed over: its run.json cannot be read")
    if before is None:
        say(f"no earlier run named {config.name} in this store")
    elif changed:
        say(f"changed since the last run named {config.name}: {', '.join(changed)}")
    else:
        say(f"no digest changed since the last run named {config.name}")


def latest_keys(store: Store, name: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the keys of the run of that name whose newest attempt is the latest, or None, and the runs that cannot be read."""
    best: tuple[str, dict[str, Any]] | None = None
    unreadable: list[str] = []
    for run in list_runs(store):
        if run.rpartition("-")[0] != name:
            continue
        attempts = attempt_states(store, run)
        started = max((attempt.started for attempt in attempts), default="")
        if best is None or started > best[0]:
            try:
                best = started, read_record(run, store)["keys"]
            except (CorruptError, OSError):
                unreadable.append(run)
    return best[1] if best else None, unreadable


def load_recorded(run: str, store: Store) -> Lineage:
    """Return what run.json says of a run; data and code are not looked at. Raises InputError, CorruptError."""
    lineage = load_lineage(run, store)
    if lineage.derived.run_name != lineage.run:
        raise CorruptError(
            f"run.json of {lineage.run} in {store.uri} has the configuration and digests of {lineage.derived.run_name}: it was "
            "changed; remove it, and `secateur run CONFIG` records the run anew"
        )
    return lineage


def show_status(run: str | None, store_uri: str, as_json: bool) -> None:
    """Print the runs of a store with the state of their newest attempt, or one run in full.

    Raises StageError, after all of it is printed, where a seal of the run is damaged.
    """
    store = Store(store_uri)
    if run is None:
        rows = []
        for name in list_runs(store):
            attempts = attempt_states(store, name)
            newest = attempts[-1].state if attempts else "recorded"
            unreadable = sum(len(attempt.unreadable) for attempt in attempts)
            rows.append({"run": name, "state": newest, "attempts": len(attempts), "unreadable": unreadable})
        if as_json:
            print_json(rows)
        elif rows:
            for row in rows:
                bad = f", {row['unreadable']} of their files cannot be read" if row["unreadable"] else ""
                say(f"{row['run']:<40} {row['state']:<12} {row['attempts']} attempts{bad}")
        else:
            say(f"no run in {store.uri}")
        return
    lineage = load_recorded(run, store)
    name, plan = lineage.run, lineage.derived
    attempts = attempt_states(store, name)
    with advised(name, store):
        states = survey(lineage.units(store))
    damaged = [said for state in states for said in state.damaged]
    race: dict[str, Any] = {}
    lines: list[str] = []
    if plan.config.policy is not None and not damaged:
        from flows.race_plan import describe, standing_lines

        grown = plan.grown(store)
        race, lines = {"policy": describe(grown)}, standing_lines(grown)
    if as_json:
        stages = [
            {"stage": state.stage, "total": state.total, "sealed": state.sealed, "damaged": list(state.damaged)}
            for state in states
        ]
        print_json({"run": name, "attempts": [asdict(attempt) for attempt in attempts], "stages": stages, **race})
    else:
        _say_status(name, store, attempts, states, lines)
    if damaged:
        raise StageError(f"{damaged[0]}; mend it with: {mending(name, store)}")


def _say_status(
    name: str, store: Store, attempts: list[AttemptState], states: list[StageState], lines: list[str]
) -> None:
    say(f"run {name} in {store.uri}")
    for attempt in attempts:
        facts = f"  store {json.dumps(dict(attempt.facts))}" if attempt.facts else ""
        say(f"  attempt {attempt.started}  {attempt.state}{facts}")
        for bad in attempt.unreadable:
            say(f"    cannot be read: {bad}")
    for state in states:
        bad = f", {len(state.damaged)} damaged" if state.damaged else ""
        say(f"  {state.stage:<10}{state.sealed} of {state.total} sealed{bad}")
        for said in state.damaged:
            say(f"    {said}")
    for line in lines:
        say(line)


def show_results(run: str, store_uri: str, as_json: bool) -> None:
    """Print the results of a finished run. Raises InputError where it is not finished."""
    store = Store(store_uri)
    name, _, _ = load_run(run, store)
    results = read_results(store, name)
    if results is None:
        raise InputError(f"run {name} has no report yet; `secateur resume {name}` goes on with it")
    print_outcome(results, store, as_json)


def print_outcome(results: dict[str, Any], store: Store, as_json: bool) -> None:
    """Print results: a JSON document, or the table, the verdict and where the report is."""
    if as_json:
        print_json(results)
        return
    from rich.console import Console

    from tasks.report.terminal import print_results

    # A table folded at 80 columns of a pipe cannot be read; terminals say their own width.
    console = Console(file=output(), width=None if output().isatty() else 140)
    print_results(show_controls_in(results), console)
    say(f"report: {store.url(report_name(results['run'], 'index.html'))}")


def write_report_again(run: str, store_uri: str) -> None:
    """Write results.json and index.html again from the sealed stages."""
    store = Store(store_uri)
    lineage = load_recorded(run, store)
    plan = lineage.plan
    if plan is None:
        made, here = lineage.record["versions"], versions()
        changed = [f"{name} {made.get(name)}, here {now}" for name, now in here.items() if made.get(name) != now]
        raise InputError(
            f"the stages of run {lineage.run} have other keys here than when it was recorded ({'; '.join(changed)}); write its "
            "report with the versions of then, or run its configuration again"
        )
    with advised(plan.run_name, store):
        left = [state.stage for state in find_states(plan, store) if state.left]
        if left:
            raise InputError(
                f"run {plan.run_name} is not finished ({', '.join(left)}); `secateur resume {plan.run_name}` goes on with it"
            )
        make_report(plan, store, recorded_stages(store, plan.run_name))
    say(store.url(report_name(plan.run_name, "index.html")))
