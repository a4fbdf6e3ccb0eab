"""Regression tests of the known traps of a selection, and of the hash that its chances rest on."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from cluster.errors import InputError
from tasks.hashing import hash64
from tasks.samplers.design import total_budget
from tasks.selection import calibrated_selection, streamed_drawing
from tasks.selection.rows import ArrayRows
from tasks.selection.table import SelectionTable
from tasks.tables import encode_table
from tests.oracles import selection as oracle
from tests.own_process import in_own_process
from tests.tasks.selection_case import GeneratedRows, columns, cut, random_rows, same, spec


def _bytes(table: SelectionTable) -> list[bytes]:
    return [encode_table(part, "key") for part in table.tables(100)]


@pytest.mark.parametrize("protocol", ["random", "topk", "exact", "approximate"])
def test_the_same_bytes_for_any_shards_in_any_order(protocol: str) -> None:
    rows = random_rows(2000, 0, 20, classes=3)
    chosen = spec(protocol, 0.3, 0.5)
    truth = _bytes(calibrated_selection(rows, chosen, 9))
    assert len(truth) == 6
    for shards in (1, 7, 64):
        for order in (1, 2):
            assert _bytes(calibrated_selection(cut(rows, shards, order), chosen, 9)) == truth
    assert _bytes(calibrated_selection(rows, chosen, 10)) != truth


def test_trap_01_scores_stay_with_their_ids() -> None:
    rows = random_rows(500, 1)
    assert rows.score is not None
    got = columns(rows, spec("topk", 0.1), 0)
    best = rows.example_id[np.argsort(-rows.score)[:50]]
    assert set(got["example_id"].tolist()) == set(best.tolist())
    assert (np.diff(got["example_id"]) > 0).all()


def test_trap_02_direction_low_keeps_the_smallest() -> None:
    rows = random_rows(500, 2)
    assert rows.score is not None
    got = columns(rows, spec("topk", 0.1, direction="low"), 0)
    assert set(got["example_id"].tolist()) == set(rows.example_id[np.argsort(rows.score)[:50]].tolist())


@pytest.mark.parametrize("by", [None, "class"])
def test_trap_09_budget_drift(by: str | None) -> None:
    rows = random_rows(1013, 3, classes=7)
    for keep in (0.0105, 0.1, 0.333, 0.5, 0.77, 1.0):
        for alpha in (0.0, 0.15, 0.5, 0.85):
            table = calibrated_selection(rows, spec("approximate", keep, alpha), 4, by=by)
            m = total_budget(keep, 1013)
            assert table.num_rows == table.table().num_rows == m
            assert table.facts["num_signal"] + table.facts["num_exploration"] == m
            if by is None:
                assert table.facts["num_signal"] == round(alpha * m)


def test_trap_08_every_group_has_its_proportional_budget() -> None:
    generator = np.random.default_rng(4)
    code = generator.choice(4, 1000, p=[0.6, 0.25, 0.1, 0.05])
    rows = ArrayRows(generator.permutation(1000), generator.random(1000), code, 4)
    table = calibrated_selection(rows, spec("exact", 0.2, 0.5), 4, by="class")
    counts = table.facts["class_counts"]
    sizes = np.bincount(code, minlength=4)
    assert counts["full"] == sizes.tolist()
    for group in range(4):
        kept = counts["signal"][group] + counts["exploration"][group]
        assert abs(kept - 0.2 * sizes[group]) < 1
        assert counts["signal"][group] == round(0.5 * kept)
    got = table.table()
    probability = got.column("inclusion_prob").to_numpy()
    group_of = dict(zip(rows.example_id.tolist(), code.tolist()))
    groups = np.array([group_of[example] for example in got.column("example_id").to_pylist()])
    for group in range(4):
        assert (1 / probability[groups == group]).sum() == pytest.approx(sizes[group], rel=1e-12)
    assert table.facts["weight_sum"] == pytest.approx(200, rel=1e-12)
    assert (1 / probability).sum() == pytest.approx(1000, rel=1e-9)


def test_groups_are_selected_as_each_would_be_alone() -> None:
    rows = random_rows(900, 5, 6, classes=3)
    assert rows.code is not None
    assert rows.score is not None
    together = columns(rows, spec("approximate", 1 / 3, 0.5), 6, by="class")
    sizes = np.bincount(rows.code, minlength=3)
    chosen = set(together["example_id"].tolist())
    for group in range(3):
        mine = rows.code == group
        ids, scores = rows.example_id[mine].tolist(), rows.score[mine].tolist()
        kept = len(chosen & set(ids))
        assert abs(kept - sizes[group] / 3) < 1
        share = kept / sizes[group]
        truth = oracle.select(ids, scores, "high", share, protocol="approximate", alpha=0.5, gamma=None, seed=6)
        assert chosen & set(ids) == {row.example_id for row in truth}


def traced_peaks() -> list[int]:
    """Return the peaks of a draw of 2,000 rows from two numbers of rows. Leaves tracing on: for a process of its own."""
    streamed_drawing.OPEN_ROWS = 2**13
    peaks = []
    tracemalloc.start()
    for n in (2**18, 2**20):
        rows = GeneratedRows(n, lambda ids: np.zeros(len(ids), dtype=np.float32), 2**16)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        table = calibrated_selection(rows, spec("approximate", 2000 / n, 0.5), 3)
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        assert table.num_rows == 2000
        ids = np.arange(n, dtype=np.int64)
        first = np.argsort(hash64("tie", 3, ids), kind="stable")[:1000]
        assert np.array_equal(table.signal_id, np.sort(first))
    return peaks


def test_trap_13_memory_does_not_grow_with_the_rows_even_if_all_tie() -> None:
    peaks = in_own_process(traced_peaks)
    assert peaks[1] < 1.2 * peaks[0]
    # Two arrays of n ids alone would be 16 MiB.
    assert peaks[1] < 12 * 2**20


@pytest.mark.parametrize("kind", [np.int32, np.float32, np.float64, np.uint64])
def test_trap_14_ids_that_are_not_int64_are_refused(kind: type) -> None:
    with pytest.raises(InputError, match="the rule is int64"):
        ArrayRows(np.arange(10).astype(kind), np.zeros(10))


def test_trap_14_ids_beyond_float_precision_survive() -> None:
    ids = np.array([2**53, 2**53 + 1, 2**62 + 1, 2**63 - 1, -(2**63), 2**24 + 1], dtype=np.int64)
    got = columns(ArrayRows(ids, np.zeros(6)), spec("topk", 1.0), 0)
    assert got["example_id"].tolist() == sorted(ids.tolist())


def test_trap_16_ties_are_resolved_at_random_and_not_by_file_order() -> None:
    n = 4000
    rows = ArrayRows(np.arange(n, dtype=np.int64), np.zeros(n))
    picks = [columns(rows, spec("topk", 0.25), seed) for seed in range(40)]
    backwards = ArrayRows(rows.example_id[::-1].copy(), np.zeros(n))
    assert same(picks[0], columns(backwards, spec("topk", 0.25), 0))
    firsts = np.array([np.mean(pick["example_id"] < n // 2) for pick in picks])
    # 1000 of 4000, half of which lie in the first half of the file: the share's standard error is 0.0137.
    assert abs(firsts.mean() - 0.5) < 4 * 0.0137 / np.sqrt(40)
    assert firsts.std(ddof=1) < 2 * 0.0137
    drawn = np.zeros(n)
    for pick in picks:
        drawn[pick["example_id"]] += 1
    assert drawn.max() < 40
    # Exploration among ties is not the continuation of the signal: one hash for both would make it that.
    both = columns(rows, spec("approximate", 0.25, 0.5), 0)
    explored = both["example_id"][both["arm"] == "exploration"]
    rest = np.setdiff1d(rows.example_id, both["example_id"][both["arm"] == "signal"])
    ranks = np.argsort(np.argsort(hash64("tie", 0, rest)))[np.isin(rest, explored)]
    assert abs(ranks.mean() / len(rest) - 0.5) < 4 * np.sqrt(1 / 12 / len(explored))


def test_trap_20_metadata_say_which_design_the_weights_are_of() -> None:
    rows = random_rows(300, 7)
    for protocol in ("random", "topk", "exact", "approximate"):
        table = calibrated_selection(rows, spec(protocol, 0.2, 0.5), 8, score_table_key="abc").table()
        metadata = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
        assert metadata["estimator"] == '"ht"'
        assert metadata["protocol"] == f'"{protocol}"'
        assert (metadata["n"], metadata["keep"], metadata["seed"]) == ("300", "0.2", "8")
        assert metadata["alpha"] == {"random": "0", "topk": "1"}.get(protocol, "0.5")
        assert metadata["score"] == ("null" if protocol == "random" else '"el2n"')
        assert metadata["direction"] == ("null" if protocol == "random" else '"high"')
        assert metadata["score_table_key"] == '"abc"'


def test_trap_12_no_global_random_state_is_touched() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    calibrated_selection(random_rows(300, 7), spec("exact", 0.2, 0.5), 8).table()
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]


def test_nan_scores_are_refused_with_their_count() -> None:
    rows = random_rows(500, 8)
    assert rows.score is not None
    rows.score[[3, 77, 400]] = np.nan
    for protocol in ("topk", "exact", "random"):
        for keep in (0.1, 1.0):
            with pytest.raises(InputError, match="3 of 500 scores are NaN"):
                calibrated_selection(cut(rows, 9, 0), spec(protocol, keep, 0.5), 0)


@pytest.mark.parametrize("protocol", ["topk", "random", "exact"])
def test_repeated_ids_are_an_error(protocol: str) -> None:
    ids = np.arange(100, dtype=np.int64)
    ids[60] = 7
    rows = ArrayRows(ids, np.linspace(0, 1, 100))
    with pytest.raises(InputError, match="ids are not unique: 7 occurs"):
        list(calibrated_selection(rows, spec(protocol, 1.0, 0.5), 0).tables())


def test_one_row_and_all_rows() -> None:
    one = ArrayRows(np.array([5], dtype=np.int64), np.array([0.5]))
    for protocol in ("random", "topk", "exact", "approximate"):
        got = columns(one, spec(protocol, 1.0, 0.5), 0)
        assert (got["example_id"].tolist(), got["inclusion_prob"].tolist(), got["weight"].tolist()) == ([5], [1], [1])
    rows = random_rows(50, 9, 1)
    for alpha in (0.0, 0.5, 1.0):
        got = columns(rows, spec("exact", 1.0, alpha), 0)
        assert (got["inclusion_prob"] == 1).all()
        assert (got["weight"] == 1).all()
        assert (got["arm"] == "signal").sum() == round(alpha * 50)


def test_rows_without_what_the_spec_needs_are_refused() -> None:
    bare = ArrayRows(np.arange(10, dtype=np.int64))
    with pytest.raises(InputError, match="no scores"):
        calibrated_selection(bare, spec("topk", 0.5), 0)
    with pytest.raises(InputError, match="no codes"):
        calibrated_selection(bare, spec("random", 0.5), 0, by="class")
    with pytest.raises(InputError, match="no rows"):
        calibrated_selection(ArrayRows(np.empty(0, dtype=np.int64)), spec("random", 0.5), 0)
    with pytest.raises(InputError, match="one row, one value"):
        ArrayRows(np.arange(3, dtype=np.int64), np.zeros(4))


def test_the_threshold_is_the_last_signals_score() -> None:
    rows = random_rows(1000, 10)
    assert rows.score is not None
    for direction, order in (("high", -1), ("low", 1)):
        facts = calibrated_selection(rows, spec("exact", 0.2, 0.5, direction=direction), 0).facts
        assert facts["threshold"] == float(np.sort(order * rows.score)[99] * order)
    assert calibrated_selection(rows, spec("random", 0.2), 0).facts["threshold"] is None


def test_the_hash_is_that_of_the_oracle() -> None:
    ids = np.array([0, 1, -1, 2**63 - 1, -(2**63), 123456789], dtype=np.int64)
    for domain, seed in (("tie", 0), ("explore", 2**40), ("start", -5)):
        assert hash64(domain, seed, ids).tolist() == [oracle.hash64(domain, seed, int(example)) for example in ids]


def test_hashes_are_independent_between_seeds_and_domains() -> None:
    n = 20000
    ids = np.arange(n, dtype=np.int64)
    keys = [(domain, seed) for domain in ("tie", "explore", "start", "split") for seed in (0, 1, 2)]
    hashed = [hash64(domain, seed, ids) for domain, seed in keys]
    uniform = [words.astype(np.float64) / 2.0**64 for words in hashed]
    bits = [((words[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).astype(np.float32) for words in hashed]
    for i, first in enumerate(uniform):
        # Kolmogorov: 1.95 / sqrt(n) is passed by chance once in 1000.
        steps = np.abs(np.sort(first) - (np.arange(n) + 0.5) / n).max()
        assert steps < 2.3 / np.sqrt(n)
        # Neighbouring ids are unrelated.
        assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 4.5 / np.sqrt(n)
        for j in range(i):
            assert abs(np.corrcoef(first, uniform[j])[0, 1]) < 4.5 / np.sqrt(n)
            # Neither a shift nor a relabelling: the same smallest thousand would be drawn from other ids.
            smallest, other = np.argsort(first)[:1000], np.argsort(uniform[j])[:1000]
            assert abs(len(np.intersect1d(smallest, other)) - 50) < 5 * np.sqrt(50)
            assert len(np.intersect1d(hashed[i], hashed[j])) == 0
            differences = np.diff(np.sort(smallest)), np.diff(np.sort(other))
            assert not np.array_equal(*differences)
            # Bit by bit, all 64 x 64 pairs.
            agreement = np.abs((bits[i] - 0.5).T @ (bits[j] - 0.5)) * 4 / np.sqrt(n)
            assert agreement.max() < 6
