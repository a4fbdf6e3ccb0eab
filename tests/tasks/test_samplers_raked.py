"""`raked`: the rows of `exact`, weights that meet every margin, and what it does where it cannot."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError
from tasks.merge import MergeInputs, merge_stage
from tasks.pool import SerialPool
from tasks.samplers import raked as sampler
from tasks.samplers.raked import Margins, calibrate, make_margins
from tasks.schemas import TRAIN
from tasks.selecting import SelectInputs, SelectionUnit, selection_key, selection_stage
from tasks.selection import ArrayRows, SelectionSpec, calibrated_selection
from tasks.selection.order import sortable_bits
from tasks.selection.stage import load_selection
from tasks.standalone import select_file
from tasks.tables import encode_table
from tests.oracles import raking as oracle
from tests.own_process import in_own_process
from tests.tasks.selection_case import GeneratedRows, columns, cut, random_rows, same, spec
from tests.tasks.stage_case import DATA, indexed

I64 = npt.NDArray[np.int64]


def raked(keep: float, alpha: float = 0.2, **settings: Any) -> SelectionSpec:
    """Return a spec of raked over el2n."""
    return SelectionSpec(protocol="raked", score="el2n", keep=keep, alpha=alpha, **settings)


def bins_of(rows: ArrayRows, facts: dict[str, Any]) -> I64:
    """Return the bin (N,) of each row by the edges of the record, from the kept end on."""
    assert rows.score is not None
    # Edges lie between values of float32.
    score = rows.score.astype(np.float64)
    bins = np.zeros(rows.num_rows, dtype=np.int64)
    for edge in facts["calibration"]["bin_edges"]:
        bins += score <= edge if facts["direction"] == "high" else score >= edge
    return bins


def margins_of(rows: ArrayRows, facts: dict[str, Any]) -> list[I64]:
    """Return the margin (N,) of each row in each family, where no classes are pooled."""
    bins, found = bins_of(rows, facts), facts["calibration"]
    code = np.zeros(rows.num_rows, dtype=np.int64) if rows.code is None else rows.code
    if found["bin_margins"] is None:
        return [code * (bins.max() + 1) + bins]
    return [code, bins]


def test_rows_are_those_of_exact_and_weights_those_of_proportional_fitting() -> None:
    generator = np.random.default_rng(0)
    seen = {"two": 0, "crossed": 0, "one": 0}
    for trial in range(40):
        n = int(generator.integers(600, 1500))
        # Ties in half of the tables.
        rows = random_rows(n, trial, int(generator.integers(2, 60)) if trial % 2 else None, classes=1 + trial % 4)
        keep, alpha = float(generator.choice([0.3, 0.5])), float(generator.choice([0.0, 0.2, 0.6]))
        more: dict[str, Any] = {"direction": ("high", "low")[trial % 3 > 0], "bound": 100.0}
        chosen = raked(keep, alpha, bins=int(generator.integers(1, 7)), margins=("separate", "crossed")[trial % 5 == 0], **more)
        source = cut(rows, 1 + trial % 5, trial)
        got, facts = columns(source, chosen, trial), calibrated_selection(rows, chosen, trial).facts
        plain = columns(rows, spec("exact", keep, alpha, direction=chosen.kept_end), trial)
        assert all(np.array_equal(got[name], plain[name]) for name in ("example_id", "arm", "inclusion_prob"))
        signal = got["arm"] == "signal"
        assert np.array_equal(got["weight"][signal], plain["weight"][signal])
        found = facts["calibration"]
        assert found["pooled_classes"] == found["joined_margins"] == 0
        place = {example: at for at, example in enumerate(rows.example_id.tolist())}
        at = np.array([place[example] for example in got["example_id"].tolist()])
        rest = np.setdiff1d(np.arange(n), at[signal])
        families = margins_of(rows, facts)
        crossed = found["bin_margins"] is None
        if crossed and found["num_margins"] < len(np.unique(families[0])):
            # Which bins were merged in which class is not in the record.
            continue
        totals = [dict(zip(*(part.tolist() for part in np.unique(one[rest], return_counts=True)))) for one in families]
        scale = len(rest) / int((~signal).sum())
        drawn = at[~signal]
        truth = oracle.fitted([scale] * len(drawn), [one[drawn].tolist() for one in families], totals)
        np.testing.assert_allclose(got["weight"][~signal], np.array(truth) * keep_share(got, n), rtol=1e-6)
        seen["crossed" if crossed else "two" if found["bin_margins"] > 1 and found["class_margins"] > 1 else "one"] += 1
    assert seen["two"] > 10 and seen["crossed"] > 2


def keep_share(got: dict[str, Any], n: int) -> float:
    """Return m/n, the constant of the design."""
    return len(got["example_id"]) / n


@pytest.mark.parametrize("kind", ["separate", "crossed"])
@pytest.mark.parametrize("direction", ["high", "low"])
def test_every_margin_is_met_in_the_column_that_is_written(kind: str, direction: str) -> None:
    rows = random_rows(6000, 1, 400, classes=5)
    table = calibrated_selection(rows, raked(0.2, margins=kind, direction=direction), 3)
    got, found = table.table(), table.facts["calibration"]
    weight = got.column("weight").to_numpy().astype(np.float64)
    order = np.argsort(rows.example_id)
    at = order[np.searchsorted(rows.example_id, got.column("example_id").to_numpy(), sorter=order)]
    families = margins_of(rows, table.facts)
    # In full: 5 classes, 10 bins, 960 explored rows; crossed, 48 margins of 20 rows are the most there is room for.
    assert found["num_margins"] == (14 if kind == "separate" else found["num_margins"]) <= 48
    if kind == "crossed":
        assert found["num_margins"] >= 25
        # Whatever was merged, classes are met.
        families = [np.asarray(rows.code)]
    for family in families:
        full = np.bincount(family)
        assert np.abs(np.bincount(family[at], weight) / table.num_rows * 6000 / full - 1).max() < 1e-6
    assert found["deviation"] < 1e-10 and found["deviation_float32"] < 1e-7
    assert weight.sum() == pytest.approx(1200, rel=1e-7) and table.facts["weight_sum"] == pytest.approx(1200, rel=1e-12)
    assert 0.25 <= found["factors"][0] < 1 < found["factors"][1] <= 4


def test_bounded_factors_are_those_of_the_program() -> None:
    generator = np.random.default_rng(2)
    bounded = 0
    for trial in range(20):
        bins, classes = 3 + trial % 3, 2 + trial % 4
        totals = generator.integers(30, 300, (bins, classes))
        drawn = generator.binomial(totals, 0.15 * generator.uniform(0.4, 1.6, (bins, classes))) + 1
        families = np.tile(np.arange(classes), bins), np.repeat(np.arange(bins), classes)
        bound = float(generator.choice([1.3, 1.5, 1.5, 4.0]))
        found = calibrate(Margins(families, 0), drawn.ravel(), totals.ravel(), bound)
        if found.margins.joined:
            continue
        base = drawn.ravel() * totals.sum() / drawn.sum()
        wanted = [np.bincount(family, totals.ravel()).astype(np.float64) for family in families]
        for family, total in zip(families, wanted):
            assert np.abs(np.bincount(family, base * found.factor) / total - 1).max() <= sampler.TOLERANCE
        truth = oracle.bounded(base, families, wanted, bound)
        np.testing.assert_allclose(found.factor, truth, atol=1e-5)
        assert found.steps < 40
        bounded += int(np.count_nonzero((found.factor == bound) | (found.factor == 1 / bound)))
    assert bounded > 5


def test_margins_expect_twenty_explored_rows_each() -> None:
    # 1000 rows, 100 explored: a margin takes 200. Classes of 150 and 60 are one, and so are bins of 100 each.
    totals = np.outer(np.full(10, 1), [79, 15, 6])
    margins = make_margins(totals, 100, "separate")
    assert margins.pooled == 2 and margins.sizes[0] == 2
    assert margins.families[0][:3].tolist() == [1, 0, 0]
    # 100 / 20 leaves room for 5 independent margins, so that of 5 bins that are large enough two are one.
    assert margins.families[1][::3].tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3] and margins.count == 5
    assert make_margins(np.array([[50], [300], [60], [250], [340]]), 100, "separate").families[1].tolist() == [0, 0, 1, 1, 2]
    generator = np.random.default_rng(3)
    for trial in range(100):
        shape = int(generator.integers(1, 12)), int(generator.integers(1, 9))
        totals = generator.integers(0, 200, shape) * (generator.random(shape) < 0.8) + (trial % 2)
        explored = int(generator.integers(1, totals.sum() + 2))
        if not totals.sum():
            continue
        for kind in ("separate", "crossed"):
            margins = make_margins(totals, explored, kind)
            for family in margins.families:
                counts = np.bincount(family, totals.ravel())
                assert len(counts) == 1 or counts.min() * explored >= 20 * totals.sum()
            assert margins.count <= max(1, explored // 20)


def test_margins_that_cannot_be_met_within_the_bound_are_joined_counted_and_said(tmp_path: Path) -> None:
    rows = random_rows(3000, 4, classes=4)
    wide = calibrated_selection(rows, raked(0.2), 5).facts["calibration"]
    table = calibrated_selection(rows, raked(0.2, bound=1.1), 5)
    found = table.facts["calibration"]
    assert wide["joined_margins"] == 0 and wide["rows_at_bounds"] == 0
    assert found["joined_margins"] > 0 and found["num_margins"] == wide["num_margins"] - found["joined_margins"]
    assert found["deviation"] < 1e-10
    assert found["factors"][0] >= 1 / 1.1 - 1e-12 and found["factors"][1] <= 1.1 + 1e-12
    # A class of which nothing was drawn.
    totals, drawn = np.array([[500, 40], [500, 40]]), np.array([[50, 0], [60, 0]])
    families = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    left = calibrate(Margins(families, 0), drawn.ravel(), totals.ravel(), 4.0)
    assert left.margins.joined == 1 and left.margins.sizes == [1, 2]
    # Each margin can be met, not all together: half of each is in a cell that would have to vanish.
    both = calibrate(Margins(families, 0), np.array([50, 1, 1, 50]), np.array([1, 50, 50, 1]), 2.0)
    assert both.margins.joined == 0 and both.factor.tolist() == pytest.approx([1, 1, 1, 1])
    torn = calibrate(Margins(families, 0), np.array([100, 1, 1, 100]), np.array([130, 70, 2, 98]), 1.5)
    assert torn.margins.joined > 0
    path = tmp_path / "scores.parquet"
    pq.write_table(pa.table({"id": rows.example_id, "s": rows.score, "label": rows.code}), path)
    summary = select_file(
        str(path), score="s", direction="high", keep=0.2, protocol="raked", alpha=0.2, params={"bound": "1.1"}, by="label",
        out=str(tmp_path / "out.parquet"), seed=5,
    )  # fmt: skip
    assert f"{found['joined_margins']} margins could not be met within the bound" in " ".join(summary["notes"])


def test_with_too_few_rows_the_weights_are_those_of_exact_and_that_is_said(tmp_path: Path) -> None:
    rows = random_rows(400, 6, classes=3)
    for keep, alpha in ((0.05, 0.2), (1.0, 0.0), (1.0, 0.3), (1.0, 1.0)):
        got = columns(rows, raked(keep, alpha), 1)
        assert same(got, columns(rows, spec("exact", keep, alpha), 1)), (keep, alpha)
    path = tmp_path / "scores.parquet"
    pq.write_table(pa.table({"id": rows.example_id, "s": rows.score}), path)
    summary = select_file(
        str(path), score="s", direction="high", keep=0.05, protocol="raked", alpha=0.2, out=str(tmp_path / "out.parquet")
    )
    assert summary["calibration"]["num_margins"] == 1
    assert any("nothing is calibrated" in note and "20 explored rows" in note for note in summary["notes"])


@pytest.mark.parametrize("classes", [0, 3])
def test_the_same_bytes_for_any_shards_threads_and_order(classes: int) -> None:
    rows = random_rows(4000, 7, 300, classes=classes)

    def written(source: Any, **more: Any) -> list[bytes]:
        return [encode_table(part, "key") for part in calibrated_selection(source, raked(0.3), 9, **more).tables(100)]

    expected = written(rows)
    for shards, seed, threads in ((7, 1, 1), (64, 2, 3), (64, 3, 2)):
        assert written(cut(rows, shards, seed), threads=threads) == expected
    assert rows.score is not None
    digits, counts = np.unique(sortable_bits(rows.score) >> np.uint64(48), return_counts=True)
    histogram = {str(digit): int(count) for digit, count in zip(digits, counts)}
    assert written(rows, histogram=histogram) == expected
    assert calibrated_selection(cut(rows, 5, 4), raked(0.3), 9).facts == calibrated_selection(rows, raked(0.3), 9).facts


def test_bins_hold_like_numbers_of_the_complement_and_equal_scores_are_together() -> None:
    rows = random_rows(20_000, 8)
    table = calibrated_selection(rows, raked(0.5, 0.4), 1)
    rest = ~np.isin(rows.example_id, table.signal_id)
    counts = np.bincount(bins_of(rows, table.facts)[rest])
    assert len(counts) == 10 and np.abs(counts - 1600).max() < 10
    few = calibrated_selection(random_rows(20_000, 8, 3), raked(0.5, 0.1), 1).facts["calibration"]
    # Three scores make three bins, the first of them cut by the signal.
    assert few["bin_margins"] == 3 and -0.5 > few["bin_edges"][0] >= -0.75 > few["bin_edges"][1] >= -1
    same_score = calibrated_selection(random_rows(2000, 8, 1), raked(0.5, 0.1), 1).facts["calibration"]
    assert same_score["num_margins"] == 1 and same_score["bin_edges"] == []


def test_trap_20_the_record_says_whose_weights_these_are() -> None:
    rows = random_rows(3000, 9, classes=4)
    table = calibrated_selection(rows, raked(0.2), 3)
    facts, got = table.facts, table.table()
    metadata = {name.decode(): json.loads(value) for name, value in got.schema.metadata.items()}
    assert (metadata["estimator"], metadata["population"], metadata["alpha"]) == ("raked", "all", 0.2)
    assert (metadata["bins"], metadata["margins"], metadata["bound"]) == (10, "separate", 4.0)
    assert metadata["calibration"] == facts["calibration"]
    weight = got.column("weight").to_numpy().astype(np.float64)
    assert facts["ess"] == pytest.approx(weight.sum() ** 2 / (weight**2).sum(), rel=1e-6)
    ordered = np.sort(weight)
    assert facts["weight_quantiles"]["min"] == pytest.approx(0.2, rel=1e-6)
    assert facts["weight_quantiles"]["median"] == pytest.approx(ordered[299], rel=1e-6)
    assert facts["weight_quantiles"]["max"] == pytest.approx(ordered[-1], rel=1e-6)
    assert (facts["num_signal"], facts["num_exploration"], facts["covered"], facts["uncovered_groups"]) == (120, 480, 3000, 0)
    counts = facts["class_counts"]
    assert counts["full"] == np.bincount(np.asarray(rows.code), minlength=4).tolist() and sum(counts["signal"]) == 120
    # Class totals are met, so that their design effect would say nothing.
    assert facts["design_effect"] is None
    exact = calibrated_selection(rows, spec("exact", 0.2, 0.2), 3)
    assert exact.facts["estimator"] == "ht" and "calibration" not in exact.facts and exact.facts["design_effect"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "raked"}, "raked needs alpha"),
        ({"protocol": "raked", "alpha": 1}, "raked with alpha 1: no exploration is left"),
        ({"protocol": "raked", "alpha": "auto"}, "raked is biased"),
        ({"protocol": "raked", "alpha": 0.2, "classes": "balanced"}, "raked takes no classes"),
        ({"protocol": "exact", "alpha": 0.2, "bins": 5}, "takes no bins .*use raked"),
        ({"protocol": "topk", "bound": 2.0}, "takes no bound .*use raked"),
        ({"protocol": "ccs", "beta": 0.1, "margins": "crossed"}, "takes no margins .*use raked"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SelectionSpec(score="el2n", keep=0.1, **settings)


def test_defaults_share_a_key_and_a_budget_without_exploration_is_refused() -> None:
    assert raked(0.1).effective() == raked(0.1, bins=10, margins="separate", bound=4.0).effective()
    others = [raked(0.1), raked(0.1, bins=5), raked(0.1, margins="crossed"), raked(0.1, bound=2.0), spec("exact", 0.1, 0.2)]
    assert len({json.dumps(one.effective(), sort_keys=True) for one in others}) == len(others)
    assert not {"bins", "margins", "bound"} & set(spec("exact", 0.1, 0.2).effective())
    with pytest.raises(InputError, match=r"raked: 2 kept, all of it signal.*lower alpha"):
        calibrated_selection(random_rows(20, 1), raked(0.1, 0.9), 0)


def test_examples_without_a_score_are_excluded_or_in_the_last_bin() -> None:
    rows = random_rows(2000, 10, classes=2)
    assert rows.score is not None
    rows.score[:300] = np.nan
    left = calibrated_selection(rows, raked(0.2, missing="exclude"), 0)
    assert left.facts["n"] == 1700 and left.facts["calibration"]["deviation"] < 1e-10
    got = calibrated_selection(rows, raked(0.2, missing="explore"), 0)
    assert got.facts["n"] == 2000 and got.facts["calibration"]["deviation"] < 1e-10
    table = got.table()
    weight = table.column("weight").to_numpy().astype(np.float64)
    unscored = np.isin(table.column("example_id").to_numpy(), rows.example_id[:300])
    # 300 of 1920 in the complement, a bin of their own where ten bins have 192 each, and one more with 84.
    assert 0.5 < weight[unscored].sum() / 400 * 2000 / 300 < 1.5
    with pytest.raises(InputError, match="300 of 2000 scores are NaN"):
        calibrated_selection(rows, raked(0.2), 0)


def test_a_run_selects_it_from_the_sealed_score_table(tmp_path: Path) -> None:
    from tasks.dataset import Dataset

    store, index = indexed(tmp_path)
    ids = Dataset(DATA, index, store).ids(TRAIN)
    scores = {"example_id": ids, "el2n": np.random.default_rng(0).random(len(ids))}
    pq.write_table(pa.table(scores), tmp_path / "scores.parquet")
    merge = merge_stage(MergeInputs(DATA, index, scores_uri=str(tmp_path / "scores.parquet")), store, SerialPool())
    chosen = [raked(0.5, 0.1, bins=3), SelectionSpec(protocol="exact", score="el2n", keep=0.5, alpha=0.1)]
    units = [(selection_key(one, 4, merge.key), SelectionUnit(one, 4)) for one in chosen]
    first, other = selection_stage(units, SelectInputs(DATA, index, merge), store, SerialPool())
    assert load_selection(store, first).column("example_id").equals(load_selection(store, other).column("example_id"))
    found, meta = first.meta["calibration"], first.meta
    # Ten digits of some 33 rows each: most are pooled, a margin takes 20 explored rows.
    assert 1 < found["num_margins"] <= meta["num_exploration"] / 20 and found["pooled_classes"] > 2
    assert found["deviation"] < 1e-10 and found["deviation_float32"] < 1e-6 and meta["estimator"] == "raked"


def traced_peaks() -> list[int]:
    """Return the peaks of a draw of 500 rows from two numbers of rows. Leaves tracing on: for a process of its own."""
    peaks = []
    tracemalloc.start()
    for n in (2**17, 2**19):
        rows = GeneratedRows(n, lambda ids: (ids % 9973 / 9973.0).astype(np.float32), 2**14)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        table = calibrated_selection(rows, raked(500 / n), 3)
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        assert table.num_rows == 500
    return peaks


def test_trap_13_memory_does_not_grow_with_the_rows() -> None:
    peaks = in_own_process(traced_peaks)
    assert peaks[1] < 1.3 * peaks[0] + 2**20


def test_the_variance_is_that_of_the_residuals_and_the_bias_is_small() -> None:
    # Thirty explored rows a margin; the full table of 10,000 draws is in benchmarks/samplers.md.
    generator = np.random.default_rng(12)
    n, draws = 1200, 1000
    score, code = generator.random(n) ** 2, generator.integers(0, 3, n)
    value = 1 + 2 * score + code / 2 + generator.random(n)
    rows = ArrayRows(np.arange(n, dtype=np.int64), score, code, 3)
    chosen = raked(0.175, 1 / 7, bins=4)
    means = np.empty(draws)
    for seed in range(draws):
        table = calibrated_selection(rows, chosen, seed)
        assert table.signal_group is not None and table.explore_group is not None
        total = (value[table.explore_id] * table.design.explore_weight[table.explore_group]).sum()
        total += (value[table.signal_id] * table.design.signal_weight[table.signal_group]).sum()
        means[seed] = total / table.num_rows
        found = table.facts["calibration"]
        assert found["num_margins"] == 6 and found["joined_margins"] == 0 and found["deviation_float32"] < 1e-6
    rest = np.setdiff1d(np.arange(n), table.signal_id)
    assert len(table.explore_id) == 180
    families = [family[rest] for family in margins_of(rows, table.facts)]
    formula = oracle.residual_variance(value[rest], families, 180, n)
    plain = oracle.residual_variance(value[rest], [np.zeros(len(rest), dtype=np.int64)], 180, n)
    assert means.var(ddof=1) == pytest.approx(formula, rel=0.15)
    # Margins explain most of this value, and what they do not explain is all that is left.
    assert formula < 0.3 * plain
    # Of order 1/m, not 0: well below one estimate's own spread.
    assert abs(means.mean() - value.mean()) < 0.15 * means.std()
