"""Costs: the seconds of whoever computed what an answer rests on, and how many trainings they are not known of."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import Store
from flows.attempts import Attempt, attempt_states
from flows.config import RunConfig
from flows.costs import arm_steps, scoring_of, scoring_steps, wall_time
from flows.plan import Plan, make_plan
from flows.race_results import costs_at
from flows.runs import record_run, recorded_stages
from tasks.policy.halving import Race
from tasks.report.inputs import ArmResult
from tests.flows.race_case import make_config

pytestmark = pytest.mark.timeout(120)

MODEL = {"use": "mlp", "args": {"hidden": [4]}}
PROXY = {"model": MODEL, "seeds": 2, "steps": 10, "batch_size": 32}
FAMILY = {"family": ["topk"], "rungs": [1, 2], "stay": 0.5, "confirm": 10}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    return Store(str(tmp_path / "store"))


def race(folder: Path, **changes: Any) -> RunConfig:
    """Return a race that scores by two proxies, at one keep."""
    own = {"scores": None, "proxy": PROXY, "score": {"scores": ["el2n"]}, "policy": FAMILY, "select": {"keep": 0.2}}
    return make_config(folder, **{**own, **changes})


def attempt(store: Store, plan: Plan, *stages: tuple[str, float, int, int]) -> None:
    """Record an attempt that ended well after these stages."""
    with Attempt(store, plan.run_name) as one:
        for stage in stages:
            one.record_stage(*stage)


def killed(store: Store, run: str, *stages: tuple[str, float, int, int]) -> None:
    """Record an attempt that ended after these stages without a word, as by SIGKILL."""
    one = Attempt(store, run, heartbeat_s=3600.0)
    one.__enter__()
    for stage in stages:
        one.record_stage(*stage)
    one._stop.set()
    one._thread.join()


def test_an_attempt_that_was_killed_lasted_to_its_last_sign_of_life(store: Store) -> None:
    # What it recorded may have begun before the attempt did: the shard stage waits for its record.
    killed(store, "run", ("shard", 5000.0, 2, 2), ("score", 6.0, 1, 1))
    later = datetime.now(UTC) + timedelta(hours=1)
    (state,) = attempt_states(store, "run", later)
    assert state.state == "lost" and 0.0 <= state.seconds(later) < 300.0
    beat = datetime.fromisoformat(state.started) + timedelta(seconds=500)
    store.replace(f"runs/run/attempts/{state.name}.heartbeat.json", f'{{"time":"{beat.isoformat()}"}}'.encode())
    (state,) = attempt_states(store, "run", later)
    assert state.seconds(later) == 500.0


def test_a_recorded_stage_is_a_sign_of_life(store: Store) -> None:
    one = Attempt(store, "run", heartbeat_s=3600.0)
    with one:
        (before,) = attempt_states(store, "run")
        store.remove(f"runs/run/attempts/{one.name}.heartbeat.json")
        one.record_stage("proxy", 0.1, 1, 1)
        (after,) = attempt_states(store, "run")
    assert before.heartbeat is not None and after.heartbeat is not None and after.heartbeat >= before.heartbeat


def test_trainings_that_were_there_already_have_no_time(store: Store, tmp_path: Path) -> None:
    plan = make_plan(race(tmp_path))
    record_run(plan, store)
    # Two proxies; random and the two ends of topk in the first rung.
    assert wall_time(plan, store) == {"seconds": None, "attempts": 0, "trainings": 5, "not_known": 5}
    attempt(store, plan, ("proxy", 0.2, 0, 2), ("rung 1 train", 0.3, 0, 3), ("report", 0.2, 1, 1))
    assert wall_time(plan, store) == {"seconds": None, "attempts": 0, "trainings": 5, "not_known": 5}
    attempt(store, plan, ("rung 1 train", 0.3, 2, 3))
    found = wall_time(plan, store)
    assert (found["attempts"], found["not_known"]) == (1, 3) and found["seconds"] is not None


def test_seconds_are_those_of_whoever_computed(store: Store, tmp_path: Path) -> None:
    plan = make_plan(race(tmp_path))
    other = make_plan(race(tmp_path, policy=FAMILY | {"family": [{"protocol": "exact", "alpha": 0.5}]}))
    assert other.run_name != plan.run_name and other.merge == plan.merge
    for one in (plan, other):
        record_run(one, store)
    attempt(store, other, ("proxy", 20.0, 2, 2), ("score", 5.0, 1, 1), ("merge", 1.0, 1, 1), ("rung 1 train", 70.0, 2, 2))
    # Which of its trainings are this race's too its record does not tell, so their time is not taken.
    assert wall_time(plan, store) == {"seconds": 26.0, "attempts": 0, "trainings": 5, "not_known": 3}
    killed(store, plan.run_name, ("proxy", 0.1, 0, 2), ("rung 1 train", 40.0, 3, 3))
    # It is lost once its process is gone: here it runs, and is over at once.
    found = wall_time(plan, store)
    assert (found["attempts"], found["not_known"]) == (1, 0) and found["seconds"] >= 26.0


def test_a_stage_that_took_two_attempts_took_the_time_of_both(store: Store) -> None:
    killed(store, "run", ("train", 30.0, 4, 10))
    killed(store, "run", ("train", 12.0, 6, 10), ("report", 1.0, 1, 1))
    killed(store, "run", ("train", 0.1, 0, 10))
    found = {one.name: one.seconds for one in recorded_stages(store, "run")}
    assert found == {"train": 42.0, "report": 1.0}


def test_arms_that_rest_on_proxies_without_ranking_by_them_bear_their_steps(tmp_path: Path) -> None:
    lines = [
        {"protocol": "prototype_band", "score": "random", "features": "proxy", "beta": 0.1, "width": 0.5},
        {"protocol": "exact", "score": "random", "alpha": "auto"},
        {"protocol": "topk", "score": "random"},
    ]
    scores = ["random", "el2n", {"name": "el2n", "at": 0.5}]
    plan = make_plan(race(tmp_path, policy=None, score={"scores": scores}, select={"keep": 0.2, "arms": lines}))
    names = sorted({name for name, _, _ in plan.selections} - {"random"})
    arms = [ArmResult(name, "random", name.split()[0], 0.2, None, None, [], []) for name in names]
    assert [(arm.protocol, arm_steps(plan, arm, 300)) for arm in arms] == [("exact", 20), ("prototype_band", 20), ("topk", 0)]
    scoring = scoring_of(plan, arms, 300)
    # Two proxies at two checkpoints.
    assert scoring is not None and (scoring.steps, scoring.scored_examples) == (20, 1200)


def test_full_data_beside_a_confirmation_are_no_cost_of_the_answer(tmp_path: Path) -> None:
    found = []
    for full in (False, True):
        plan = make_plan(race(tmp_path, train={"model": MODEL, "steps": 15, "batch_size": 32, "full": full}))
        won = replace(plan, races={0.2: Race((), (), 0, "topk")})
        found.append(costs_at(won, 0.2, 300))
    assert found[0] == found[1] and found[0].confirmation == 2 * 10 * 15


def test_steps_of_scoring_are_those_of_the_proxies_and_not_known_of_scores_that_were_brought(
    store: Store, tmp_path: Path
) -> None:
    arms = {"policy": None, "select": {"keep": 0.2, "arms": [{"protocol": "topk", "score": "el2n"}]}}
    plan = make_plan(race(tmp_path, score={"scores": ["el2n", "random"]}, **arms))
    assert [scoring_steps(plan, column, 300) for column in (None, "el2n", "random")] == [0, 20, 0]
    brought = make_plan(make_config(tmp_path))
    assert scoring_steps(brought, "clean", 300) is None and scoring_steps(brought, None, 300) == 0
    assert scoring_of(plan, [], 300) is None
