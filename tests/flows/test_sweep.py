"""Sweeps: what a grid comes to, what is refused, and that only new cells of a larger grid are computed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError
from cluster.storage import Store
from flows.config import ArmSpec, RunConfig, load_config, parse_config
from flows.grid import AXES, expand
from flows.plan import find_states, make_plan
from flows.runs import plan_of
from flows.sweep import REPLICATES, grid_of
from tasks.pool import SerialPool
from tasks.report.publish import read_results, report_name
from tasks.selection import SelectionSpec, calibrated_selection
from tests.flows.serial_run import run_serially
from tests.flows.test_cli import command
from tests.flows.verify_case import tree
from tests.tasks.selection_case import random_rows

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs/quickstart.yaml")
GRID = "sweep={score: [el2n, margin], protocol: [topk, exact], alpha: 0.2}"
SMALL = (
    "proxy.epochs=1", "proxy.seeds=1", "train.steps=3", "train.replicates=2", "score.scores=[el2n, margin]", "data.limit=300",
    "data.shard_rows=400", "select.arms=null", "select.keep=[0.1, 0.3]", "train.full=false",
)  # fmt: skip


def config(grid: str = GRID, *settings: str) -> RunConfig:
    return load_config(QUICKSTART, [*SMALL, grid, *settings])


def test_a_grid_is_every_combination_that_is_a_selection_of_its_own() -> None:
    grid = expand({"score": ["el2n", "margin"], "protocol": ["random", "topk", "exact"], "alpha": [0.2, 0.5]}, [0.1])
    assert grid.combinations == 12
    assert [ArmSpec(**arm).label for arm in grid.arms] == [
        "topk el2n", "exact el2n alpha=0.2", "exact el2n alpha=0.5",
        "topk margin", "exact margin alpha=0.2", "exact margin alpha=0.5",
    ]  # fmt: skip
    assert grid.collapsed == {"random is always there": 4, "topk takes no alpha": 2} and not grid.refused
    assert grid.sentence == (
        "12 combinations, 6 arms beside random; 6 collapsed: random is always there (4), topk takes no alpha (2)"
    )


def test_every_combination_is_an_arm_or_counted() -> None:
    axes: dict[str, Any] = {
        "score": ["el2n", "loss"], "protocol": ["topk", "exact", "approximate", "tempered"], "alpha": [0.5, "0.5", 0.1],
        "gamma": [0.25, 0.5, 0.75], "direction": [None, "high", "low"], "missing": ["exclude", "explore"],
    }  # fmt: skip
    grid = expand(axes, [0.1])
    counted = sum(grid.collapsed.values()) + sum(grid.refused.values())
    assert grid.combinations == 2 * 4 * 3 * 3 * 3 * 2 == len(grid.arms) + counted
    # Of two scores, two ends and two policies: one topk, two alphas of exact and approximate, six of tempered.
    assert len(grid.arms) == 2 * 2 * 2 * (1 + 2 + 2 + 6)
    labels = [ArmSpec(**arm).label for arm in grid.arms]
    assert len(set(labels)) == len(labels)


def test_an_arm_that_is_no_selection_at_some_keeps_is_made_at_the_others_and_named() -> None:
    axes = {"protocol": ["topk", "band"], "score": "el2n", "beta": [0.02, 0.1, 0.95], "width": [0.2, 0.04]}
    grid = expand(axes, [0.3, 0.03, 0.1])
    # A band holds at least what is kept, and no more than what is left below beta.
    assert [(ArmSpec(**arm).label, arm.get("keeps")) for arm in grid.arms] == [
        ("topk el2n", None),
        ("band el2n beta=0.02 width=0.2", [0.03, 0.1]), ("band el2n beta=0.02 width=0.04", [0.03]),
        ("band el2n beta=0.1 width=0.2", [0.03, 0.1]), ("band el2n beta=0.1 width=0.04", [0.03]),
        ("band el2n beta=0.95 width=0.04", [0.03]),
    ]  # fmt: skip
    assert grid.refused == {"band beta=0.95 width=0.2": 1} and sum(grid.collapsed.values()) == 5
    assert grid.combinations == len(grid.arms) + 6
    start = "5 arms of some keeps only: band el2n beta=0.02 width=0.2 (not at 30 %), band el2n beta=0.02 width=0.04 (not at "
    assert f"{start}30 % and 10 %)" in grid.sentence
    absent = grid.facts()["absent"]
    assert len(absent) == 2 * 1 + 3 * 2 and {(row["arm"], row["keep"]) for row in absent} >= {
        ("band el2n beta=0.02 width=0.2", 0.3), ("band el2n beta=0.02 width=0.04", 0.1),
    }  # fmt: skip
    assert all(f"keeps {row['keep']:g} of" in row["reason"] for row in absent)


def test_protocols_that_are_one_another_at_the_ends_are_one_arm() -> None:
    axes = {"protocol": ["topk", "exact", "approximate", "tempered"], "score": "el2n", "alpha": [0, 0.5, 1], "gamma": [0, 1]}
    grid = expand(axes, [0.1])
    assert [ArmSpec(**arm).label for arm in grid.arms] == [
        "topk el2n", "exact el2n alpha=0.5", "approximate el2n alpha=0.5",
    ]  # fmt: skip
    assert grid.combinations == 24 == len(grid.arms) + sum(grid.collapsed.values()) + sum(grid.refused.values())
    said = ("exact with alpha=0 is random", "approximate with alpha=1 is topk", "tempered with alpha=0 gamma=1 is random",
            "tempered with gamma=0 is approximate", "tempered with gamma=1 is exact")  # fmt: skip
    assert set(said) <= set(grid.collapsed)
    other_way = expand({"protocol": ["approximate", "topk"], "score": "el2n", "alpha": 1}, [0.1])
    assert other_way.collapsed == {"topk is approximate el2n alpha=1": 1}
    # What is called one arm is one selection, to the last bit of every weight.
    rows = random_rows(400, 0, 20)
    for one, other in (
        ({"protocol": "approximate", "alpha": 1.0}, {"protocol": "topk"}),
        ({"protocol": "tempered", "alpha": 1.0, "gamma": 0.5}, {"protocol": "topk"}),
        ({"protocol": "tempered", "alpha": 0.5, "gamma": 0.0}, {"protocol": "approximate", "alpha": 0.5}),
        ({"protocol": "tempered", "alpha": 0.5, "gamma": 1.0}, {"protocol": "exact", "alpha": 0.5}),
        *(({"protocol": name, "alpha": 0.0, "gamma": gamma}, {"protocol": "random", "score": None})
          for name, gamma in (("exact", None), ("approximate", None), ("tempered", 0.5))),
    ):  # fmt: skip
        tables = [
            pa.concat_tables(calibrated_selection(rows, SelectionSpec(**{"keep": 0.1, "score": "el2n", **arm}), 7).tables())
            for arm in (one, other)
        ]
        for name in ("example_id", "weight"):
            assert tables[0].column(name).equals(tables[1].column(name)), (one, other, name)


def test_the_order_of_keeps_changes_no_arm() -> None:
    axes = {"protocol": ["exact", "ccs", "band"], "score": "el2n", "alpha": 0.2, "beta": [0.1, 0.8], "width": 0.2}
    found = [expand(axes, keeps) for keeps in ([0.1, 0.3], [0.3, 0.1])]
    assert [ArmSpec(**arm).label for arm in found[0].arms] == [ArmSpec(**arm).label for arm in found[1].arms]
    assert [set(arm.get("keeps", [])) for arm in found[0].arms] == [set(arm.get("keeps", [])) for arm in found[1].arms]


def test_a_value_that_is_a_selection_at_no_keep_is_a_mistake() -> None:
    with pytest.raises(InputError, match="width"):
        expand({"protocol": ["topk", "band"], "score": "el2n", "beta": 0.1, "width": [0.4, 0.02]}, [0.1, 0.3])


def test_a_grid_takes_every_parameter_of_an_arm() -> None:
    assert set(AXES) == set(ArmSpec.model_fields) - {"name", "keeps"}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("{scroe: el2n}", "unknown key 'sweep.scroe'; did you mean 'score'"),
        ("{name: mine}", "unknown key 'sweep.name'"),
        ("{keep: [0.1, 0.2]}", "unknown key 'sweep.keep'; .* select.keep"),
        ("{protocol: topkk, score: el2n}", "topkk.*topk"),
        ("{protocol: topk, score: el2m}", "el2m.*direction"),
        ("{protocol: [topk, exact], score: el2n}", "exact needs alpha"),
        ("{protocol: topk, score: el2n, alpha: [0.2, 0.5]}", "sweep.alpha is taken by no protocol of the grid"),
        ("{protocol: exact, score: el2n, alpha: [0.2, 0.2]}", "sweep.alpha lists a value twice"),
        ("{protocol: exact, score: el2n, alpha: [0.2, 1.5]}", "1.5"),
        ("{protocol: exact, score: el2n, alpha: [0.2, 1]}", "exact with alpha 1"),
        ("{protocol: tempered, score: el2n, alpha: 0.2, gamma: [0.5, 7]}", "sweep.gamma holds '7"),
        ("{protocol: random}", "no arm beside random"),
        ("{protocol: topk, score: []}", "sweep.score is empty"),
        ("{protocol: topk, score: [[el2n]]}", "sweep.score holds"),
        ("{protocol: [null], score: el2n}", "sweep.protocol holds"),
        ("{protocol: exact, score: el2n, alpha: [.nan]}", "sweep.alpha"),
        ("{}", "it is a grid"),
        ("[topk]", "it is a grid"),
        ("topk", "it is a grid"),
    ],
)
def test_a_grid_that_makes_no_sense_gets_one_message(grid: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        config(f"sweep={grid}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_grid_has_bounds() -> None:
    with pytest.raises(InputError, match="at most"):
        expand({"protocol": ["exact"], "score": ["el2n"], "alpha": [i / 20_000 for i in range(20_000)]}, [0.1])


def test_a_grid_stands_in_place_of_arms() -> None:
    with pytest.raises(InputError, match=r"in place of select\.arms"):
        config(GRID, "select.arms=[{protocol: topk, score: el2n}]")
    # A recorded configuration has the arms that were made of its grid.
    first = config(GRID, "select.missing=explore")
    assert [arm.missing for arm in first.select.arms] == ["explore"] * 4
    assert parse_config(json.loads(json.dumps(first.model_dump(mode="json")))) == first
    assert parse_config(config("sweep=null", "select.arms=[{protocol: topk, score: el2n}]").model_dump()).sweep is None


def test_run_is_for_arms_and_sweep_for_grids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    sets = [word for text in (*SMALL, GRID) for word in ("--set", text)]
    for words, message in (
        (["run", QUICKSTART, *sets], "secateur sweep"),
        (["sweep", QUICKSTART], "no `sweep` section"),
        (["sweep", QUICKSTART, "--set", "sweep.scor=el2n"], "did you mean 'score'"),
    ):
        code, out, error = command(monkeypatch, capsys, *words, "--store", store)
        assert code == 2 and out == "" and message in error and error.count("\n") == 1
    code, out, error = command(monkeypatch, capsys, "plan", QUICKSTART, *sets, "--store", store)
    assert code == 0 and "train     20 of 20 to compute" in out
    assert "sweep: 4 combinations, 4 arms beside random; 2 keeps and 2 replicates of each" in error
    assert "below 10 replicates there is no verdict" in error
    assert not (tmp_path / "store").exists()


def test_the_shipped_sweep_is_valid() -> None:
    found = load_config(str(ROOT / "configs/sweep.yaml"))
    assert len(grid_of(found).arms) == 6 and found.train.replicates >= REPLICATES


def test_a_sweep_resumes_and_a_larger_grid_computes_its_new_cells_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "store"
    store = Store(str(folder))
    plan = make_plan(config())
    results = run_serially(plan, store, SerialPool())
    assert results["min_replicates"] == REPLICATES and results["sweep"]["arms"] == 4
    assert {row["verdict"] for row in results["comparisons"]} == {"undecided"}
    # One proxy of one epoch, where every training has three steps.
    cost = -(-results["dataset"]["n_train"] // 32)
    said = f"; scoring cost as much as {cost / 3:.1f} trainings of 3 steps ({cost} steps), the trainings that are compared "
    steps = 3 * len({seed.key for seed in plan.trainings})
    assert f"{said}{steps:,} steps together, every later training " in results["headline"]
    assert [arm["scoring_steps"] for arm in results["arms"]] == [0 if arm["score"] is None else cost for arm in results["arms"]]
    before = tree(folder)
    assert len({name.split("/")[1] for name in before if name.startswith("stages/score-")}) == 1

    check_table(plan.run_name, store, len(results["arms"]) * 2)
    assert plan_of(plan.run_name, store).keys() == plan.keys()

    sets = [word for text in (*SMALL, GRID) for word in ("--set", text)]
    code, out, error = command(monkeypatch, capsys, "sweep", QUICKSTART, *sets, "--store", str(folder), "--json")
    assert code == 0 and json.loads(out) == read_results(store, plan.run_name)
    assert "is finished" in error
    code, out, error = command(monkeypatch, capsys, "sweep", QUICKSTART, *sets, "--store", str(folder))
    assert code == 0 and out.rstrip().endswith(f"runs/{plan.run_name}/report/results.parquet")
    assert tree(folder) == before

    larger = make_plan(config(GRID.replace("alpha: 0.2", "alpha: [0.2, 0.5]"), "select.keep=[0.1, 0.2, 0.3]"))
    # Of keep 0.2 random and six arms, of the other two keeps the arms of the new alpha, of two scores; two replicates each.
    new = 2 * (7 + 2 * 2)
    left = {state.stage: state.left for state in find_states(larger, store) if state.left}
    assert left == {"select": new, "subset": new, "shift": new // 2, "train": new}
    run_serially(larger, store, SerialPool())
    after = tree(folder)
    assert {name: after[name] for name in before if name.startswith("stages/")} == {
        name: data for name, data in before.items() if name.startswith("stages/")
    }
    made = {name.split("/")[1] for name in set(after) - set(before) if name.startswith("stages/")}
    expected = ["select"] * new + ["shift"] * (new // 2) + ["subset"] * new + ["train"] * new
    assert sorted(stage.split("-")[0] for stage in made) == expected


def test_a_sweep_whose_arm_is_no_selection_at_one_keep_runs_without_that_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path / "store"))
    grid = "sweep={score: el2n, protocol: [topk, band], beta: 0.1, width: 0.2}"
    plan = make_plan(config(grid))
    results = run_serially(plan, store, SerialPool())
    assert [(arm["name"], arm["keep"]) for arm in results["arms"]] == [
        ("random", 0.1), ("topk el2n", 0.1), ("band el2n beta=0.1 width=0.2", 0.1), ("random", 0.3), ("topk el2n", 0.3),
    ]  # fmt: skip
    assert results["sweep"]["absent"][0]["keep"] == 0.3 and "only 0.2" in results["sweep"]["absent"][0]["reason"]
    assert "1 arm of some keeps only: band el2n beta=0.1 width=0.2 (not at 30 %)" in results["sweep"]["sentence"]
    page = store.read(report_name(plan.run_name, "index.html")).decode()
    assert "1 arm of some keeps only" in page
    # The same run, read again from what it recorded.
    assert plan_of(plan.run_name, store).keys() == plan.keys()
    assert parse_config(json.loads(json.dumps(plan.config.model_dump(mode="json")))) == plan.config
    sets = [word for text in (*SMALL, grid) for word in ("--set", text)]
    code, out, error = command(monkeypatch, capsys, "sweep", QUICKSTART, *sets, "--store", store.uri)
    assert code == 0 and "band el2n beta=0.1 width=0.2" in out and "1 arm of some keeps only" in error


def check_table(run: str, store: Store, rows: int) -> None:
    """Assert that the results as a table say what results.json says, and that page and figure are there."""
    table = pq.read_table(io.BytesIO(store.read(report_name(run, "results.parquet"))))
    assert table.num_rows == rows and table.schema.field("keep").type == pa.float64()
    results = read_results(store, run)
    assert results is not None
    for arm in results["arms"]:
        own = [row for row in table.to_pylist() if (row["arm"], row["keep"]) == (arm["name"], arm["keep"])]
        assert [row["replicate"] for row in own] == [0, 1]
        assert [row["accuracy"] for row in own] == pytest.approx(arm["accuracy"])
        assert [row["train_seed"] for row in own] == arm["seeds"]
        names = ("score", "protocol", "alpha", "n_kept", "steps", "batch_size", "epochs", "examples_touched", "scoring_steps")
        for name in names:
            assert [row[name] for row in own] == pytest.approx([arm[name]] * 2), name
        assert {row["direction"] for row in own} == {arm["selection"]["direction"]}
    assert store.read(report_name(run, "curves.svg")).startswith(b"<svg ")
    assert results["sweep"]["sentence"].encode() in store.read(report_name(run, "index.html"))
