"""Examples without a score: what each policy makes of them, against a sort in plain Python, and in the weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError
from tasks.selection import ArrayRows, SelectionSpec, calibrated_selection
from tasks.selection.missing import Missing
from tasks.standalone import select_file
from tests.oracles import selection as oracle
from tests.tasks.selection_case import columns, cut, random_rows, same, spec

POLICIES = ("exclude", "explore")


def with_missing(rows: ArrayRows, gone: np.ndarray[Any, Any]) -> ArrayRows:
    """Return the rows with NaN in place of the scores that are gone."""
    assert rows.score is not None
    score = rows.score.copy()
    score[gone] = np.nan
    return ArrayRows(rows.example_id, score, rows.code, rows.num_codes)


def truth(rows: ArrayRows, chosen: SelectionSpec, seed: int) -> list[oracle.Row]:
    """Return the oracle's selection: excluded examples are not there; explored ones rank behind every other."""
    assert rows.score is not None
    ids, scores = rows.example_id.tolist(), rows.score.tolist()
    there = [not math.isnan(score) for score in scores]
    if chosen.missing == "exclude":
        ids, scores = ([value for value, stays in zip(values, there) if stays] for values in (ids, scores))
    last = -math.inf if chosen.kept_end == "high" else math.inf
    scores = [last if math.isnan(score) else score for score in scores]
    return oracle.select(
        ids, scores, chosen.kept_end or "high", chosen.keep, protocol=chosen.protocol, alpha=chosen.signal_share,
        gamma=chosen.gamma, seed=seed,
    )  # fmt: skip


def test_two_hundred_selections_are_the_oracles() -> None:
    generator = np.random.default_rng(11)
    for trial in range(240):
        n = int(generator.integers(40, 400))
        rows = random_rows(n, trial, distinct=int(generator.integers(2, 60)) if trial % 3 else None)
        gone = generator.random(n) < generator.choice([0.0, 0.01, 0.1, 0.4])
        gone[: n // 2] = False
        protocol = str(generator.choice(["exact", "approximate", "tempered", "random", "topk"]))
        keep = float(generator.uniform(0.05, 0.45))
        more: dict[str, Any] = {"gamma": float(generator.random())} if protocol == "tempered" else {}
        if protocol != "random":
            more["direction"] = str(generator.choice(["high", "low"]))
        chosen = spec(protocol, keep, float(generator.uniform(0.1, 0.9)), missing=POLICIES[trial % 2], **more)
        rows = with_missing(rows, gone)
        got = columns(cut(rows, 1 + trial % 5, trial), chosen, trial)
        expected = truth(rows, chosen, trial)
        assert got["example_id"].tolist() == [row.example_id for row in expected], (trial, chosen)
        arms = got["arm"].tolist()
        assert arms == [row.arm for row in expected]
        np.testing.assert_allclose(got["inclusion_prob"], [float(row.inclusion_prob) for row in expected], rtol=1e-12)
        np.testing.assert_allclose(got["weight"], [float(row.weight) for row in expected], rtol=1e-6)
        lost = set(rows.example_id[gone].tolist())
        assert not lost & {i for i, arm in zip(got["example_id"].tolist(), arms) if arm == "signal"}


def test_more_signal_than_scores_goes_to_exploration() -> None:
    rows = random_rows(100, 1)
    gone = np.zeros(100, dtype=bool)
    gone[:40] = True
    rows = with_missing(rows, gone)
    got = columns(rows, spec("approximate", 0.9, 0.9, missing="explore"), 0)
    assert (got["arm"] == "signal").sum() == 60 and len(got["arm"]) == 90
    whole = columns(rows, spec("exact", 1.0, 1.0, missing="explore"), 0)
    assert len(whole["arm"]) == 100 and np.allclose(whole["weight"], 1)
    with pytest.raises(InputError, match="protocol topk keeps 90 examples, and only 60 of 100 have a score"):
        columns(rows, spec("topk", 0.9, missing="explore"), 0)


def test_groups_have_budgets_of_their_own_population() -> None:
    rows = random_rows(300, 2, classes=3)
    assert rows.code is not None
    gone = (rows.code == 1) & (np.arange(300) % 2 == 0)
    rows = with_missing(rows, gone)
    for policy in POLICIES:
        chosen = spec("exact", 0.3, 0.6, missing=policy)
        facts = calibrated_selection(rows, chosen, 5, by="label").facts
        scored = np.bincount(rows.code[~gone], minlength=3)
        population = scored if policy == "exclude" else np.bincount(rows.code, minlength=3)
        assert facts["class_counts"]["full"] == population.tolist() and facts["n"] == population.sum()
        kept = np.add(facts["class_counts"]["signal"], facts["class_counts"]["exploration"])
        assert np.abs(kept - 0.3 * population).max() <= 1
        assert (np.array(facts["class_counts"]["signal"]) <= scored).all() and facts["n_missing"] == gone.sum()
        assert same(columns(rows, chosen, 5, by="label"), columns(cut(rows, 7, 3), chosen, 5, by="label"))


def test_weights_are_unbiased_for_the_population_that_is_stated() -> None:
    """Horvitz-Thompson over 400 draws: the mean of a total stays within four of its standard errors."""
    rows = random_rows(200, 9)
    gone = np.zeros(200, dtype=bool)
    gone[::5] = True
    rows = with_missing(rows, gone)
    value = np.where(gone, 50.0, 1.0) + np.arange(200) / 200
    of = dict(zip(rows.example_id.tolist(), value.tolist()))
    for policy in POLICIES:
        population = value.sum() if policy == "explore" else value[~gone].sum()
        n = 200 if policy == "explore" else 160
        totals = []
        for seed in range(400):
            got = columns(rows, spec("exact", 0.25, 0.5, missing=policy), seed)
            scale = n / len(got["weight"])
            totals.append(scale * sum(w * of[i] for i, w in zip(got["example_id"].tolist(), got["weight"].tolist())))
        error = np.std(totals) / math.sqrt(len(totals))
        assert abs(np.mean(totals) - population) < 4 * error + 1e-3


def test_without_missing_scores_the_policy_changes_nothing_but_its_name() -> None:
    rows = random_rows(500, 4)
    refused = columns(rows, spec("exact", 0.2, 0.5), 3)
    for policy in POLICIES:
        assert same(refused, columns(rows, spec("exact", 0.2, 0.5, missing=policy), 3))
    random = [SelectionSpec(protocol="random", keep=0.5, missing=policy).effective() for policy in ("refuse", *POLICIES)]
    assert random[0] == random[1] == random[2], "random reads no score: the policy is no part of its key"


def test_refused_and_miscounted_scores() -> None:
    gone = np.zeros(50, dtype=bool)
    gone[:3] = True
    rows = with_missing(random_rows(50, 0), gone)
    with pytest.raises(InputError, match="3 of 50 scores are NaN"):
        columns(rows, spec("exact", 0.5, 0.5), 0)
    with pytest.raises(Exception, match="3 rows without a score were read, 2 counted"):
        columns(rows, spec("exact", 0.5, 0.5, missing="explore"), 0, missing=Missing(2, np.zeros(0, dtype=np.int64)))
    with pytest.raises(InputError, match="none of 50 examples has a score"):
        columns(with_missing(rows, ~gone), spec("exact", 0.5, 0.5, missing="exclude"), 0)


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.int32()])
def test_null_and_nan_scores_of_a_file(tmp_path: Path, kind: pa.DataType) -> None:
    scores: list[Any] = list(range(100))
    scores[5] = scores[50] = None
    missing = 2
    if pa.types.is_floating(kind):
        scores[7], missing = float("nan"), 3
    path, out = tmp_path / "scores.parquet", tmp_path / "out.parquet"
    table = pa.table({"example_id": np.arange(100), "s": pa.array(scores, kind), "g": ["a", "b"] * 50})
    pq.write_table(table, path, row_group_size=30)

    def run(policy: str, **more: Any) -> dict[str, Any]:
        return select_file(
            str(path), score="s", direction="high", keep=0.4, alpha=0.5, out=str(out), missing=policy, **more
        )

    with pytest.raises(InputError, match=f"{missing} of 100 scores are NaN or null"):
        run("refuse")
    with pytest.raises(InputError, match="refuse, exclude or explore"):
        run("drop")
    assert not out.exists()
    for policy in POLICIES:
        for more in ({}, {"by": "g"}):
            summary = run(policy, **more)
            n = 100 if policy == "explore" else 100 - missing
            assert (summary["n"], summary["n_missing"], summary["missing"]) == (n, missing, policy)
            assert summary["num_kept"] == round(0.4 * n) and f"{missing} " in summary["notes"][0]
            written = pq.read_table(out)
            assert json.loads(written.schema.metadata[b"n_missing"]) == missing
            arms = dict(zip(written.column("example_id").to_pylist(), written.column("arm").to_pylist()))
            assert all(arms.get(i) in (None, "exploration") if policy == "explore" else i not in arms for i in (5, 50))
