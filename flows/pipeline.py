"""The flow: a pruning run from the dataset to the report, every stage one Prefect task."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import flow

from cluster.capacity import check_fits
from cluster.code import add_code_dirs
from cluster.errors import InputError
from cluster.frozen_code import freeze_code
from cluster.memory import release_memory
from cluster.record import Seal
from cluster.redaction import scrub_error
from cluster.scratch import owned_folder
from cluster.session import RaySession
from cluster.shape import check_shape
from cluster.storage import Store
from flows.artifacts import publish_table
from flows.attempts import Attempt
from flows.config import RunConfig, parse_config
from flows.measured import shift_inputs, shift_units
from flows.plan import Plan, StageState, entry_points, find_states, make_plan
from flows.progress import Progress, print_line
from flows.race import race_to_the_end
from flows.race_plan import race_scores
from flows.runs import is_recorded, make_report, record_run, recorded_stages, subset_units, versions
from flows.signals import current_guard
from flows.stage_task import stage_task
from tasks.merge import MergeInputs, merge_stage
from tasks.proxy import ProxyInputs, proxy_stage
from tasks.quarantine import left_out
from tasks.report.wording import causes_text
from tasks.score import ScoreInputs, score_stage
from tasks.scores.registry import score_info
from tasks.selecting import SelectInputs, SelectionUnit, selection_stage
from tasks.shard import shard_stage
from tasks.shift.units import shift_stage
from tasks.spec import Recipe, Use
from tasks.subset import SubsetInputs, subset_stage
from tasks.train import TrainInputs, TrainUnit, run_train_job, train_stage

P = ParamSpec("P")
R = TypeVar("R")


def discreet(stage: Callable[P, R]) -> Callable[P, R]:
    """Return the stage with secrets taken out of what it raises: Prefect records the text of every exception."""

    @functools.wraps(stage)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return stage(*args, **kwargs)
        except Exception as error:
            raise scrub_error(error)  # noqa: B904

    return run


shard = stage_task(discreet(shard_stage), name="shard", run_name="shard", tags=("secateur", "shard"))
proxy = stage_task(discreet(proxy_stage), name="proxy", run_name="proxy", tags=("secateur", "proxy"))
score = stage_task(discreet(score_stage), name="score", run_name="score", tags=("secateur", "score"))
merge = stage_task(discreet(merge_stage), name="merge", run_name="merge", tags=("secateur", "merge"))
select = stage_task(discreet(selection_stage), name="select", run_name="select", tags=("secateur", "select"))
subset = stage_task(discreet(subset_stage), name="subset", run_name="subset", tags=("secateur", "subset"))
shift = stage_task(discreet(shift_stage), name="shift", run_name="shift", tags=("secateur", "shift"))
train = stage_task(discreet(train_stage), name="train", run_name="train", tags=("secateur", "train"))
report = stage_task(discreet(make_report), name="report", run_name="report", tags=("secateur", "report"))


@flow(name="secateur", flow_run_name="{name}", persist_result=False, validate_parameters=False)
def prune(config: dict[str, Any], store: str, ray: str = "local", name: str = "secateur") -> dict[str, Any]:
    """Run a configuration to its report and return results.json. The same configuration resumes."""
    run = parse_config(config)
    plan = make_plan(run)
    place = Store(store)
    found = place.guarantees()
    states = {state.stage: state for state in find_states(plan, place)}
    with (
        owned_folder("run") as scratch,
        RaySession(ray, code_as_planned(plan, scratch / "code"), scratch) as session,
        Progress() as progress,
        contextlib.ExitStack() as recorded,
    ):
        guard = current_guard()
        if guard is not None:
            # Ray puts a SIGTERM handler of its own in when it starts.
            guard.install()
        check_room(run, states)
        pool = session.pool(progress.update)
        launch = session.launcher(run_train_job)
        clock = Clock(states, progress)

        def begin() -> None:
            """Record the run and begin the attempt; a stage that is tried again, or that had no need to ask, changes nothing."""
            if clock.attempt is None:
                record_run(plan, place)
                clock.attempt = recorded.enter_context(Attempt(place, plan.run_name, versions(), facts=found.facts))

        def accept(meta: dict[str, Any]) -> None:
            """Refuse what this run cannot use, before anything is written; what is written first is the run itself."""
            check_fit(run, meta)
            if run.scores is None:
                begin()

        if states["shard"].left and is_recorded(plan, place, ask=True):
            # The same data were accepted before.
            begin()
        with clock.stage("shard"):
            index = shard(run.data, place, pool, plan.source_code, accept)
        if not states["shard"].left and not is_recorded(plan, place, ask=True):
            # Of an index that was sealed nothing was asked.
            check_fit(run, dict(index.meta))
        warn_of_limit(index)
        tell_left_out("bad rows of the data", index)
        own = None
        if run.scores is not None:
            # The user's own scores are checked before the run is recorded: they may be wrong input.
            own = merge(merge_inputs(plan, index, None), place, pool)
            check_columns(run, own)
        begin()

        with clock.stage("proxy"):
            proxies = proxy(run.proxy, proxy_inputs(plan, index), place, pool) if run.proxy and plan.proxies else []
        with clock.stage("score"):
            scores = score(run.score, score_inputs(plan, index, proxies), place, pool) if run.score else None
        if scores is not None:
            tell_left_out("train examples without a score", scores)
        with clock.stage("merge"):
            table = own or merge(merge_inputs(plan, index, scores), place, pool)

        def train_arms(part: Plan) -> None:
            """Select, cut out and train the arms of a plan, or of a part of one."""
            with clock.stage("select"):
                chosen = distinct(part)
                inputs = select_inputs(plan, index, table, proxies)
                selections = dict(zip(chosen, select(list(chosen.items()), inputs, place, pool)))
            with clock.stage("subset"):
                units = subset_units(part, selections)
                seals = subset(units, SubsetInputs(run.data, index, run.select.resources), place, pool)
                subsets = dict(zip(selections, seals))
            if run.shift is not None and part.shifts:
                with clock.stage("shift"):
                    inputs_of = shift_inputs(plan, index, table, proxies)
                    shift(run.shift, shift_units(part, selections, subsets), inputs_of, place, pool)
            with clock.stage("train"):
                train(run.train, train_inputs(part, index, selections, subsets), place, pool, launch)

        if run.policy is None:
            train_arms(plan)
        else:
            race_to_the_end(plan, place, train_arms, clock.begin)
        with clock.stage("report"):
            results = report(plan, place, recorded_stages(place, plan.run_name), index, table)
        publish_results(plan, results)
    return results


@dataclass
class Clock:
    """Time the stages of this attempt, and say in the log and the record what is new since it began and what was there."""

    states: dict[str, StageState]
    progress: Progress
    attempt: Attempt | None = None
    round: str = ""
    """What stages are recorded as part of, as the rung of a race."""

    def __post_init__(self) -> None:
        self.waiting: list[tuple[str, float, int, int]] = []

    def begin(self, name: str, states: list[StageState]) -> None:
        """Begin a round of stages that are recorded under its name; `states` are those of its own units."""
        self.round = name
        self.states = self.states | {state.stage: state for state in states}

    def stage(self, name: str) -> Watch:
        """Return a context manager around one stage."""
        return Watch(self, name)

    def record(self, name: str, seconds: float, computed: int, items: int) -> None:
        """Record a stage's time; those before there was an attempt wait for it."""
        self.waiting.append((name, seconds, computed, items))
        if self.attempt is not None:
            for timing in self.waiting:
                self.attempt.record_stage(*timing)
            self.waiting.clear()


class Watch:
    """Time one stage."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock, self.name = clock, name

    def __enter__(self) -> None:
        self.start = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        seconds = time.monotonic() - self.start
        release_memory()
        state = self.clock.states.get(self.name)
        total, there = (state.total, state.sealed) if state else (1, 0)
        self.clock.progress.finish(self.name)
        if state is not None or self.name == "report":
            # Another run may have computed some of them meanwhile.
            words = f"{total - there} new" + (f", {there} there already" if there else "")
            print_line(f"{self.name:<8}{words}  {seconds:.1f} s")
        self.clock.record(f"{self.clock.round} {self.name}".lstrip(), seconds, total - there, total)


def proxy_inputs(plan: Plan, index: Seal) -> ProxyInputs:
    """Return what the proxy stage reads."""
    return ProxyInputs(plan.config.data, index, plan.checkpoints, plan.code, plan.config.seed)


def score_inputs(plan: Plan, index: Seal, proxies: list[Seal]) -> ScoreInputs:
    """Return what the score stage reads."""
    run = plan.config
    assert run.proxy is not None
    return ScoreInputs(run.data, index, run.proxy, proxies, plan.code, run.seed)


def merge_inputs(plan: Plan, index: Seal, scores: Seal | None) -> MergeInputs:
    """Return what the merge stage reads: the scores computed, or the user's own."""
    run = plan.config
    return MergeInputs(
        run.data, index, scores, run.scores, plan.scores_digest, run.scores_id_column, run.select.resources
    )


def select_inputs(plan: Plan, index: Seal, table: Seal, proxies: list[Seal]) -> SelectInputs:
    """Return what the select stage reads."""
    run = plan.config
    scoring = (run.score, score_inputs(plan, index, proxies)) if run.score is not None else None
    return SelectInputs(run.data, index, table, run.select.resources, scoring)


def distinct(plan: Plan) -> dict[str, SelectionUnit]:
    """Return the selections by key, each once."""
    return dict(plan.selections.values())


def train_inputs(
    plan: Plan, index: Seal, selections: dict[str, Seal], subsets: dict[str, Seal]
) -> TrainInputs:
    """Return the trainings with their steps: at one keep, the same in every arm but the full data's on its own schedule."""
    num_train = int(index.meta["num_train"])
    units: list[tuple[str, TrainUnit]] = []
    for item in plan.trainings:
        steps = plan.config.train.steps_for(round(item.steps_at * num_train))
        chosen = selections.get(item.selection or "")
        unit = TrainUnit(
            item.arm, item.keep, item.replicate, subsets.get(item.selection or ""), chosen, steps, item.seed, item.teacher,
            item.keeps_model,
        )
        units.append((item.key, unit))
    return TrainInputs(plan.config.data, index, plan.code, units)


def code_as_planned(plan: Plan, target: Path) -> Sequence[Path | str]:
    """Return the folders that the user's code is imported from: copies made now, of the digest that the keys hold.

    Raises InputError where the code is not what was planned any more. Where `code_version` stands for the digest it is the
    user who answers for what is imported.
    """
    run = plan.config
    if not plan.code or run.code_version is not None:
        return run.code
    folders = freeze_code(entry_points(run), run.code, target, plan.code)
    add_code_dirs(folders)
    return folders


def check_room(run: RunConfig, states: dict[str, StageState]) -> None:
    """Raise InputError when no node, also after the autoscaler has added all it may, can hold a worker of a stage left to do."""
    stages = {"shard": (run.data.resources, 1), "train": (run.train.resources, run.train.world_size)}
    stages |= dict.fromkeys(("merge", "select", "subset"), (run.select.resources, 1))
    if run.shift is not None:
        stages |= dict.fromkeys(("features", "shift"), (run.shift.resources, 1))
    if run.proxy is not None and run.score is not None:
        stages |= {"proxy": (run.proxy.resources, 1), "score": (run.score.resources, 1)}
    for stage, state in states.items():
        if state.left:
            resources, workers = stages[stage]
            check_fits(check_shape(resources.cpus, resources.gpus), stage, workers)


def check_fit(run: RunConfig, meta: dict[str, Any]) -> None:
    """Raise InputError, before anything is written, when a keep leaves no example or a model does not fit the data."""
    from tasks.models.build import check_model

    if run.policy is not None and not meta["num_validation"]:
        raise InputError(
            "a race is judged on the validation split, and it has no example here; raise data.validation, or give more data"
        )
    for keep in run.select.keep:
        if round(keep * meta["num_train"]) < 1:
            raise InputError(f"select.keep {keep:g} of {meta['num_train']} train examples rounds to none; keep more")
    if run.proxy is not None and run.score is not None:
        epoch = math.ceil(meta["num_train"] / run.proxy.batch_size)
        steps = run.proxy.steps_for(meta["num_train"])
        dynamic = [use.name for use in run.score.scores if score_info(use.name).needs == "dynamics"]
        if dynamic and steps < epoch:
            # An example that was never presented has no dynamics, and a zero in its place would rank it.
            raise InputError(
                f"{', '.join(dynamic)} read the training of every example, but proxy has {steps} steps and one pass takes "
                f"{epoch}; give proxy at least one epoch, or leave these scores out"
            )

    shape, num_classes = tuple(meta["shape"]), int(meta["num_classes"])
    wanted: list[tuple[Use, Recipe]] = [(run.train.model, run.train.recipe)]
    if run.proxy is not None:
        wanted.insert(0, (run.proxy.model, run.proxy.recipe))
    for model, recipe in wanted:
        check_model(model, shape, num_classes, recipe, dtype=meta["dtype"])


def check_columns(run: RunConfig, table: Seal) -> None:
    """Raise InputError when an arm ranks by a column that the score table does not have."""
    from tasks.imports import nearest

    columns = list(table.meta["columns"])
    for score in race_scores(run) if run.policy is not None else ():
        if score not in columns:
            raise InputError(f"policy.scores has {score!r}, which the score table has not; {nearest(score, columns)}")
    for arm in run.select.arms:
        if arm.score is not None and arm.score not in columns:
            raise InputError(f"arm {arm.label!r} ranks by {arm.score!r}, which the score table has not; "
                             f"{nearest(arm.score, columns)}")


def warn_of_limit(index: Seal) -> None:
    """Say that this run is on a slice, where it is."""
    if index.meta.get("limit") is not None:
        print_line(f"data.limit: a slice of {index.meta['limit']} rows, {index.meta['num_unused']} rows left out")


def tell_left_out(what: str, seal: Seal) -> None:
    """Say how many examples a stage put into its quarantine, by cause, where there are any."""
    fact = left_out(seal)
    if fact["rows"]:
        print_line(f"{seal.stage:<8}{fact['rows']} {what} in quarantine: {causes_text(fact['causes'])}")


def publish_results(plan: Plan, results: dict[str, Any]) -> None:
    """Show the results as a Prefect table artifact."""
    rows = [
        {
            "arm": arm["name"],
            "keep": arm["keep"],
            "kept": arm["n_kept"],
            "steps": arm["steps"],
            "accuracy": arm["mean"],
        }
        for arm in results["arms"]
    ]
    publish_table(f"results-{plan.run_name}", rows, f"Results of {plan.run_name}")

