"""Figures of distribution shift against slow truths and against what theory says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from cluster.errors import CorruptError
from tasks.selection import SelectionSpec, calibrated_selection
from tasks.selection.rows import ArrayRows, RowSource
from tasks.shift.energy import BLOCK_ROWS, energy_coefficient, mean_between, mean_within
from tasks.shift.separation import FOLDS, folds_of, separation, weighted_area
from tasks.shift.total_variation import (
    bin_edges,
    closed_form,
    partition_variation,
    tally,
    total_variation,
    variations,
)
from tasks.shift.worker import empty_cells
from tests.oracles import shift as oracle
from tests.tasks.selection_case import SCORE, GeneratedRows, cut, random_rows, spec

N = 20_000


def _rows(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    return np.sqrt(ids % 9973).astype(np.float32)


class _Labelled(GeneratedRows):
    """Give generated rows with a class that has nothing to do with their score."""

    num_codes = 4

    def read(self, piece: int):  # type: ignore[no-untyped-def]
        for batch in super().read(piece):
            yield type(batch)(batch.example_id, batch.score, (batch.example_id * 7 // 11 % 4).astype(np.int32))


def _measured(rows: RowSource, chosen: SelectionSpec, seed: int = 1) -> dict[str, object]:
    table = calibrated_selection(rows, chosen, seed)
    out = table.table()
    weight = out.column("weight").to_numpy().astype(np.float64)
    signal = np.array(out.column("arm").to_pylist()) == "signal"
    counted = tally(rows, out.column("example_id").to_numpy(), bin_edges(rows, 20))
    return {
        "class": variations(counted.code, counted.full_class, weight),
        "score": variations(counted.bin, counted.full_bin, weight),
        "partition": partition_variation(table.facts, signal, weight),
        "closed": closed_form(table.facts),
    }


def test_total_variation_is_the_greatest_difference_of_any_set() -> None:
    rng = np.random.default_rng(0)
    for cells in (2, 3, 7):
        kept, full = rng.integers(0, cells, 30), rng.integers(0, cells, 90)
        weight = rng.random(30)
        got = variations(kept, np.bincount(full, minlength=cells), weight)
        assert got["weighted"] == pytest.approx(oracle.total_variation(kept.tolist(), weight.tolist(), full.tolist()))
        assert got["raw"] == pytest.approx(oracle.total_variation(kept.tolist(), [1.0] * 30, full.tolist()))
    assert total_variation([3, 0], [0, 5]) == 1.0


@pytest.mark.parametrize("many", [False, True])
def test_energy_is_that_of_every_pair_of_different_examples(many: bool) -> None:
    rng = np.random.default_rng(1)
    n = BLOCK_ROWS + 30 if many else 40
    full = rng.normal(size=(n, 3)).astype(np.float32)
    ids = np.arange(n, dtype=np.int64) * 3
    # A third of the kept are in the sample too.
    kept_id = np.sort(np.concatenate([ids[:5], np.arange(10, dtype=np.int64) * 3 + 1]))
    own = {int(i): row for i, row in zip(ids, full)}
    kept = np.array([own.get(int(i), rng.normal(size=3) + 0.5) for i in kept_id], dtype=np.float32)
    weight = rng.random(len(kept)) + 0.1
    within = mean_within(full, np.ones(n))
    got = energy_coefficient(mean_between(full, ids, kept, kept_id, weight), within, mean_within(kept, weight))
    want = oracle.energy(full.tolist(), ids.tolist(), kept.tolist(), kept_id.tolist(), weight.tolist())
    assert got == pytest.approx(want, abs=1e-9)
    if many:
        # For laws a mile apart it is near 1.
        far = mean_between(full, ids, kept + 1e3, kept_id, weight)
        assert 0.99 < (energy_coefficient(far, within, mean_within(kept, weight)) or 0.0) < 1.0


def test_energy_of_nothing_is_not_told() -> None:
    point = np.ones((5, 2), dtype=np.float32)
    ids = np.arange(5, dtype=np.int64)
    assert mean_within(point[:1], np.ones(1)) is None
    assert mean_between(point[:1], ids[:1], point[:1], ids[:1], np.ones(1)) is None
    between = mean_between(point, ids, point[:2], ids[:2] + 9, np.ones(2))
    assert energy_coefficient(between, mean_within(point, np.ones(5)), mean_within(point[:2], np.ones(2))) is None


def test_the_area_counts_pairs_by_weight() -> None:
    rng = np.random.default_rng(2)
    score = rng.integers(0, 6, 60).astype(np.float64)
    positive, weight = rng.random(60) < 0.4, rng.random(60)
    assert weighted_area(score, positive, weight) == pytest.approx(
        oracle.area(score.tolist(), positive.tolist(), weight.tolist())
    )
    # A weight of two is an example twice.
    twice = np.repeat(np.arange(60), np.where(positive, 2, 1))
    assert weighted_area(score, positive, np.where(positive, 2.0, 1.0)) == pytest.approx(
        weighted_area(score[twice], positive[twice], np.ones(len(twice)))
    )
    assert weighted_area(score, np.zeros(60, dtype=bool), weight) is None


def test_an_example_in_both_has_one_fold() -> None:
    kept = np.arange(0, 400, 2, dtype=np.int64)
    full = np.arange(0, 1000, dtype=np.int64)
    full_fold, kept_fold = folds_of(full, kept)
    assert np.array_equal(full_fold[kept], kept_fold)
    assert np.bincount(kept_fold).tolist() == [len(kept) // FOLDS] * FOLDS
    assert np.ptp(np.bincount(full_fold)) <= FOLDS


def test_a_classifier_tells_shifts_of_mean_and_of_spread_and_no_random_draw() -> None:
    rng = np.random.default_rng(3)
    full = rng.normal(size=(4000, 6)).astype(np.float32)
    ids = np.arange(4000, dtype=np.int64)
    drawn = np.sort(rng.choice(4000, 800, replace=False))
    none = separation(full, ids, full[drawn], ids[drawn], np.ones(800))
    assert none is not None and abs(none - 0.5) < 0.04
    others = np.arange(800, dtype=np.int64) + 10_000
    moved = separation(full, ids, full[drawn] + np.float32(1), others, np.ones(800))
    spread = separation(full, ids, full[drawn] * np.float32(3), others, np.ones(800))
    assert moved is not None and moved > 0.9 and spread is not None and spread > 0.9
    # What is kept too often on one side is set right by its weights.
    p = 1 / (1 + np.exp(-1.5 * full[:, 0]))
    picked = np.flatnonzero(rng.random(4000) < p / 2)
    raw = separation(full, ids, full[picked], ids[picked], np.ones(len(picked)))
    weighted = separation(full, ids, full[picked], ids[picked], 1 / p[picked].astype(np.float64))
    assert raw is not None and weighted is not None and raw > 0.6 and abs(weighted - 0.5) < 0.05
    assert separation(full, ids, full[:19], ids[:19], np.ones(19)) is None


def test_empty_cells_are_those_without_a_kept_example() -> None:
    rng = np.random.default_rng(4)
    full, kept = rng.integers(0, 30, 200), rng.integers(0, 40, 25)
    got = empty_cells(full, kept)
    number, mass = oracle.empty(full.tolist(), kept.tolist())
    assert (got["empty_cells"], got["cells"]) == (number, len(set(full.tolist())))
    assert got["empty_mass"] == pytest.approx(mass) and got["empty_share"] == pytest.approx(number / got["cells"])


def test_bins_have_equal_mass_and_ties_stay_together() -> None:
    rows = random_rows(10_000, 5)
    counted = tally(rows_with_code(rows), np.sort(rows.example_id)[:7], bin_edges(rows, 20))
    assert counted.full_bin[-1] == 0 and np.ptp(counted.full_bin[:-1]) <= 1
    few = random_rows(10_000, 6, distinct=4)
    assert len(bin_edges(few, 20)) == 3
    unscored = ArrayRows(few.example_id, np.full(10_000, np.nan, dtype=np.float32), np.zeros(10_000, dtype=np.int64), 1)
    counted = tally(unscored, np.sort(few.example_id)[:3], bin_edges(unscored, 20))
    assert counted.full_bin.tolist() == [0, 10_000] and counted.bin.tolist() == [1, 1, 1]


def rows_with_code(rows: ArrayRows) -> ArrayRows:
    return ArrayRows(rows.example_id, rows.score, np.zeros(rows.num_rows, dtype=np.int64), 1)


def test_no_figure_depends_on_shards_or_order() -> None:
    rows = random_rows(3000, 7, distinct=50, classes=5)
    kept = np.sort(rows.example_id)[::9]
    weight = np.random.default_rng(8).random(len(kept))
    whole = tally(rows, kept, bin_edges(rows, 20))
    for order in range(3):
        pieces = cut(rows, 7, order)
        assert np.array_equal(bin_edges(pieces, 20), bin_edges(rows, 20))
        counted = tally(pieces, kept, bin_edges(pieces, 20))
        for name in ("full_class", "full_bin", "code", "bin"):
            assert np.array_equal(getattr(counted, name), getattr(whole, name))
        assert variations(counted.bin, counted.full_bin, weight) == variations(whole.bin, whole.full_bin, weight)
    with pytest.raises(CorruptError, match="not in the score table"):
        tally(rows, np.sort(np.append(kept, kept[0] + 1)), bin_edges(rows, 20))


@pytest.mark.parametrize("keep", [0.01, 0.1, 0.3])
def test_on_signal_and_rest_the_measure_is_the_closed_form(keep: float) -> None:
    rows = _Labelled(N, _rows, 3000)
    m = round(keep * N)
    for alpha in (0.2, 0.5):
        approximate = _measured(rows, spec("approximate", keep, alpha))
        expected = alpha * (1 - keep)
        assert approximate["partition"] == pytest.approx({"raw": expected, "weighted": expected}, abs=1 / m)
        assert approximate["closed"] == pytest.approx(approximate["partition"])
        exact = _measured(rows, spec("exact", keep, alpha))
        assert exact["partition"] == pytest.approx({"raw": expected, "weighted": 0.0}, abs=1 / m)
        assert exact["closed"] == pytest.approx(exact["partition"], abs=1e-6)
        tempered = _measured(rows, spec("tempered", keep, alpha, gamma=0.5))
        assert tempered["closed"] == pytest.approx(tempered["partition"], abs=1e-6)
    topk = _measured(rows, spec("topk", keep))
    assert topk["partition"] == pytest.approx({"raw": 1 - keep, "weighted": 1 - keep}, abs=1 / m)
    assert topk["closed"] == pytest.approx(topk["partition"])
    # The score's bins are no finer than top and rest here: the whole of the others is missed.
    assert topk["score"]["raw"] == pytest.approx(1 - max(keep, 0.05), abs=2 / m + 1e-3)  # type: ignore[index]


def test_a_class_without_a_tie_to_the_score_hardly_moves() -> None:
    rows = _Labelled(N, _rows, 3000)
    m = 2000
    for chosen in (spec("random", 0.1), spec("topk", 0.1)):
        found = _measured(rows, chosen)
        # Four classes: the mean is 0.6 / sqrt(m), and four times that is beyond chance.
        assert found["class"]["raw"] < 2.4 / m**0.5  # type: ignore[index]
    assert _measured(rows, spec("random", 0.1))["score"]["raw"] < 8 / m**0.5  # type: ignore[index]


def test_weights_of_exact_bring_every_bin_home_on_average() -> None:
    rows = _Labelled(N, _rows, 3000)
    edges = bin_edges(rows, 10)
    mass = np.zeros(len(edges) + 2)
    draws = 40
    for seed in range(draws):
        out = calibrated_selection(rows, spec("exact", 0.05, 0.3), seed).table()
        counted = tally(rows, out.column("example_id").to_numpy(), edges)
        weight = out.column("weight").to_numpy().astype(np.float64)
        mass += np.bincount(counted.bin, weights=weight, minlength=len(mass)) / weight.sum() / draws
    one = variations(counted.bin, counted.full_bin, weight)
    averaged = total_variation(mass, counted.full_bin)
    assert averaged < 0.02 and averaged < one["weighted"] and one["raw"] > 0.2


def test_protocols_without_signal_have_no_such_partition() -> None:
    rows = _Labelled(N, _rows, 3000)
    pps = _measured(rows, SelectionSpec(protocol="pps", keep=0.1, score=SCORE))
    assert pps["partition"] is None and pps["closed"] == {"raw": None, "weighted": 0.0}
    ccs = _measured(rows, SelectionSpec(protocol="ccs", keep=0.1, score=SCORE, beta=0.1))
    assert ccs["partition"] is None and ccs["closed"] == {"raw": None, "weighted": None}
