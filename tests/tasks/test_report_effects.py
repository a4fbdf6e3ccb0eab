"""Design effects in the report: a figure for every protocol, and a reason wherever one is not known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from cluster.fingerprint import sha256
from cluster.record import Seal
from tasks.report.effects import effects_list, no_totals_reason, weight_caveat, weight_effect
from tasks.report.inputs import ArmResult, PageInputs
from tasks.report.sections import weight_section
from tasks.samplers.registry import PROTOCOLS
from tasks.selection import SelectionSpec, calibrated_selection
from tests.tasks.selection_case import random_rows

# What each protocol is given, and how the reason for its dash begins: none where it has a figure.
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "random": ({}, ""),
    "topk": ({}, ""),
    "exact": ({}, ""),
    "approximate": ({}, ""),
    "tempered": ({"gamma": 0.5}, ""),
    "rs2": ({}, ""),
    "rotate": ({}, ""),
    "raked": ({}, "the weights are calibrated"),
    "pps": ({}, "inclusion differs from row to row"),
    "ccs": ({"beta": 0.1, "strata": 5}, "the weights are 1"),
    "ccs ht": ({"beta": 0.1, "strata": 5, "weights": "ht"}, "the draw is by strata"),
    "band": ({"beta": 0.1, "width": 0.5}, "the weights are 1"),
    "random classes": ({"classes": "balanced"}, "each class has a budget"),
    "exact classes": ({"classes": "proportional"}, "each class has a budget"),
}


@pytest.fixture(scope="module")
def drawn() -> dict[str, tuple[Mapping[str, Any], np.ndarray[Any, Any]]]:
    """Give the facts and the weights of a selection by each protocol."""
    rows, out = random_rows(3000, 4, classes=3), {}
    for name, (given, _) in CASES.items():
        info = PROTOCOLS[name.split()[0]]
        alpha = 0.4 if "alpha" in info.params else None
        chosen = SelectionSpec(protocol=info.name, keep=0.2, alpha=alpha, score="el2n" if info.ranks else None, **given)
        table = calibrated_selection(rows, chosen, 5)
        out[name] = table.facts, table.table().column("weight").to_numpy().astype(np.float64)
    return out


@pytest.mark.parametrize("name", CASES)
def test_every_selection_has_a_design_effect_and_a_reason_for_a_dash(name: str, drawn: Any) -> None:
    facts, weight = drawn[name]
    assert weight_effect(facts) == pytest.approx(len(weight) * (weight**2).sum() / weight.sum() ** 2, rel=1e-6)
    reason, expected = no_totals_reason(facts), CASES[name][1]
    assert reason.startswith(expected) and (reason == "") == (facts["design_effect"] is not None) == (expected == "")
    even = bool(weight.max() - weight.min() < 1e-9)
    assert ("nothing of bias" in weight_caveat(facts)) == even
    assert even == (name in ("random", "topk", "approximate", "rs2", "ccs", "band"))


def test_nominal_inclusion_is_said_to_tell_nothing() -> None:
    facts = {"num_kept": 10, "ess": 10.0, "design_effect": None, "inclusion": "nominal", "estimator": "unweighted"}
    assert "no weight follows" in weight_caveat(facts) and "no error of a draw" in no_totals_reason(facts)
    one_class = {"num_kept": 10, "ess": 5.0, "design_effect": None, "estimator": "ht", "protocol": "exact"}
    assert weight_caveat(one_class) == "" and "one class, or all is kept" in no_totals_reason(one_class)
    assert effects_list([("exact", one_class | {"design_effect": 0.9})]) == ""


def test_the_table_of_weights_has_no_dash_without_its_reason(drawn: Any) -> None:
    arms = [
        ArmResult(f"{name} <b>", None, name, 0.2, None, None, [Seal("select", sha256(name.encode()), (), dict(facts))], ())
        for name, (facts, _) in drawn.items()
    ]
    page = weight_section(PageInputs(arms=arms))
    assert "design effect, weights" in page and "design effect, class totals" in page and "<b>" not in page
    rows = re.findall(r'<tr><th scope="row">(.*?) &lt;b&gt;</th>(.*?)</tr>', page)
    assert [name for name, _ in rows] == list(CASES)
    notes = re.findall(r"<li>(no design effect, class totals: .*?)</li>", page)
    for name, cells in rows:
        assert f"<td>{weight_effect(drawn[name][0]):.3f}</td>" in cells
        given = [note for note in notes if f"{name} &lt;b&gt;" in note]
        assert cells.count("<td>–</td>") == len(given) == (CASES[name][1] != "")
