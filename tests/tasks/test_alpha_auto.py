"""Alpha auto from configuration to report: which columns are taken, what is refused, and what seals and files say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError
from cluster.record import Seal
from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.merge import MergeInputs, merge_stage
from tasks.pool import SerialPool
from tasks.report.inputs import ArmResult, PageInputs
from tasks.report.variance import variance_section
from tasks.schemas import TRAIN
from tasks.score import ScoreSpec, score_columns
from tasks.selecting import SelectInputs, SelectionUnit, selection_key, selection_stage
from tasks.selection import ArrayRows, SelectionSpec, calibrated_selection
from tasks.selection.cross_fitting import Fold, allocation_note, folds_of
from tasks.selection.stage import load_selection
from tasks.standalone import select_file
from tests.oracles import allocation as oracle
from tests.tasks.stage_case import DATA, indexed

SPEC = SelectionSpec(protocol="exact", keep=0.25, score="el2n", alpha="auto")
FIXED = SPEC.model_copy(update={"alpha": 0.5})
Case = tuple[Store, SelectInputs, dict[str, Any]]


def scores_of(ids: Any, seed: int) -> dict[str, Any]:
    """Return heavy-tailed norms by three proxies, and their mean, as float32."""
    generator = np.random.default_rng(seed)
    base = generator.standard_normal(len(ids))
    proxies = [np.exp(1.2 * base + 0.4 * generator.standard_normal(len(ids))) for _ in range(3)]
    columns = {f"el2n_s{number}": values.astype(np.float32) for number, values in enumerate(proxies)}
    mean = np.mean(list(columns.values()), axis=0, dtype=np.float64).astype(np.float32)
    return {"example_id": ids, "el2n": mean, **columns, "mine": -base.astype(np.float32)}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Return a store with an index and a score table of three proxies."""
    folder = tmp_path_factory.mktemp("auto")
    store, index = indexed(folder)
    scores = scores_of(Dataset(DATA, index, store).ids(TRAIN), seed=0)
    pq.write_table(pa.table(scores), folder / "scores.parquet")
    merge = merge_stage(MergeInputs(DATA, index, scores_uri=str(folder / "scores.parquet")), store, SerialPool())
    return store, SelectInputs(DATA, index, merge), scores


def select(case: Case, *chosen: tuple[SelectionSpec, int]) -> list[Seal]:
    """Return the seals of selections, each of a spec and a seed."""
    store, inputs, _ = case
    assert inputs.merge is not None
    units = [(selection_key(spec, seed, inputs.merge.key), SelectionUnit(spec, seed)) for spec, seed in chosen]
    return selection_stage(units, inputs, store, SerialPool())


def columns(*scores: str, proxies: int) -> list[str]:
    """Return the columns of a score table that may rank."""
    found = score_columns(ScoreSpec.model_validate({"scores": list(scores)}), proxies)
    return [name for name, end in found.items() if end is not None]


def test_each_proxy_measures_what_the_others_rank() -> None:
    found = folds_of("el2n", columns("el2n", proxies=3))
    assert found.cross_fitted
    assert found.folds == (
        Fold(("el2n_s1", "el2n_s2"), ("el2n_s0",)),
        Fold(("el2n_s0", "el2n_s2"), ("el2n_s1",)),
        Fold(("el2n_s0", "el2n_s1"), ("el2n_s2",)),
    )


def test_the_norm_is_the_best_of_the_table_at_the_checkpoint_that_ranks() -> None:
    table = columns("el2n", "grand_last@0.1", "grand_last", "margin@0.1", "random", proxies=2)
    assert [fold.norm for fold in folds_of("margin@0.1", table).folds] == [("grand_last@0.1_s0",), ("grand_last@0.1_s1",)]
    assert [fold.norm for fold in folds_of("el2n", table).folds] == [("grand_last_s0",), ("grand_last_s1",)]
    # One proxy's column ranks by itself; the score random by none.
    assert folds_of("el2n_s1", table).folds == (Fold(("el2n_s1",), ("grand_last_s0",)),)
    assert folds_of("random", table).cross_fitted


def test_one_proxy_is_not_cross_fitted() -> None:
    found = folds_of("margin", columns("margin", "el2n", proxies=1))
    assert (found.folds, found.cross_fitted) == ((Fold(("margin",), ("el2n_s0",)),), False)
    assert folds_of("mine", ["mine", "el2n"]).folds == (Fold(("mine",), ("el2n",)),)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"protocol": "approximate"}, "approximate is biased"),
        ({"protocol": "topk"}, "alpha auto: its alpha is always 1"),
        ({"classes": "balanced"}, "leave classes out"),
        ({"missing": "explore"}, "has no gradient norm"),
        ({"alpha": "automatic"}, "give a number in [0, 1], or auto"),
        ({"alpha": 1.5}, "give a number in [0, 1], or auto"),
    ],
)
def test_refuses_what_has_no_meaning(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        SelectionSpec(**{"protocol": "exact", "keep": 0.25, "score": "el2n", "alpha": "auto", **settings})
    assert said in str(error.value)


def test_is_found_from_a_score_table_only() -> None:
    with pytest.raises(InputError, match="found from a score table"):
        calibrated_selection(ArrayRows(np.arange(9), np.arange(9.0)), SPEC, seed=0)
    with pytest.raises(InputError, match="no gradient norm"):
        folds_of("margin", columns("margin", proxies=3))


def test_the_key_says_auto_and_the_seal_the_number(case: Case) -> None:
    store, inputs, scores = case
    assert inputs.merge is not None
    assert SPEC.effective()["alpha"] == "auto"
    first, second = select(case, (SPEC, 1), (SPEC, 2))
    found = first.meta["allocation"]
    folds = [
        (((scores[f"el2n_s{one}"].astype(float) + scores[f"el2n_s{two}"].astype(float)) / 2).tolist(),
         scores[f"el2n_s{own}"].tolist())
        for one, two, own in ((1, 2, 0), (0, 2, 1), (0, 1, 2))
    ]  # fmt: skip
    kept = first.meta["num_kept"]
    truth = oracle.variances(folds, kept, "high")
    best = truth.index(min(truth))
    assert 0 < best < kept - 1
    assert first.meta["num_signal"] == best and first.meta["alpha"] == best / kept == found["alpha"]
    assert found["ratio"] == pytest.approx(float(truth[best] / truth[0]), rel=1e-9)
    assert found["cross_fitted"] and found["norm_columns"] == [["el2n_s0"], ["el2n_s1"], ["el2n_s2"]]
    # A property of the table, not of a draw.
    assert second.meta["allocation"] == found and second.meta["variance_curve"] == first.meta["variance_curve"]
    curve = first.meta["variance_curve"]
    assert [ratio for _, ratio in curve] == pytest.approx([float(value / truth[0]) for value in truth], rel=1e-5)
    # The draw itself is that of the number.
    number = select(case, (SPEC.model_copy(update={"alpha": best / kept}), 1))[0]
    assert number.key != first.key
    table, same = load_selection(store, first), load_selection(store, number)
    assert table.equals(same)
    metadata = table.schema.metadata
    assert float(metadata[b"alpha"]) == best / kept and b"flat_within" in metadata[b"allocation"]
    assert b"allocation" not in same.schema.metadata


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    scores = scores_of(np.arange(600, dtype=np.int64), seed=4)
    pq.write_table(pa.table(scores), tmp_path / "own.parquet", row_group_size=70)
    settings: dict[str, Any] = {"score": "el2n_s0", "direction": "high", "keep": 0.2, "out": str(tmp_path / "out.parquet")}
    norms = {"el2n_s0": {}, "el2n_s1": {"moment": "el2n_s1"}}
    for norm, params in norms.items():
        got = select_file(str(tmp_path / "own.parquet"), alpha="auto", params=params, **settings)
        truth = oracle.variances([(scores["el2n_s0"].tolist(), scores[norm].tolist())], 120, "high")
        assert got["num_signal"] == truth.index(min(truth))
        assert (got["allocation"]["norm_columns"], got["allocation"]["cross_fitted"]) == ([[norm]], False)
        assert any("not cross-fitted" in note for note in got["notes"])
        with pq.ParquetFile(tmp_path / "out.parquet") as written:
            assert float(written.schema_arrow.metadata[b"alpha"]) == got["alpha"] == got["num_signal"] / 120
    for changed, said in (
        ({"score": "mine"}, "are negative"),
        ({"params": {"moment": "el2n_s7"}}, "no score column 'el2n_s7'"),
        ({"alpha": 0.5, "params": {"moment": "el2n_s1"}}, "only alpha auto reads it"),
        ({"by": "example_id"}, "leave `by` out"),
        ({"alpha": "most"}, "or auto"),
    ):
        with pytest.raises(InputError, match=said):
            select_file(str(tmp_path / "own.parquet"), **{"alpha": "auto", **settings, **changed})


def test_rows_without_a_score_are_left_out(tmp_path: Path) -> None:
    scores = scores_of(np.arange(600, dtype=np.int64), seed=4)
    gone = np.arange(600) % 5 == 2
    holes = {**scores, "el2n": np.where(gone, np.nan, scores["el2n"])}
    pq.write_table(pa.table(holes), tmp_path / "holes.parquet", row_group_size=70)
    pq.write_table(pa.table({name: values[~gone] for name, values in scores.items()}), tmp_path / "whole.parquet")
    settings: dict[str, Any] = {"score": "el2n", "direction": "high", "keep": 0.2, "out": str(tmp_path / "out.parquet")}
    found = [
        select_file(str(tmp_path / name), alpha="auto", params={"moment": "el2n_s1"}, missing="exclude", **settings)
        for name in ("holes.parquet", "whole.parquet")
    ]
    assert found[0]["allocation"] == found[1]["allocation"] and found[0]["n"] == 480
    with pytest.raises(InputError, match="NaN or null"):
        select_file(str(tmp_path / "holes.parquet"), alpha="auto", **settings)


def test_the_report_draws_the_curve_and_says_what_it_is(case: Case) -> None:
    seals = select(case, (SPEC, 1), (SPEC, 2))
    arm = ArmResult("exact <el2n>", "el2n", "exact", 0.25, seals[0].meta["alpha"], None, seals, ())
    found = seals[0].meta["allocation"]
    page = variance_section(PageInputs(arms=[arm]))
    for said in (
        "no verdict", "exact &lt;el2n&gt; at keep 25 %", f"Var(alpha*)/Var_random is {found['ratio']:.3g}", "mark-line role-mark",
        f"from alpha {found['flat'][0]:.3g} to {found['flat'][1]:.3g}", "cross-fitted", "design effect on class totals",
    ):  # fmt: skip
        assert said in page, said
    assert "not cross-fitted" not in page
    # Nothing of other runs stands in a report of this one.
    assert "MNIST" not in page and "points below random" not in page
    assert variance_section(PageInputs(arms=[replace(arm, selections=select(case, (FIXED, 1)))])) == ""


@pytest.mark.parametrize("ratio", [None, 1.0])
def test_where_there_is_nothing_to_choose(case: Case, ratio: float | None) -> None:
    seal = select(case, (SPEC, 1))[0]
    found = {**seal.meta["allocation"], "alpha": 0.0, "ratio": ratio, "flat": [0.0, 0.0], "cross_fitted": False}
    curve = [] if ratio is None else [[0.0, 1.0], [0.5, 1.9], [0.9, 9.0]]
    meta = {**seal.meta, "allocation": found, "variance_curve": curve, "num_signal": 0}
    page = variance_section(PageInputs(arms=[ArmResult("a", "el2n", "exact", 0.25, 0.0, None, [replace(seal, meta=meta)], ())]))
    assert ("<svg" in page) == (ratio is not None) and "the ratio is optimistic" in page
    assert ("nothing to choose" if ratio is None else "this is a random draw") in allocation_note(found)
