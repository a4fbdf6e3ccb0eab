"""Time to accuracy in a report: when an arm reaches what, what is charged, the words, the page and the terminal."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.errors import CorruptError
from cluster.record import Unit
from cluster.self_digest import encode_json
from cluster.storage import Store
from tasks.report.inputs import ArmResult
from tasks.report.page import render_page
from tasks.report.results import build_results, results_bytes
from tasks.report.terminal import print_results
from tasks.report.time_to_accuracy import MANY, SHARES, Charge, reached, time_record
from tasks.report.time_to_accuracy_page import drawn_rows
from tests.tasks import report_case

POINTS = 5


def curved(store: Store, arm: ArmResult, shape: list[float], *, times: bool = True) -> ArmResult:
    """Return the arm with a curve in every training: its last accuracy times `shape`; a second for each hundred steps."""
    trains = []
    for seal in arm.trains:
        steps = [round(int(seal.meta["steps"]) * (number + 1) / len(shape)) for number in range(len(shape))]
        test = [float(seal.meta["accuracy"]) * share for share in shape]
        trains.append(replace(seal, meta={**seal.meta, "curve": {"steps": steps, "accuracy": test, "validation_accuracy": None}}))
        if times:
            body = {"key": seal.key, "steps": steps, "seconds": [step / 100 for step in steps]}
            name = f"{Unit(store, 'train', seal.key).folder}/times.json"
            store.create(name, encode_json(body, name))
    return replace(arm, trains=trains)


def case(folder: Path, **changes: Any) -> tuple[Store, list[ArmResult], dict[tuple[str, float], Charge]]:
    store = Store(str(folder))
    arms = [
        report_case.arm(store, "random", "random", 0.01, [80.0, 80.2]),
        report_case.arm(store, "el2n <b>", "topk", 0.01, [87.6, 88.0], score="el2n"),
        report_case.arm(store, "fresh", "rs2", 0.01, [85.0, 85.2]),
        report_case.arm(store, "full", "full", 0.01, [90.0, 90.0]),
    ]
    shapes = {"random": [0.5, 0.7, 0.9, 0.9, 1.0], "el2n <b>": [0.9, 1.0, 0.5, 0.99, 1.0], "fresh": [0.2, 0.95, 0.97, 1.0, 1.0],
              "full": [0.95, 0.97, 0.99, 1.0, 1.0]}  # fmt: skip
    charges = {("el2n <b>", 0.01): Charge(2700, 162_000, seconds=5.0, **changes)}
    return store, [curved(store, arm, shapes[arm.name]) for arm in arms], charges


def results_of(store: Store, arms: list[ArmResult], charges: dict[tuple[str, float], Charge]) -> dict[str, Any]:
    results = build_results("run-0", report_case.index_seal(), arms, 0.5, store)
    results["time_to_accuracy"] = time_record(arms, charges, store, POINTS)
    return results


def test_reached_is_the_first_place_of_a_stay() -> None:
    rng = random.Random(3)
    for _ in range(300):
        values = [rng.choice([1.0, 2.0, 3.0]) for _ in range(rng.randint(1, 6))]
        stays = [place for place in range(len(values)) if all(value >= 2.0 for value in values[place:])]
        assert reached(values, 2.0) == (stays[0] if stays else None)


def test_steps_and_seconds_with_costs_borne_by_one_and_shared_by_many(tmp_path: Path) -> None:
    store, arms, charges = case(tmp_path)
    (entry,) = time_record(arms, charges, store, POINTS)["keeps"]
    rows = {row["arm"]: row for row in entry["arms"]}
    assert entry["reference"] == {"arm": "full", "accuracy": 90.0}
    assert [one["share"] for one in entry["targets"]] == list(SHARES) and entry["targets"][0]["accuracy"] == pytest.approx(81.0)
    assert rows["full"]["accuracy"] == pytest.approx([85.5, 87.3, 89.1, 90.0, 90.0])
    # It is above the target early, falls below it, and stays from 240 of 300 steps on.
    top = rows["el2n <b>"]["reached"][0]
    assert (top["steps"], top["seconds"], top["replicates"], top["of"]) == (240, 2.4, 2, 2)
    assert (top["steps_one"], top["steps_many"]) == (2940, 240 + 2700 / MANY)
    assert (top["seconds_one"], top["seconds_many"]) == (pytest.approx(7.4), pytest.approx(2.4 + 5 / MANY))
    assert [one["steps"] for one in rows["random"]["reached"]] == [None] * 4
    assert rows["random"]["reached"][0]["seconds_one"] is None
    fresh = rows["fresh"]["reached"][0]
    assert (fresh["steps"], fresh["steps_one"], fresh["seconds_many"]) == (180, 180, pytest.approx(1.8))
    assert rows["fresh"]["reached"][1]["steps"] is None and rows["fresh"]["reached"][1]["replicates"] == 0
    assert entry["sentence"] == (
        "Keep 1 %: 95 % of the full data's accuracy, 85.50 % on test, is first reached for good by el2n <b> (240 steps); "
        "with costs borne by one training by el2n <b> (2,940 steps); with costs shared by 100 by el2n <b> (267 steps); "
        "random never reaches it; the full data reaches it after 60."
    )


def test_what_nobody_measured_is_a_dash_and_what_was_brought_is_said(tmp_path: Path) -> None:
    store, arms, _ = case(tmp_path)
    unmeasured = [replace(seal, key="0" * 63 + str(at)) for at, seal in enumerate(arms[1].trains)]
    arms[1] = replace(arms[1], name="again", trains=unmeasured)
    (entry,) = time_record(arms, {("again", 0.01): Charge(None, seconds=None)}, store, POINTS)["keeps"]
    row = next(row for row in entry["arms"] if row["arm"] == "again")
    assert row["seconds"] is None and row["reached"][0]["seconds"] is None and row["reached"][0]["steps_one"] == 240
    page = render_page(results_of(*case(tmp_path)) | {"time_to_accuracy": time_record(
        arms, {("again", 0.01): Charge(None, seconds=None)}, store, POINTS)})  # fmt: skip
    assert "scores were brought" in page and "<td>–</td>" in page


def test_without_the_full_data_there_is_nothing_to_reach(tmp_path: Path) -> None:
    store, arms, charges = case(tmp_path)
    (entry,) = time_record(arms[:3], charges, store, POINTS)["keeps"]
    assert entry["reference"] is None and entry["targets"] == [] and "no arm was trained on the full data" in entry["sentence"]
    results = results_of(store, arms[:3], charges)
    assert "Time to accuracy" in render_page(results) and "of the full data's accuracy:" not in render_page(results)


def test_grids_that_differ_are_refused(tmp_path: Path) -> None:
    store, arms, charges = case(tmp_path)
    first, second = arms[0].trains
    curve = {**second.meta["curve"], "steps": [1, 2, 3, 4, 300]}
    arms[0] = replace(arms[0], trains=[first, replace(second, meta={**second.meta, "curve": curve})])
    with pytest.raises(CorruptError, match="evaluated at different steps"):
        time_record(arms, charges, store, POINTS)


def test_page_and_terminal_show_it_and_say_what_is_charged(tmp_path: Path) -> None:
    store, arms, charges = case(tmp_path, search=9000)
    results = results_of(store, arms, charges)
    results_bytes(results)
    page = render_page(results, report_case.page_inputs(arms))
    assert page.count("One training bears the costs") == page.count("100 trainings share the costs") == 1
    assert "Scoring: 2,700 steps of proxies" in page and "162,000 examples" in page and "Search: the race" in page
    assert "<td>never</td>" in page and "<b></" not in page and "el2n &lt;b&gt;" in page
    assert "8.9 s for 75 selections" in page
    console = Console(record=True, width=100, file=(tmp_path / "out").open("w"))
    print_results(results, console)
    assert "Time to accuracy. Keep 1 %" in console.export_text()
    plain = {name: value for name, value in results.items() if name != "time_to_accuracy"}
    assert "Time to accuracy" not in render_page(plain)


def test_of_many_arms_the_best_are_drawn_and_the_others_counted() -> None:
    rows = [{"arm": f"a{at}", "random": False, "full": False, "accuracy": [float(at)]} for at in range(12)]
    rows += [{"arm": "random", "random": True, "full": False, "accuracy": [0.0]}]
    drawn, hidden = drawn_rows(rows)
    assert hidden == 4 and [name for name, *_ in drawn] == ["random", *(f"a{at}" for at in range(4, 12))]
    assert [colour for _, colour, _ in drawn] == ["random", *(f"c{at}" for at in range(8))]
