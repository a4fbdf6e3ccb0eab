"""Run a configuration from the command line: plan first, then Prefect, Ray and the flow, and print the outcome."""

from __future__ import annotations

import errno
import importlib
import shlex
import sys
from typing import Any

from cluster.errors import InputError, SecateurError, StageError
from cluster.redaction import scrub
from cluster.scratch import owned_folder, sweep
from cluster.session import set_farewell
from cluster.storage import Store
from flows.advice import advised, mending, needs_mending, said_of
from flows.budgets import check_budgets
from flows.config import RunConfig
from flows.plan import Plan, find_states, make_plan
from flows.runs import is_recorded, record_run
from flows.show import print_outcome
from tasks.report.publish import read_results


def execute(config: RunConfig, store_uri: str, ray: str, as_json: bool) -> None:
    """Run to the results and print them. Where all is sealed, neither Ray nor a Prefect server is started.

    Raises InputError (exit code 2) and StageError (1); ends with 130 or 143 when interrupted.
    """
    store = Store(store_uri)
    plan = make_plan(config)
    with advised(plan.run_name, store):
        finished = finished_results(plan, store)
    if finished is not None:
        # What a killed run left is taken away here, for no Ray session will do it.
        sweep()
        if not is_recorded(plan, store, ask=True):
            # It was lost or taken away: without it no other command knows the run.
            record_run(plan, store)
            print(f"run.json of {plan.run_name} was gone; the run is recorded anew", file=sys.stderr)
        print(f"run {plan.run_name} is finished; its results are in the store", file=sys.stderr)
        print_outcome(finished, store, as_json)
        return
    store.check_writable()
    if ray not in ("local", "auto"):
        from cluster.session import probe

        probe(ray)
    results = run_flow_here(config, plan, store, ray)
    print_outcome(results, store, as_json)


def finished_results(plan: Plan, store: Store) -> dict[str, Any] | None:
    """Return the results where every unit of this very plan is sealed and its report is written, else None.

    Raises InputError or StageError where what was left out is more than this configuration allows.
    """
    # Before anything starts: a seal that makes no sense is told of at once.
    states = find_states(plan, store)
    results = read_results(store, plan.run_name)
    if results is None or any(state.left for state in states):
        return None
    check_budgets(plan, store)
    return results


def run_flow_here(config: RunConfig, plan: Plan, store: Store, ray: str) -> dict[str, Any]:
    """Run the flow in this process, with a Prefect server of our own unless PREFECT_API_URL names one."""
    from flows.server import prefect_api
    from flows.signals import interruptible

    resume = f"secateur resume {plan.run_name} --store {shlex.quote(store.uri)}"

    def again() -> str:
        return resume if is_recorded(plan, store) else "the same command"

    before = "" if is_recorded(plan, store, ask=True) else "run the same command again or, once the run is recorded, "
    set_farewell(f"what is committed stays, {before}go on with: {resume}")
    with owned_folder("prefect") as scratch:
        try:
            with interruptible(until_exit=True, last_words=lambda: scrub(f"interrupted; go on with: {again()}")) as guard:
                try:
                    with prefect_api(scratch, meanwhile=lambda: importlib.import_module("flows.pipeline")):
                        from flows.pipeline import prune
                        from flows.stage_task import run_flow

                        results: dict[str, Any] = run_flow(
                            prune, config.model_dump(mode="json"), store.uri, ray, plan.run_name
                        )
                        return results
                except BaseException:
                    # Whatever Ray or Prefect made of the signal's exception on its way, the signal is what ended the run.
                    if guard.received is None:
                        raise
                    print(f"secateur: interrupted; go on with: {again()}", file=sys.stderr)
                    sys.exit(128 + guard.received)
        except InputError:
            raise
        except SecateurError as error:
            # A row of its own below a table of causes.
            joint = "\n  " if "\n" in str(error) else "; "
            if needs_mending(error) and is_recorded(plan, store):
                joint += f"mend it with: {mending(plan.run_name, store)}, then "
            raise StageError(f"{error}{joint}go on with: {again()}") from error
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise
            raise StageError(f"{said_of(error)}; go on with: {again()}") from error
