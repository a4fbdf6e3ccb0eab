"""What a report says of costs and of the fewest replicates: what scoring took, whose time is not known, how many are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.storage import Store
from flows.config import load_config
from tasks.report.page import render_page
from tasks.report.policy import policy_sentence, time_text
from tasks.report.results import build_results
from tasks.report.scoring import Scoring, scoring_cell, scoring_note
from tasks.report.wording import GLOSSARY, adjustment_sentence, headline
from tests.tasks import report_case as case

ROOT = Path(__file__).parents[2]
BASE = [90.0, 90.4, 89.8, 90.1, 90.2, 89.9, 90.3, 90.0, 90.5, 89.7]
GAINS = [0.9, 1.1, 1.0, 0.8, 1.2, 1.0, 0.9, 1.1, 1.2, 0.8]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def build(store: Store, replicates: int, *places: tuple[str, float], **options: Any) -> dict[str, Any]:
    """Return the results of random and of these arms, which all gain about a point, at these keeps."""
    arms = [case.arm(store, "random", "random", keep, BASE[:replicates]) for keep in sorted({keep for _, keep in places})]
    for name, keep in places:
        values = [a + gain for a, gain in zip(BASE[:replicates], GAINS)]
        protocol = "full" if name == "full" else "topk"
        arms.append(case.arm(store, name, protocol, keep, values, score=None if name == "full" else "el2n"))
    return build_results("run", case.index_seal(), arms, 0.5, store, **options)


@pytest.mark.parametrize(
    ("replicates", "places", "least"),
    [
        (5, [("a", 0.1)], 5),
        (5, [("a", 0.1), ("full", 0.1)], 5),
        (5, [("a", 0.1), ("b", 0.1)], 10),
        (9, [("a", 0.1), ("a", 0.03)], 10),
        (10, [("a", 0.1), ("b", 0.1)], 10),
    ],
)
def test_a_verdict_takes_ten_replicates_wherever_several_comparisons_are_named(
    store: Store, replicates: int, places: list[tuple[str, float]], least: int
) -> None:
    results = build(store, replicates, *places)
    assert results["min_replicates"] == least
    enough = replicates >= least
    assert {row["verdict"] for row in results["comparisons"]} == {"better" if enough else "undecided"}
    rule = "a verdict takes at least 10 where several comparisons are named"
    for said in (results["headline"], *(entry["sentence"] for entry in results["keeps"])):
        assert (f"{rule}: set train.replicates to 10" in said) == (not enough), said
    assert all((rule in row["reason"]) == (not enough) for row in results["comparisons"])
    page = render_page(results)
    assert f"paired over at least {least} replicates (5 for one comparison named in advance, 10 where a run names several" in page


def test_shipped_configurations_that_name_several_comparisons_have_the_replicates_for_verdicts() -> None:
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        config = load_config(str(path))
        several = len(config.select.keep) * len(config.select.arms) > 1
        if config.policy is not None:
            assert config.policy.confirm >= 10
        elif several:
            assert config.train.replicates >= 10, path.name


def test_spreads_that_were_not_shown_to_differ_are_not_said_to() -> None:
    row = {"family": 3, "adjustment": "Holm", "spreads_p": 0.24}
    said = adjustment_sentence([row])
    assert "differ" not in said
    assert said.endswith("their spreads do not pass as equal, as Bartlett's p 0.24 is not above 0.25.")
    said = adjustment_sentence([row | {"adjustment": "Dunnett", "spreads_p": 0.61}])
    assert said.endswith("their spreads pass as equal, as Bartlett's p 0.61 is above 0.25.")
    assert "pass as equal" in GLOSSARY["Dunnett, Holm"]


@pytest.mark.parametrize(
    ("scoring", "clause", "note"),
    [
        (Scoring(3, 2700, 162_000, 6345, True, 99_000), "scoring cost 0.4 full trainings (2,700 steps)",
         "Scoring trained 3 proxies, 2,700 steps in all: 0.4 full trainings"),
        (Scoring(1, 20, 54_000, 6345, True, 99_000), "scoring cost 0.003 full trainings (20 steps)", "1 proxy, 20 steps in all"),
        (Scoring(3, 1020, 3000, 200, False, 99_000), "scoring cost as much as 5.1 trainings of 200 steps (1,020 steps)",
         "The trainings of all arms took 99,000 steps together"),
        (Scoring(0, None, 0, 200, False, 99_000), "what the scores cost is not known here, as you brought them",
         "what they cost is not known here"),
        (Scoring(0, 0, 0, 200, False, 99_000), "scoring took no training", "The scores need no proxy"),
    ],
)  # fmt: skip
def test_the_headline_says_what_scoring_cost(scoring: Scoring, clause: str, note: str) -> None:
    bare: dict[str, Any] = {"comparisons": [], "arms": []}
    results = bare | {"scoring": scoring.record()}
    together = "the trainings that are compared 99,000 steps together"
    assert headline(results) == f"{headline(bare).removesuffix('.')}; {clause}, {together}."
    assert note in scoring_note(results) and scoring_note(bare) == ""


def test_scoring_stands_in_results_headline_table_and_notes(store: Store) -> None:
    results = build(store, 2, ("a", 0.1), scoring=Scoring(3, 2700, 162_000, 6345, True, 99_000))
    assert results["scoring"]["steps"] == 2700 and results["scoring"]["trainings"] == pytest.approx(2700 / 6345)
    ending = "the trainings that are compared 99,000 steps together, every later training 10 % of the data."
    assert results["headline"].startswith("No verdict yet")
    assert results["headline"].endswith(f"full trainings (2,700 steps), {ending}")
    assert scoring_note(results) in results["notes"]
    page = render_page(results)
    assert results["headline"] in page and '<th scope="col">scoring steps</th>' in page
    assert scoring_cell(None) == "not known" and scoring_cell(2700) == "2,700"
    bare = build(store, 2, ("a", 0.1))
    assert "scoring" not in bare and "cost" not in bare["headline"]


WINNER = "band el2n beta=0.3 width=0.4"
UNCONFIRMED = f"random; {WINNER}, the best of 2 candidates on validation, was not confirmed to beat it:"


@pytest.mark.parametrize(
    ("answer", "confirmation", "found"),
    [
        (WINNER, {"mean_difference": 2.71, "ci95": [2.24, 3.18]},
         f"{WINNER} beats random by 2.7 points (95 % interval 2.2 to 3.2, 10 replicates, this test set)"),
        ("random", {"mean_difference": 0.44, "ci95": [-0.31, 1.19]},
         f"{UNCONFIRMED} +0.44 points (95 % interval -0.3 to 1.2, 10 replicates, this test set)"),
        ("random", {"mean_difference": -0.02, "ci95": [-0.04, 0.004]},
         f"{UNCONFIRMED} -0.02 points (95 % interval -0.04 to 0.004, 10 replicates, this test set)"),
        ("random", None, "random; none of 2 candidates ended the race above it on validation, so none was tested"),
    ],
)  # fmt: skip
def test_the_sentence_of_a_keep_says_the_answer_its_gain_interval_and_cost(
    answer: str, confirmation: dict[str, Any] | None, found: str
) -> None:
    costs: dict[str, Any] = {"full_trainings": 1.44, "scoring_steps": 100, "steps": 9_100}
    costs |= {"later_training_steps": 10, "full_training_steps": 1000}
    entry: dict[str, Any] = {
        "keep": 0.01, "answer": answer, "winner": WINNER, "candidates": {"a": {}, "b": {}}, "costs": costs,
        "confirmation": None if confirmation is None else confirmation | {"replicates": 10},
    }  # fmt: skip
    wall = {"seconds": 120.0, "attempts": 1, "trainings": 30, "not_known": 0}
    ending = "cost 1.4 full trainings (9,100 steps; 2 min), every later training 1 % of the data."
    assert policy_sentence(entry, wall, 1) == f"Keep 1 %: {found}; scoring and search {ending}"
    costs["scoring_steps"] = None
    assert policy_sentence(entry, wall, 1) == f"Keep 1 %: {found}; the search, without the scores you brought, {ending}"


@pytest.mark.parametrize(
    ("wall", "said"),
    [
        ((41.0, 0), "41 s for all keeps"),
        ((2.3, 40), "at least 2.3 s for all keeps, not known for 40 of 85 trainings, which were there already"),
        ((2.3, 1), "at least 2.3 s for all keeps, not known for 1 of 85 trainings, which was there already"),
        ((None, 85), "time not known, as all 85 trainings were there already"),
    ],
)
def test_time_that_is_not_known_is_no_small_number(wall: tuple[float | None, int], said: str) -> None:
    record = {"seconds": wall[0], "attempts": 1, "trainings": 85, "not_known": wall[1]}
    assert time_text(record, 2) == said and time_text(record, 1) == said.replace(" for all keeps", "")
    costs = {"full_trainings": 35.2, "scoring_steps": 100, "steps": 25_320}
    costs |= {"later_training_steps": 300, "full_training_steps": 720}
    entry: dict[str, Any] = {"confirmation": None, "candidates": {"a": {}}, "keep": 0.1, "costs": costs}
    assert f"scoring and search cost 35.2 full trainings (25,320 steps; {said}), every later" in policy_sentence(entry, record, 2)
    assert policy_sentence(entry, record, 2).endswith("every later training 10 % of the data and 42 % of the steps.")
