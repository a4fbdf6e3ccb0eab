"""`pps` against exact fractions, its fixed size and its probabilities, and what it refuses."""

from __future__ import annotations

import json
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError
from tasks.samplers.pps import ONE, Sizes, TakeAll, exact_total, systematic
from tasks.selection import ArrayRows, SelectionSpec, calibrated_selection
from tasks.selection import systematic as drawing
from tasks.standalone import select_file
from tasks.tables import encode_table
from tests.oracles import systematic as oracle
from tests.own_process import in_own_process
from tests.tasks.selection_case import GeneratedRows, columns, cut, random_rows, same


def pps(keep: float, floor: float | None = None, **settings: Any) -> SelectionSpec:
    """Return a spec of pps over el2n."""
    return SelectionSpec(protocol="pps", score="el2n", keep=keep, floor=floor, **settings)


def sized(n: int, seed: int, distinct: int | None = None, power: int = 2, classes: int = 0) -> ArrayRows:
    """Return rows with skewed scores from 0 on."""
    rows = random_rows(n, seed, distinct, classes)
    assert rows.score is not None
    rows.score = (rows.score - rows.score.min()) ** power
    return rows


def test_every_column_is_the_oracles() -> None:
    generator = np.random.default_rng(1)
    certain = 0
    for trial in range(60):
        n = int(generator.integers(2, 120))
        rows = sized(n, trial, int(generator.integers(1, 30)) if trial % 2 else None, 1 + trial % 4)
        keep, floor = float(generator.choice([0.05, 0.3, 0.7, 1.0])), float(generator.choice([0.02, 0.1, 0.5, 1.0]))
        if round(keep * n) < 1:
            continue
        got = columns(cut(rows, 1 + trial % 5, trial), pps(keep, floor), trial)
        assert rows.score is not None
        expected = oracle.select(rows.example_id.tolist(), rows.score.tolist(), keep, floor=floor, seed=trial)
        assert got["example_id"].tolist() == [row.example_id for row in expected], trial
        assert got["arm"].tolist() == [row.arm for row in expected]
        # Sizes are whole numbers of 2^-40 of the greatest.
        np.testing.assert_allclose(got["inclusion_prob"], [float(row.inclusion_prob) for row in expected], rtol=1e-8)
        np.testing.assert_allclose(got["weight"], [float(row.weight) for row in expected], rtol=1e-6)
        assert len(expected) == round(keep * n)
        certain += sum(row.arm == "signal" for row in expected)
    assert certain > 50


def test_the_probabilities_add_up_to_exactly_m_and_the_size_is_fixed() -> None:
    rows = sized(50, 3, power=3)
    seen: dict[int, float] = {}
    for seed in range(250):
        table = calibrated_selection(rows, pps(0.3), seed)
        assert table.num_rows == 15 and table.facts["num_kept"] == 15
        assert table.explore_prob is not None
        seen.update(dict.fromkeys(table.signal_id.tolist(), 1.0))
        for example, chance in zip(table.explore_id.tolist(), table.explore_prob.tolist()):
            # To the unit of 2^-52 that evens the sum out, each has one probability whatever the seed.
            assert abs(seen.setdefault(example, chance) - chance) <= 2**-52
    assert len(seen) == 50
    assert sum(Fraction(chance) for chance in seen.values()) - 15 < Fraction(50, 2**52)
    floor = 0.1 * 15 / 50
    assert min(seen.values()) > floor * (1 - 1e-9)


def test_the_line_holds_exactly_as_many_points_as_it_is_long() -> None:
    generator = np.random.default_rng(4)
    for trial in range(200):
        n = int(generator.integers(1, 40))
        chance = generator.integers(1, ONE + 1, n)
        # The last one makes the sum whole.
        over = exact_total(chance) % ONE
        chance[-1] += ONE - over if chance[-1] + ONE - over <= ONE else -over
        if chance[-1] < 1:
            continue
        start = int(generator.integers(0, ONE)) if trial % 3 else (0, ONE - 1)[trial % 2]
        drawn = systematic(chance, start)
        points = Fraction(exact_total(chance), ONE)
        assert points.denominator == 1 and drawn.sum() == points
        # In two halves it is the same line.
        half = n // 2
        parts = systematic(chance[:half], start), systematic(chance[half:], start + exact_total(chance[:half]))
        assert np.array_equal(np.concatenate(parts), drawn)


def test_the_least_certain_size_is_that_of_taking_one_after_another() -> None:
    generator = np.random.default_rng(5)
    for trial in range(150):
        n = int(generator.integers(2, 60))
        sizes = np.floor(generator.pareto(0.3 + trial % 4, n) * 1000 % 2**40).astype(np.int64) + 1
        m = int(generator.integers(1, n))
        found = TakeAll(m, int(sizes.max()))
        while found.level < 4:
            found.narrow(np.sum([found.count(part) for part in np.array_split(sizes, 3)], axis=0))
        chances = oracle.probabilities(sizes.tolist(), m, 0.0)
        assert {int(size) for size, chance in zip(sizes, chances) if chance == 1} == set(sizes[sizes >= found.least].tolist())


@pytest.mark.parametrize("classes", [0, 3])
def test_the_same_bytes_for_any_shards_threads_order_and_ranges(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sized(2000, 6, 300, 3, classes=classes)

    def written(source: Any, **more: Any) -> list[bytes]:
        return [encode_table(part, "key") for part in calibrated_selection(source, pps(0.4), 9, **more).tables(100)]

    expected = written(rows)
    for shards, seed, threads in ((7, 1, 1), (64, 2, 3)):
        assert written(cut(rows, shards, seed), threads=threads) == expected
    facts = calibrated_selection(rows, pps(0.4), 9).facts
    monkeypatch.setattr(drawing, "_RANGE_ROWS", 130)
    assert written(cut(rows, 5, 3), threads=2) == expected
    again = calibrated_selection(cut(rows, 5, 3), pps(0.4), 9).facts
    assert again == facts
    if classes:
        counts = facts["class_counts"]
        assert rows.code is not None
        assert counts["full"] == np.bincount(rows.code, minlength=3).tolist()
        assert sum(counts["signal"]) == facts["num_signal"] > 0
        assert sum(counts["exploration"]) == facts["num_exploration"] > 0


def test_equal_scores_and_a_floor_of_one_are_a_uniform_draw() -> None:
    for rows, floor in ((sized(120, 7, 1), 0.5), (sized(120, 8), 1.0)):
        got = columns(rows, pps(0.25, floor), 2)
        assert len(got["weight"]) == 30 and set(got["arm"]) == {"exploration"}
        np.testing.assert_allclose(got["inclusion_prob"], 0.25, rtol=1e-12)
        np.testing.assert_allclose(got["weight"], 1.0, rtol=1e-6)
    whole = columns(sized(40, 9), pps(1.0), 0)
    assert set(whole["arm"]) == {"signal"} and set(whole["weight"]) == {1.0}
    assert same(whole, columns(sized(40, 9), pps(1.0), 5))


def test_facts_and_metadata_name_the_design() -> None:
    rows = sized(600, 10, power=4)
    table = calibrated_selection(rows, pps(0.5, 0.2), 3)
    facts, weights = table.facts, table.table().column("weight").to_numpy().astype(np.float64)
    assert (facts["estimator"], facts["population"], facts["floor"], facts["alpha"]) == ("ht", "all", 0.2, None)
    assert facts["weight_sum"] == pytest.approx(weights.sum(), rel=1e-6)
    assert facts["ess"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-6)
    ordered = np.sort(weights)
    assert facts["num_signal"] > 0
    assert facts["weight_quantiles"]["min"] == pytest.approx(0.5, rel=1e-6)
    assert facts["weight_quantiles"]["median"] == pytest.approx(ordered[149], rel=1e-6)
    assert facts["weight_quantiles"]["max"] == pytest.approx(ordered[-1], rel=1e-6)
    metadata = table.table().schema.metadata
    assert json.loads(metadata[b"floor"]) == 0.2 and json.loads(metadata[b"estimator"]) == "ht"


def test_scores_that_are_no_sizes_are_refused_with_their_count(tmp_path: Path) -> None:
    rows = sized(100, 11)
    assert rows.score is not None
    rows.score[:3], rows.score[5:7] = -1, np.inf
    with pytest.raises(InputError, match=r"3 of 100 scores are negative and 2 infinite.*monotone function"):
        calibrated_selection(rows, pps(0.2), 0)
    rows.score[:7] = 0
    # The least score is 0 already.
    with pytest.raises(InputError, match=r"8 of 100 scores are 0.*give a floor above 0"):
        calibrated_selection(rows, pps(0.2, 0.0), 0)
    assert calibrated_selection(rows, pps(0.2), 0).num_rows == 20
    rows.score[4] = np.nan
    with pytest.raises(InputError, match="1 of 100 scores are NaN"):
        calibrated_selection(rows, pps(0.2), 0)
    assert calibrated_selection(rows, pps(0.2, missing="exclude"), 0).facts["n"] == 99
    with pytest.raises(InputError, match=r"low end is kept.*decreasing function"):
        SelectionSpec(protocol="pps", score="aum", keep=0.1)
    with pytest.raises(InputError, match="set missing to exclude or refuse"):
        pps(0.1, missing="explore")
    path = tmp_path / "scores.parquet"
    pq.write_table(pa.table({"id": np.arange(400), "s": np.random.default_rng(0).random(400) ** 3}), path)
    out = str(tmp_path / "out.parquet")
    summary = select_file(
        str(path), score="s", direction="high", keep=0.1, protocol="pps", params={"floor": "0.3"}, out=out, seed=2
    )
    assert summary["floor"] == 0.3 and pq.read_table(out).num_rows == 40


def test_sizes_are_the_scores_to_the_unit() -> None:
    scores = np.array([0.0, 0.25, 1.0, 4.0], dtype=np.float32)
    assert Sizes(4.0, 0.0).of(scores).tolist() == [0, 2**36, 2**38, 2**40]
    raised = Sizes(4.0, 0.5).raise_by(exact_total(Sizes(4.0, 0.5).plain(scores)), 4)
    assert raised.of(scores).tolist() == [half + raised.raised for half in (0, 2**35, 2**37, 2**39)]
    assert raised.raised == -(-(2**40 + 2**38 + 2**36) // 8)
    assert exact_total(np.full(1000, 2**61, dtype=np.int64)) == 1000 * 2**61


def traced_peaks() -> list[int]:
    """Return the peaks of a draw of 500 rows from two numbers of rows. Leaves tracing on: for a process of its own."""
    drawing._RANGE_ROWS = 2**13
    peaks = []
    tracemalloc.start()
    for n in (2**17, 2**19):
        rows = GeneratedRows(n, lambda ids: (1 + ids % 7).astype(np.float32), 2**14)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        table = calibrated_selection(rows, pps(500 / n), 3)
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        assert table.num_rows == 500
    return peaks


def test_trap_13_memory_does_not_grow_with_the_rows() -> None:
    peaks = in_own_process(traced_peaks)
    assert peaks[1] < 1.3 * peaks[0]
    # One array of n ids alone would be 4 MiB.
    assert peaks[1] < 4 * 2**20
