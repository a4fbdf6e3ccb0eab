"""Budgets of classes: equal or proportional, exact to the row, and the selections drawn with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import InputError
from flows.config import ArmSpec, SelectSpec
from tasks.hashing import hash64
from tasks.samplers.design import balanced, proportional
from tasks.selection import ArrayRows, SelectionSpec, calibrated_selection
from tasks.standalone import select_file
from tests.oracles import selection as oracle
from tests.oracles import slices
from tests.tasks.selection_case import columns, cut, random_rows, same, spec

SMALL = settings(max_examples=80, deadline=None)
SIZES = st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any)


def ranks(groups: int, seed: int) -> list[int]:
    """Return the hashes by which equal claims are told apart."""
    return hash64("tie", seed, np.arange(groups, dtype=np.int64)).tolist()  # type: ignore[no-any-return]


@SMALL
@given(SIZES, st.floats(0, 1), st.integers(0, 50))
def test_trap_08_balanced_budgets_are_those_of_handing_out_one_at_a_time(sizes: list[int], keep: float, seed: int) -> None:
    m = round(keep * sum(sizes))
    got = balanced(m, sizes, ranks(len(sizes), seed))
    assert got == slices.handed_out(m, sizes, seed)
    assert sum(got) == m
    assert all(budget <= size for budget, size in zip(got, sizes))
    full = [budget for budget, size in zip(got, sizes) if budget < size]
    assert not full or max(got) - min(full) <= 1


@SMALL
@given(SIZES, st.floats(0, 1), st.integers(0, 50))
def test_proportional_budgets_are_the_oracles(sizes: list[int], keep: float, seed: int) -> None:
    m = round(keep * sum(sizes))
    assert proportional(m, sizes, ranks(len(sizes), seed)) == slices.in_proportion(m, sizes, seed)


def test_a_budget_that_one_class_cannot_take_goes_to_those_with_room() -> None:
    assert balanced(30, [2, 100, 100], [0, 1, 2]) == [2, 14, 14]
    assert balanced(31, [2, 100, 100], [0, 2, 1]) == [2, 14, 15]
    assert balanced(202, [2, 100, 100], [0, 1, 2]) == [2, 100, 100]
    assert balanced(2, [5, 5, 5], [9, 3, 7]) == [0, 1, 1]
    assert balanced(3, [0, 1, 9], [0, 1, 2]) == [0, 1, 2]


def skewed(n: int, seed: int) -> ArrayRows:
    """Return rows of four classes, of which one has three members."""
    rows = random_rows(n, seed, 7)
    code = np.random.default_rng(seed).choice([0, 1, 3], n, p=[0.8, 0.15, 0.05])
    code[:3] = 2
    return ArrayRows(rows.example_id, rows.score, code, 4)


@pytest.mark.parametrize("classes", ["proportional", "balanced"])
@pytest.mark.parametrize("protocol", ["random", "topk", "exact", "approximate", "tempered"])
def test_each_class_is_selected_as_it_would_be_alone(protocol: str, classes: str) -> None:
    rows = skewed(400, 1)
    assert rows.score is not None and rows.code is not None
    gamma = {"gamma": 0.4} if protocol == "tempered" else {}
    chosen = spec(protocol, 0.25, 0.5, classes=classes, **gamma)
    table = calibrated_selection(rows, chosen, 6)
    sizes = np.bincount(rows.code, minlength=4).tolist()
    budgets = slices.class_budgets(classes, 100, sizes, 6)
    selected = set(table.table().column("example_id").to_pylist())
    share = chosen.signal_share
    assert share is not None
    for group, budget in enumerate(budgets):
        mine = rows.code == group
        ids, scores = rows.example_id[mine].tolist(), rows.score[mine].tolist()
        truth = oracle.select(
            ids, scores, "high", budget / len(ids), protocol="approximate", alpha=share, gamma=None, seed=6
        )
        assert len(truth) == budget
        assert selected & set(ids) == {row.example_id for row in truth}
    facts = table.facts
    assert (facts["classes"], facts["by"], facts["num_kept"]) == (classes, "class", 100)
    kept = np.add(facts["class_counts"]["signal"], facts["class_counts"]["exploration"])
    assert kept.tolist() == budgets
    if classes == "balanced":
        assert budgets[2] == 3 and max(budgets) - min(budgets[0], budgets[1]) <= 1
    if protocol in ("random", "exact"):
        got = table.table()
        assert (1 / got.column("inclusion_prob").to_numpy()).sum() == pytest.approx(400, rel=1e-9)
        assert facts["weight_sum"] == pytest.approx(100, rel=1e-12)
    assert same(columns(rows, chosen, 6), columns(cut(rows, 7, 3), chosen, 6, threads=3))


def test_a_budget_above_all_small_classes_keeps_them_whole() -> None:
    rows = skewed(400, 2)
    assert rows.code is not None
    sizes = np.bincount(rows.code, minlength=4)
    counts = calibrated_selection(rows, spec("random", 0.95, classes="balanced"), 1).facts["class_counts"]["exploration"]
    assert sum(counts) == 380
    assert counts[1:] == sizes[1:].tolist()


def test_exact_without_signal_draws_as_random_where_a_class_gets_nothing(tmp_path: Path) -> None:
    path, rng = tmp_path / "scores.parquet", np.random.default_rng(0)
    names = np.where(np.arange(4000) < 45, "rare", "common")
    pq.write_table(pa.table({"id": np.arange(4000), "s": rng.random(4000), "g": names}), path)

    def run(protocol: str, **more: Any) -> pa.Table:
        out = str(tmp_path / "out.parquet")
        select_file(str(path), score="s", direction="high", keep=0.01, protocol=protocol, by="g", out=out, **more)
        return pq.read_table(out).select(["example_id", "arm", "inclusion_prob", "weight"])

    plain = run("random")
    assert plain.num_rows == 40 and min(plain.column("example_id").to_pylist()) >= 45
    assert run("exact", alpha=0.0).equals(plain)
    with pytest.raises(InputError, match=r"0 kept of a group of 45: its budget rounds to nothing.* set alpha 0"):
        run("exact", alpha=0.5)


def test_what_needs_classes_says_so(tmp_path: Path) -> None:
    bare = random_rows(50, 0)
    with pytest.raises(InputError, match="classes: balanced needs the class of every row"):
        calibrated_selection(bare, spec("random", 0.5, classes="balanced"), 0)
    rows = random_rows(50, 0, classes=2)
    with pytest.raises(InputError, match="pps is not carried out in groups"):
        calibrated_selection(rows, SelectionSpec(protocol="pps", score="el2n", keep=0.5), 0, by="class")
    with pytest.raises(InputError, match=r"pps takes no classes.*use random, topk, exact"):
        SelectionSpec(protocol="pps", score="el2n", keep=0.5, classes="balanced")
    path = tmp_path / "scores.parquet"
    pq.write_table(pa.table({"id": np.arange(90), "s": np.random.default_rng(0).random(90), "c": ["x", "y", "y"] * 30}), path)

    def run(**more: Any) -> dict[str, Any]:
        chosen = {"keep": 0.4, "direction": "high", "score": "s", "out": str(tmp_path / "out.parquet"), **more}
        return select_file(str(path), **chosen)

    with pytest.raises(InputError, match="no column of classes is named; give it with by"):
        run(protocol="topk", params={"classes": "balanced"})
    summary = run(protocol="topk", params={"classes": "balanced"}, by="c")
    assert [(group["value"], group["kept"]) for group in summary["groups"]] == [("x", 18), ("y", 18)]
    assert (summary["by"], summary["classes"]) == ("c", "balanced")
    metadata = pq.read_schema(tmp_path / "out.parquet").metadata
    assert json.loads(metadata[b"classes"]) == "balanced" and json.loads(metadata[b"by"]) == "c"
    assert [group["kept"] for group in run(protocol="topk", by="c")["groups"]] == [12, 24]


def test_arms_of_a_run_have_class_budgets_in_their_names() -> None:
    arm = ArmSpec(protocol="exact", score="el2n", alpha=0.3, classes="balanced")
    assert arm.label == "exact el2n alpha=0.3 classes=balanced"
    assert arm.at(0.1).classes == "balanced"
    with pytest.raises(InputError, match="budgets of the classes: classes, proportional or balanced"):
        SelectSpec(keep=(0.1,), arms=({"protocol": "random"},))  # type: ignore[arg-type]
    rows = skewed(300, 3)
    plain, same_draw = spec("random", 0.2, classes="balanced"), spec("exact", 0.2, 0.0, classes="balanced")
    assert same(columns(rows, plain, 2), columns(rows, same_draw, 2))
