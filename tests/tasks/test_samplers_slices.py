"""`ccs` and `band` against the slow oracle, and what they promise: budgets, populations, refusals."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cluster.errors import InputError
from flows.config import ArmSpec
from tasks.samplers.ccs import smallest_first, stratum_of
from tasks.selection import ArrayRows, SelectionSpec, calibrated_selection, cutting
from tasks.selection.order import sortable_bits
from tasks.tables import encode_table
from tests.oracles import selection as order
from tests.oracles import slices as oracle
from tests.tasks.selection_case import columns, cut, random_rows, same


def ccs(keep: float, beta: float, **settings: Any) -> SelectionSpec:
    """Return a spec of ccs over el2n."""
    return SelectionSpec(protocol="ccs", score="el2n", keep=keep, beta=beta, **settings)


def band(keep: float, beta: float, width: float, **settings: Any) -> SelectionSpec:
    """Return a spec of band over el2n."""
    return SelectionSpec(protocol="band", score="el2n", keep=keep, beta=beta, width=width, **settings)


def truth(rows: ArrayRows, chosen: SelectionSpec, seed: int) -> list[order.Row]:
    """Return the oracle's rows."""
    assert rows.score is not None and rows.code is not None
    params = chosen.params()
    return oracle.select(
        rows.example_id.tolist(), rows.score.tolist(), rows.code.tolist(), chosen.kept_end or "", chosen.keep,
        beta=params["beta"], width=params.get("width"), strata=params.get("strata", 1), classes=params["classes"],
        weighted=params.get("weights") == "ht", seed=seed,
    )  # fmt: skip


def test_every_column_is_the_oracles() -> None:
    generator = np.random.default_rng(0)
    for trial in range(120):
        n = int(generator.integers(30, 250))
        # Ties in half of the tables; a class of a few members in most.
        rows = random_rows(n, trial, int(generator.integers(1, 40)) if trial % 2 else None, classes=1 + trial % 5)
        beta, keep = float(generator.choice([0, 0.1, 0.3])), float(generator.uniform(0.05, 0.5))
        more: dict[str, Any] = {"classes": (None, "proportional", "balanced")[trial % 3]}
        more["direction"] = str(generator.choice(["high", "low"]))
        if trial % 4 < 2:
            weights = str(generator.choice(["unit", "ht"]))
            chosen = ccs(keep, beta, strata=int(generator.choice([1, 5, 50])), weights=weights, **more)
        else:
            chosen = band(keep, beta, min(1 - beta, keep * float(generator.uniform(1.05, 3))), **more)
        got, expected = columns(cut(rows, 1 + trial % 5, trial), chosen, trial), truth(rows, chosen, trial)
        assert got["example_id"].tolist() == [row.example_id for row in expected], (trial, chosen)
        assert set(got["arm"]) == {"exploration"}
        assert got["inclusion_prob"].tolist() == [float(row.inclusion_prob) for row in expected]
        np.testing.assert_allclose(got["weight"], [float(row.weight) for row in expected], rtol=1e-6)
        assert len(expected) == round(keep * n)


@pytest.mark.parametrize("chosen", [ccs(0.2, 0.1), ccs(0.3, 0.2, classes="balanced"), band(0.1, 0.1, 0.3)])
def test_the_same_bytes_for_any_shards_threads_and_order(chosen: SelectionSpec) -> None:
    rows = random_rows(2000, 0, 20, classes=3)

    def written(source: Any, **more: Any) -> list[bytes]:
        return [encode_table(part, "key") for part in calibrated_selection(source, chosen, 9, **more).tables(100)]

    expected = written(rows)
    for shards, seed, threads in ((7, 1, 1), (64, 2, 3), (64, 3, 2)):
        assert written(cut(rows, shards, seed), threads=threads) == expected
    assert rows.score is not None
    digits, counts = np.unique(sortable_bits(rows.score) >> np.uint64(48), return_counts=True)
    histogram = {str(digit): int(count) for digit, count in zip(digits, counts)}
    assert written(rows, histogram=histogram) == expected


def test_cuts_that_many_ties_cross_are_exact_to_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(3000, 5, 2, classes=2)
    chosen = band(0.1, 0.2, 0.25)
    expected = truth(rows, chosen, 3)
    for limit in (2**20, 200, 1):
        # Few rows may wait: the interval narrows by the tie's digits.
        monkeypatch.setattr(cutting, "OPEN_ROWS", limit)
        got = columns(cut(rows, 5, 1), chosen, 3)
        assert got["example_id"].tolist() == [row.example_id for row in expected]


def test_the_smallest_stratum_first() -> None:
    # 9 of 3 strata: 2 cannot take their 3, the others share the rest; then 3 and 4, the larger taking what is left.
    assert smallest_first(9, [2, 10, 40], [0, 1, 2]) == [2, 3, 4]
    assert smallest_first(52, [2, 10, 40], [0, 1, 2]) == [2, 10, 40]
    assert smallest_first(2, [5, 6, 7], [0, 1, 2]) == [0, 1, 1]
    assert smallest_first(4, [0, 6, 6], [0, 5, 3]) == [0, 2, 2]
    assert smallest_first(5, [6, 6], [5, 3]) == [3, 2]


def test_strata_are_closed_where_the_scores_end() -> None:
    scores = np.array([0.0, 0.0199, 0.02, 0.5, 0.99, 1.0])
    assert stratum_of(scores, 0.0, 1.0, 50).tolist() == [0, 0, 1, 25, 49, 49]
    assert stratum_of(np.array([3, 3], dtype=np.int32), 3.0, 3.0, 50).tolist() == [0, 0]
    huge = np.array([-1.7e308, 0.0, 1.7e308])
    assert stratum_of(huge, -1.7e308, 1.7e308, 10).tolist() == [0, 5, 9]


def test_trap_20_the_weights_of_ccs_speak_for_the_retained_alone() -> None:
    rows = random_rows(1000, 6, classes=4)
    table = calibrated_selection(rows, ccs(0.1, 0.3, weights="ht"), 1)
    metadata = {name.decode(): json.loads(value) for name, value in table.table().schema.metadata.items()}
    assert (metadata["population"], metadata["estimator"], metadata["beta"], metadata["strata"]) == ("retained", "ht", 0.3, 50)
    assert (table.facts["dropped"], table.facts["covered"], table.facts["uncovered_groups"]) == (300, 700, 0)
    got = columns(rows, ccs(0.1, 0.3, weights="ht"), 1)
    assert (1 / got["inclusion_prob"]).sum() == pytest.approx(700, rel=1e-12)
    assert got["weight"].sum() == pytest.approx(100, rel=1e-6)
    unit = calibrated_selection(rows, ccs(0.1, 0.3), 1)
    assert unit.facts["estimator"] == "unweighted" and unit.facts["alpha"] is None
    assert set(columns(rows, ccs(0.1, 0.3), 1)["weight"]) == {1.0}
    assert sum(unit.facts["class_counts"]["full"]) == 1000
    small = calibrated_selection(rows, ccs(0.02, 0.3, weights="ht"), 1).facts
    # 20 rows for 50 strata: what has no budget is not spoken for.
    assert small["uncovered_groups"] > 0 and small["covered"] < 700 and small["weight_sum"] == pytest.approx(20)


def test_scores_without_a_place_are_refused_or_left_out() -> None:
    rows = random_rows(200, 7, classes=2)
    assert rows.score is not None
    rows.score[3], rows.score[5] = np.inf, -np.inf
    with pytest.raises(InputError, match="2 of 200 scores are infinite"):
        calibrated_selection(rows, ccs(0.2, 0.1), 0)
    assert calibrated_selection(rows, band(0.2, 0.1, 0.4), 0).num_rows == 40
    rows.score[3], rows.score[5] = np.nan, 0.5
    with pytest.raises(InputError, match="1 of 200 scores are NaN"):
        calibrated_selection(rows, ccs(0.2, 0.1), 0)
    left = calibrated_selection(rows, ccs(0.2, 0.1, missing="exclude"), 0)
    assert (left.facts["n"], left.facts["n_missing"], left.num_rows) == (199, 1, 40)
    assert rows.example_id[3] not in left.explore_id
    with pytest.raises(InputError, match="set missing to exclude or refuse"):
        ccs(0.2, 0.1, missing="explore")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "ccs", "keep": 0.1}, "ccs needs beta"),
        ({"protocol": "band", "keep": 0.1, "beta": 0.1}, "band needs width"),
        ({"protocol": "ccs", "keep": 0.1, "beta": 0.1, "width": 0.2}, "takes no width .*use band"),
        ({"protocol": "exact", "alpha": 0.5, "keep": 0.1, "beta": 0.1}, "takes no beta .*use ccs, band"),
        ({"protocol": "band", "keep": 0.1, "beta": 0.1, "width": 0.2, "strata": 5}, "takes no strata .*use ccs"),
        ({"protocol": "topk", "keep": 0.1, "weights": "ht"}, "takes no weights .*use ccs"),
        ({"protocol": "ccs", "keep": 0.1, "beta": 0.1, "alpha": 0.5}, "takes no alpha .*exact, approximate, tempered"),
        ({"protocol": "ccs", "keep": 0.1, "beta": 0.1, "floor": 0.5}, "takes no floor .*use pps"),
        ({"protocol": "ccs", "keep": 0.8, "beta": 0.3}, "only 0.7 of them are left"),
        ({"protocol": "band", "keep": 0.3, "beta": 0.3, "width": 0.2}, "raise width"),
        ({"protocol": "band", "keep": 0.1, "beta": 0.6, "width": 0.5}, "a width of at most 0.4"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SelectionSpec(score="el2n", **settings)


def test_shares_that_add_up_are_no_more_than_the_whole() -> None:
    rows = random_rows(1000, 8, classes=2)
    for beta, keep in ((0.9, 0.1), (0.7, 0.3), (0.3, 0.7)):
        got = columns(rows, ccs(keep, beta), 0)
        assert len(got["example_id"]) == round(1000 * keep)
        assert (got["inclusion_prob"] == 1).all()
    with pytest.raises(InputError, match="band keeps 8 examples, and only 7 of 15 are left"):
        calibrated_selection(random_rows(15, 8), band(0.5, 0.0, 0.5 - 1e-10), 0)


def test_settings_that_change_nothing_share_a_key_and_arms_show_theirs() -> None:
    assert ccs(0.1, 0.1).effective() == ccs(0.1, 0.1, strata=50, weights="unit").effective()
    assert band(0.1, 0.1, 0.2).effective() == band(0.1, 0.1, 0.2, classes="balanced").effective()
    specs = [ccs(0.1, 0.1), ccs(0.1, 0.2), ccs(0.1, 0.1, strata=40), ccs(0.1, 0.1, weights="ht"), band(0.1, 0.1, 0.2)]
    assert len({json.dumps(one.effective(), sort_keys=True) for one in specs}) == len(specs)
    arm = ArmSpec(protocol="band", score="el2n", beta=0.1, width=0.2)
    assert arm.label == "band el2n beta=0.1 width=0.2" and arm.at(0.1) == band(0.1, 0.1, 0.2, missing="exclude")


def test_band_without_classes_draws_from_the_whole_band() -> None:
    rows = random_rows(300, 9)
    assert rows.score is not None
    table = calibrated_selection(rows, band(0.1, 0.1, 0.2), 4)
    members = rows.example_id[np.argsort(-rows.score)][30:90]
    assert set(table.explore_id.tolist()) <= set(members.tolist())
    assert (table.facts["classes"], table.facts["population"], table.facts["dropped"]) == (None, "band", 30)
    assert table.facts["drawn_from"] == 60
    assert same(columns(rows, band(0.1, 0.1, 0.2), 4), columns(cut(rows, 3, 2), band(0.1, 0.1, 0.2), 4))
