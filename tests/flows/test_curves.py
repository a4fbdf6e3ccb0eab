"""Time to accuracy in a whole run: the curves of all arms, what each is charged, and a run that asked for none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.record import Unit
from cluster.storage import Store
from flows.attempts import Attempt
from flows.config import OWN, SOFT, RunConfig, parse_config
from flows.costs import scoring_seconds
from flows.curves import charges
from flows.plan import FULL, Plan, make_plan, sealed
from flows.runs import arm_results, make_report, record_run
from tasks.curve import read_times
from tasks.pool import SerialPool
from tasks.report.inputs import ArmResult
from tests.flows.serial_run import run_serially

pytestmark = pytest.mark.timeout(300)

POINTS = 4
Run = tuple[Plan, Store, dict[str, Any]]


def config(**train: Any) -> RunConfig:
    model = {"use": "mlp", "args": {"hidden": [8]}}
    return parse_config(
        {
            "name": "curves",
            "data": {"source": "sklearn", "train": "digits", "limit": 300},
            "proxy": {"model": model, "seeds": 2, "steps": 5, "batch_size": 32},
            "score": {"scores": ["el2n", "random"]},
            "shift": False,
            "select": {"keep": 0.2, "arms": [{"protocol": "topk", "score": "el2n"}, {"protocol": "topk", "score": "random"},
                                             {"protocol": "rs2"}]},
            "train": {
                "model": model, "epochs": 3, "min_steps": 12, "batch_size": 16, "lr": 0.01, "replicates": 2, "soft_labels": True,
                "own_schedule": True, **train,
            },
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    plan, store = make_plan(config(curve=POINTS)), Store(str(tmp_path_factory.mktemp("curves") / "store"))
    return plan, store, run_serially(plan, store, SerialPool())


def test_every_arm_has_a_curve_and_bears_its_own_costs(run: Run) -> None:
    plan, store, results = run
    (entry,) = results["time_to_accuracy"]["keeps"]
    rows = {row["arm"]: row for row in entry["arms"]}
    assert list(rows) == ["random", "topk el2n", "topk random", "rs2", SOFT, FULL, OWN]
    n = results["dataset"]["n_train"]
    own = -(-n // 16) * 3
    assert {name: row["steps"] for name, row in rows.items()} == {name: [3, 6, 9, 12] for name in rows} | {
        OWN: [-(-own * number // POINTS) for number in (1, 2, 3, 4)]
    }
    nothing = dict.fromkeys(("scoring_steps", "scored_examples", "teacher_steps", "search_steps", "steps"), 0) | {"seconds": 0.0}
    scored = {**nothing, "scoring_steps": 10, "scored_examples": 2 * n, "steps": 10, "seconds": None}
    taught = {**rows[SOFT]["charge"], "seconds": 0.0}
    assert taught == {**nothing, "teacher_steps": 12, "steps": 12} and rows[SOFT]["charge"]["seconds"] > 0
    # A column that reads no proxy was not paid for.
    assert {name: row["charge"] for name, row in rows.items()} == dict.fromkeys(rows, nothing) | {
        "topk el2n": scored, SOFT: rows[SOFT]["charge"]
    }  # fmt: skip
    ends = {arm["name"]: arm["mean"] for arm in results["arms"]}
    for arm in arm_results(plan, store):
        curves = [seal.meta["curve"]["accuracy"] for seal in arm.trains]
        assert rows[arm.name]["accuracy"] == pytest.approx([sum(pair) / 2 for pair in zip(*curves)])
        assert rows[arm.name]["accuracy"][-1] == pytest.approx(ends[arm.name])
        times = [read_times(Unit(store, "train", seal.key), rows[arm.name]["steps"]) for seal in arm.trains]
        assert all(one is not None for one in times)
    assert entry["reference"]["arm"] == OWN


def test_the_report_holds_it_and_is_the_same_when_it_is_made_again(run: Run) -> None:
    plan, store, results = run
    name = f"runs/{plan.run_name}/report"
    page = store.read(f"{name}/index.html").decode()
    assert "Time to accuracy" in page and "Teacher: the full-data training that soft labels come from, 12 steps." in page
    assert json.loads(store.read(f"{name}/results.json"))["time_to_accuracy"] == results["time_to_accuracy"]
    assert make_report(plan, store, []) == results


def test_times_that_were_lost_change_nothing_but_themselves(run: Run) -> None:
    plan, store, results = run
    key = next(one.key for one in plan.trainings if one.arm == FULL)
    name = f"{Unit(store, 'train', key).folder}/times.json"
    kept = store.read(name)
    store.remove(name)
    (entry,) = make_report(plan, store, [])["time_to_accuracy"]["keeps"]
    rows = {row["arm"]: row for row in entry["arms"]}
    assert rows[FULL]["seconds"] is None and rows[SOFT]["charge"]["seconds"] is None and rows["random"]["seconds"] is not None
    (before,) = results["time_to_accuracy"]["keeps"]
    assert {row["arm"]: row["accuracy"] for row in before["arms"]} == {name: row["accuracy"] for name, row in rows.items()}
    store.create(name, kept)


def test_time_of_scoring_is_that_of_all_attempts_that_computed_it_whosever_run_they_were(run: Run, tmp_path: Path) -> None:
    plan, _, _ = run
    store, other = Store(str(tmp_path)), make_plan(config())
    assert other.run_name != plan.run_name and other.merge == plan.merge
    assert scoring_seconds(plan, store) is None
    for one in (plan, other, make_plan(config(curve=3))):
        record_run(one, store)
    with Attempt(store, other.run_name) as attempt:
        attempt.record_stage("proxy", 3.0, 1, 2)
    # The other proxy is nowhere.
    assert scoring_seconds(plan, store) is None
    with Attempt(store, plan.run_name) as attempt:
        for timing in (("proxy", 2.0, 1, 2), ("score", 1.0, 1, 1), ("merge", 0.5, 1, 1), ("train", 9.0, 4, 4)):
            attempt.record_stage(*timing)
    with Attempt(store, plan.run_name) as attempt:
        attempt.record_stage("proxy", 0.1, 0, 2)
    assert scoring_seconds(plan, store) == scoring_seconds(other, store) == 6.5
    assert scoring_seconds(make_plan(parse_config({**config().model_dump(mode="json"), "seed": 1})), store) is None
    store.replace(f"runs/{other.run_name}/run.json", b"{}")
    assert scoring_seconds(plan, store) is None


def test_a_searched_arm_bears_the_search(run: Run) -> None:
    plan, store, _ = run
    random, top, *_ = arm_results(plan, store)
    costs = {"scoring_steps": 10, "scored_examples": 500, "race_steps": 100, "confirmation_steps": 20}
    results: dict[str, Any] = {"policy": {"keeps": [{"keep": 0.2, "costs": costs}], "wall": {"seconds": 7.5, "not_known": 0}}}
    arms: list[ArmResult] = [random, replace(top, name="found")]
    ((place, charge),) = charges(plan, store, 300, arms, results).items()
    assert place == ("found", 0.2) and (charge.steps, charge.search, charge.seconds) == (130, 120, 7.5)
    # Of some of its trainings nobody knows how long they took.
    results["policy"]["wall"]["not_known"] = 3
    ((_, charge),) = charges(plan, store, 300, arms, results).items()
    assert charge.steps == 130 and charge.seconds is None


def test_a_run_that_asks_for_none_has_its_own_trainings_and_no_section(run: Run, tmp_path: Path) -> None:
    plan, _, results = run
    other, store = make_plan(config()), Store(str(tmp_path))
    assert other.selections == plan.selections and other.run_name != plan.run_name
    plain = run_serially(other, store, SerialPool())
    assert "time_to_accuracy" not in plain
    assert [arm["accuracy"] for arm in plain["arms"]] == [arm["accuracy"] for arm in results["arms"]]
    assert b"Time to accuracy" not in store.read(f"runs/{other.run_name}/report/index.html")
    assert not [name for name in store.list("stages") if name.endswith("times.json")]
    for one in other.trainings:
        assert "curve" not in sealed(Unit(store, "train", one.key)).meta
