"""What a report says of bad rows and of examples without a score: counted, in one line each, and escaped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from cluster.record import Seal
from cluster.storage import Store
from tasks.report.inputs import ArmResult
from tasks.report.page import render_page
from tasks.report.results import build_results
from tasks.report.wording import causes_text
from tests.tasks.report_case import arm, index_seal, page_inputs

EVIL = "<script>alert(1)</script>"


def changed(seal: Seal, **facts: Any) -> Seal:
    return dataclasses.replace(seal, meta={**seal.meta, **facts})


def arms_with(store: Store, policy: str, missing: int) -> list[ArmResult]:
    """Return a random arm, and one whose selections met examples without a score."""
    n = 54000 - (missing if policy == "exclude" else 0)
    causes = {"non_finite_score": missing - 1, "scoring_failed": 1}
    facts = {"n": n, "n_missing": missing, "missing": policy, "missing_causes": causes}
    pruned = arm(store, "pruned", "exact", 0.1, [90.0, 90.5], alpha=0.5, score="el2n")
    assert pruned.selections is not None
    pruned = dataclasses.replace(pruned, selections=[changed(seal, **facts) for seal in pruned.selections])
    return [arm(store, "random", "random", 0.1, [89.0, 89.5]), pruned]


@pytest.mark.parametrize(("policy", "words"), [
    ("exclude", "12 examples have no score and are excluded: n and the weights are of the other 53,988"),
    ("explore", "12 of 54,000 examples have no score: never signal, they may be drawn by exploration"),
])  # fmt: skip
def test_examples_without_a_score_are_counted(tmp_path: Path, policy: str, words: str) -> None:
    arms = arms_with(Store(str(tmp_path)), policy, 12)
    results = build_results("run", index_seal(), arms, 0.5, Store(str(tmp_path)))
    said = [note for note in results["notes"] if note.startswith("Without a score")]
    assert len(said) == 1 and words in said[0] and "(11 non_finite_score, 1 scoring_failed)" in said[0]
    facts = results["arms"][1]["selection"]
    assert (facts["n_missing"], facts["missing"], facts["n"]) == (12, policy, 53988 if policy == "exclude" else 54000)
    assert facts["missing_causes"] == {"non_finite_score": 11, "scoring_failed": 1}
    assert words in render_page(results, page_inputs(arms)).replace("&#x27;", "'")


def test_bad_rows_are_counted_and_nothing_is_said_where_there_are_none(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    arms = [arm(store, "random", "random", 0.1, [89.0, 89.5])]
    clean = build_results("run", index_seal(), arms, 0.5, store)
    assert clean["dataset"]["quarantine"] == {"rows": 0, "causes": {}}
    assert not [note for note in clean["notes"] if "uarantine" in note or "score:" in note]
    fact = {"rows": 3, "causes": {"bad_label": 2, "undecodable": 1}, "parts": [{"name": "x"}]}
    results = build_results("run", changed(index_seal(), quarantine=fact), arms, 0.5, store)
    assert results["dataset"]["quarantine"] == {"rows": 3, "causes": {"bad_label": 2, "undecodable": 1}}
    assert [note for note in results["notes"] if "3 rows of the data left out as bad (2 bad_label, 1 undecodable)" in note]


def test_class_names_and_causes_cannot_write_markup(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    arms = arms_with(store, "exclude", 3)
    names = [f"{EVIL}{number}" for number in range(10)]
    fact = {"rows": 1, "causes": {EVIL: 1}, "parts": []}
    results = build_results("run", changed(index_seal(), class_names=names, quarantine=fact), arms, 0.5, store)
    assert "<script" not in render_page(results, page_inputs(arms))
    assert causes_text({"a": 1, "b": 1200}) == "1,200 b, 1 a"
