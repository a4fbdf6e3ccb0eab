"""What benchmarks print about their tables: nothing unjudged counts as shown, and numbers are those of their rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import policy_cells, scaling

REFUSED = "not judged (margin below two standard errors of the test set)"


def _row(cell: str, answer: str, regret: float, safe: bool | None) -> list[Any]:
    return [[cell, "0.1", "17", answer, "", "", "", ""], regret, safe]


def test_non_inferiority_of_a_cell_is_that_of_its_answer_and_keep() -> None:
    rows = [
        {"arm": "band", "keep": 0.1, "non_inferior": None, "non_inferiority_bound": 0.4},
        {"arm": "ccs", "keep": 0.1, "non_inferior": True, "non_inferiority_bound": -0.1},
        {"arm": "band", "keep": 0.3, "non_inferior": False, "non_inferiority_bound": -0.7},
    ]
    # A bound above the margin says nothing where the test set is too small for the margin.
    assert policy_cells.non_inferior("band", 0.1, rows) is None
    assert policy_cells.non_inferior("ccs", 0.1, rows) is True
    assert policy_cells.non_inferior("band", 0.3, rows) is False
    assert policy_cells.non_inferior("random", 0.3, rows) is True


def test_cells_without_shown_non_inferiority_are_named() -> None:
    safe = _row("mnist", "band", 0.5, True)
    found = policy_cells.summary([safe, _row("mnist1d", "random", 0.1, True)])
    assert "2 cells: 1 with a confirmed gain, 1 fell back to random; mean regret +0.30 points" in found
    assert found.endswith("non-inferior to random (margin 0.5 points) in every cell.")
    found = policy_cells.summary([safe, _row("digits_mlp", "ccs", 0.0, None), _row("digits_cnn", "ccs", 0.0, None)])
    assert found.endswith(f"(margin 0.5 points) in 1 of 3 cells; {REFUSED} at digits_mlp 0.1, digits_cnn 0.1.")
    found = policy_cells.summary([safe, _row("mnist1d", "ccs", 0.0, False)])
    assert found.endswith("(margin 0.5 points) in 1 of 2 cells; not shown at mnist1d 0.1.")


def test_the_envelope_states_how_many_examples_each_keep_has() -> None:
    rng = np.random.default_rng(0)
    errors = {(keep, "random"): rng.uniform(20, 60, (3, 5)) for keep in scaling.KEEPS}
    rows = scaling._envelopes([356, 1098, 3316], errors, "random")
    assert [both for both, _ in rows] == ["107 and 110", "329 and 332"]
