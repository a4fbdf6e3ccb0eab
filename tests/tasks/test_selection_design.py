"""Selections against the slow oracle, and the promises of methods.md as properties."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import CorruptError, InputError
from tasks.hashing import hash64
from tasks.samplers.design import proportional, split_budget, total_budget
from tasks.selection import calibrated_selection, streamed_drawing, threshold
from tasks.selection.order import kept_first_counts, sortable_bits, value_of
from tasks.selection.rows import ArrayRows
from tests.oracles import selection as oracle
from tests.tasks.selection_case import columns, cut, random_rows, same, spec

SMALL = settings(max_examples=60, deadline=None)
PROTOCOLS = st.sampled_from(["random", "topk", "exact", "approximate", "tempered"])
SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.73, 0.9])


@st.composite
def cases(draw: st.DrawFn) -> tuple[ArrayRows, str, float, float, float | None, str, int]:
    n = draw(st.integers(1, 300))
    rows = random_rows(n, draw(st.integers(0, 2**32)), draw(st.sampled_from([None, 1, 2, 5])))
    protocol = draw(PROTOCOLS)
    keep = draw(st.sampled_from([1.0, 0.999, 0.5, 0.3, 0.1]))
    alpha = {"random": 0.0, "topk": 1.0}.get(protocol, draw(SHARES))
    gamma = draw(st.sampled_from([0.0, 0.3, 1.0])) if protocol == "tempered" else None
    return rows, protocol, keep, alpha, gamma, draw(st.sampled_from(["high", "low"])), draw(st.integers(0, 2**40))


@SMALL
@given(cases(), st.integers(1, 9), st.integers(0, 5))
def test_every_column_is_the_oracles(
    case: tuple[ArrayRows, str, float, float, float | None, str, int], shards: int, order: int
) -> None:
    rows, protocol, keep, alpha, gamma, direction, seed = case
    n, m = rows.num_rows, round(keep * rows.num_rows)
    chosen = spec(protocol, keep, alpha, gamma=gamma, direction=None if protocol == "random" else direction)
    if m == 0:
        with pytest.raises(InputError, match="nothing would be kept"):
            calibrated_selection(rows, chosen, seed)
        return
    if protocol == "exact" and m < n and round(alpha * m) == m:
        with pytest.raises(InputError, match="no exploration"):
            calibrated_selection(rows, chosen, seed)
        return
    got = columns(cut(rows, shards, order), chosen, seed)
    assert rows.score is not None
    truth = oracle.select(
        rows.example_id.tolist(),
        rows.score.tolist(),
        direction,
        keep,
        protocol=protocol,
        alpha=alpha,
        gamma=gamma,
        seed=seed,
    )
    assert got["example_id"].tolist() == [row.example_id for row in truth]
    assert got["arm"].tolist() == [row.arm for row in truth]
    assert got["inclusion_prob"].tolist() == [float(row.inclusion_prob) for row in truth]
    assert np.allclose(got["weight"], [float(row.weight) for row in truth], rtol=1e-7, atol=0)
    assert len(got["example_id"]) == m
    if protocol in ("exact", "random"):
        assert abs((1 / got["inclusion_prob"]).sum() / n - 1) < 1e-9
        assert abs(got["weight"].astype(np.float64).mean() - 1) < 1e-6


@SMALL
@given(cases(), st.sampled_from([1, 3, 40]))
def test_refining_by_many_passes_gives_what_one_sort_gives(
    case: tuple[ArrayRows, str, float, float, float | None, str, int], limit: int
) -> None:
    rows, _, keep, _, _, direction, seed = case
    m = max(1, round(keep * rows.num_rows))
    assert rows.score is not None
    bits = sortable_bits(rows.score)
    key = ~bits if direction == "high" else bits
    keyed = threshold.KeyedRows(key, rows.example_id)

    def tie(ids: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return np.array([oracle.hash64("tie", seed, example) for example in ids.tolist()], dtype=np.uint64)

    halves = [keyed.part(0, rows.num_rows // 2), keyed.part(rows.num_rows // 2, rows.num_rows)]
    bounds = threshold.find_bounds([m], [rows.num_rows], lambda count, _: map(count, halves), tie, limit)
    assert bounds.open_rows <= limit
    below, inside = bounds.classify(keyed, tie)
    below[inside] = bounds.settle(threshold.KeyedRows(key[inside], rows.example_id[inside]), tie)
    truth = oracle.rank(rows.example_id.tolist(), rows.score.tolist(), direction, seed)[:m]
    assert sorted(rows.example_id[below].tolist()) == sorted(truth)


@SMALL
@given(st.integers(0, 2**32), st.sampled_from([0.1, 0.37, 1.0]))
def test_exact_with_alpha_0_is_random_in_every_column(seed: int, keep: float) -> None:
    rows = random_rows(211, seed, 7)
    assert same(columns(rows, spec("exact", keep, 0.0), seed), columns(rows, spec("random", keep), seed))
    first = columns(rows, spec("random", keep), seed)
    assert set(first["arm"]) == {"exploration"}
    assert (first["weight"] == 1).all()


@pytest.mark.parametrize("protocol", ["approximate", "tempered"])
def test_alpha_1_is_topk(protocol: str) -> None:
    rows = random_rows(500, 1)
    gamma = {"gamma": 0.4} if protocol == "tempered" else {}
    assert same(columns(rows, spec(protocol, 0.2, 1.0, **gamma), 5), columns(rows, spec("topk", 0.2), 5))


def test_tempered_ends_are_approximate_and_exact() -> None:
    rows = random_rows(1000, 2)
    for gamma, other in ((0.0, "approximate"), (1.0, "exact")):
        tempered = columns(rows, spec("tempered", 0.13, 0.37, gamma=gamma), 5)
        assert same(tempered, columns(rows, spec(other, 0.13, 0.37), 5))


@SMALL
@given(st.integers(0, 2**32), SHARES, st.sampled_from([None, 4]))
def test_a_smaller_selection_lies_in_a_larger_one(seed: int, alpha: float, distinct: int | None) -> None:
    rows = random_rows(300, seed, distinct)
    inner: set[int] = set()
    inner_signal: set[int] = set()
    for keep in (0.05, 0.06, 0.11, 0.4, 0.41, 1.0):
        got = columns(rows, spec("approximate", keep, alpha), seed)
        outer = set(got["example_id"].tolist())
        signal = set(got["example_id"][got["arm"] == "signal"].tolist())
        assert len(outer) == round(keep * 300)
        assert inner <= outer
        assert inner_signal <= signal
        inner, inner_signal = outer, signal


def test_exact_is_unbiased_over_seeds() -> None:
    rows = random_rows(400, 3)
    assert rows.score is not None
    value = dict(zip(rows.example_id.tolist(), np.exp(3 * rows.score.astype(np.float64)).tolist()))
    truth = np.mean(list(value.values()))
    estimates = []
    for seed in range(400):
        got = columns(rows, spec("exact", 0.1, 0.5), seed)
        y = np.array([value[example] for example in got["example_id"].tolist()])
        estimates.append(float((y * got["weight"]).mean()))
    error = np.std(estimates, ddof=1) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - truth) < 4 * error


def test_every_member_of_the_complement_is_drawn_as_often_as_its_probability_says() -> None:
    rows = random_rows(60, 4, 3)
    drawn = dict.fromkeys(rows.example_id.tolist(), 0)
    for seed in range(1500):
        got = columns(rows, spec("random", 0.25), seed)
        for example in got["example_id"].tolist():
            drawn[example] += 1
    counts = np.array(list(drawn.values()))
    # Chi-square of 60 cells with negative correlation: mean (N-1) under the design.
    statistic = ((counts - 375) ** 2 / (1500 * 0.25 * 0.75)).sum() * 59 / 60
    assert 59 - 4 * np.sqrt(2 * 59) < statistic < 59 + 4 * np.sqrt(2 * 59)


def test_a_given_histogram_changes_nothing_and_a_wrong_one_is_found() -> None:
    rows = random_rows(5000, 5)
    assert rows.score is not None
    digits, counts = np.unique(sortable_bits(rows.score) >> np.uint64(48), return_counts=True)
    histogram = {str(digit): int(count) for digit, count in zip(digits, counts)}
    for direction in ("high", "low"):
        chosen = spec("exact", 0.1, 0.5, direction=direction)
        assert same(columns(rows, chosen, 1), columns(rows, chosen, 1, histogram=histogram))
        assert kept_first_counts(histogram, direction).sum() == 5000
    with pytest.raises(CorruptError, match="histogram"):
        calibrated_selection(rows, spec("topk", 0.1), 0, histogram={"3": 4999})
    with pytest.raises(CorruptError, match="histogram"):
        calibrated_selection(rows, spec("topk", 0.1), 0, histogram={"3": 5000})


def test_threads_change_nothing() -> None:
    rows = random_rows(3000, 6, 9, classes=4)
    for by in (None, "class"):
        one = columns(cut(rows, 40, 1), spec("exact", 0.2, 0.5), 1, by=by)
        assert same(one, columns(cut(rows, 7, 2), spec("exact", 0.2, 0.5), 1, by=by, threads=3))


def test_a_first_cut_that_is_too_small_is_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(20000, 7)
    usual = columns(rows, spec("exact", 0.1, 0.2), 1)
    tries = []
    drawn = streamed_drawing.StreamedDrawing._draw

    def counting(self: object, *arguments: object) -> object:
        tries.append(arguments)
        # From the second try on the margin is the one the first should have had.
        return drawn(self, arguments[0], 6.0 if len(tries) > 1 else -6.0)  # type: ignore[arg-type]

    monkeypatch.setattr(streamed_drawing.StreamedDrawing, "_draw", counting)
    assert same(columns(rows, spec("exact", 0.1, 0.2), 1), usual)
    assert len(tries) == 2


def test_a_first_cut_that_surely_takes_too_many_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(20000, 7)
    usual = columns(rows, spec("exact", 0.1, 0.2), 1)
    tries = []
    cuts = streamed_drawing.StreamedDrawing._cuts

    def counting(self: streamed_drawing.StreamedDrawing, sigmas: float) -> object:
        tries.append(sigmas)
        share = self.budget.exploration / self.budget.complement
        return streamed_drawing._Cuts(int(1.3 * share * 2.0**64), 2**64 - 1) if len(tries) == 1 else cuts(self, sigmas)

    monkeypatch.setattr(streamed_drawing.StreamedDrawing, "_cuts", counting)
    assert same(columns(rows, spec("exact", 0.1, 0.2), 1), usual)
    assert len(tries) == 2


def test_counts_of_pieces_with_other_codes_add_up_code_by_code() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        parts, truth = [], Counter[int]()
        for _ in range(3):
            codes = np.sort(generator.choice(50, 20, replace=False))
            counts = generator.integers(1, 100, 20)
            parts.append(threshold.Counted(codes, counts, int(codes[0]), int(codes[-1])))
            truth.update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))
        total = threshold.counted(parts)
        assert dict(zip(total.codes.tolist(), total.counts.tolist(), strict=True)) == truth
        assert (total.low_key, total.high_key) == (min(truth), max(truth))


@pytest.mark.parametrize("spread", [1, 2**8, 2**20, 2**40])
def test_keys_that_differ_in_their_last_bits_alone_are_told_apart(spread: int) -> None:
    # Levels of 16 bits: a key is one value only where all of its bits are.
    ids = np.random.default_rng(0).permutation(3000)
    key = np.uint64(2**61) + (ids * spread).astype(np.uint64)
    rows = threshold.KeyedRows(key, ids)

    def tie(ids: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return hash64("tie", 0, ids)

    bounds = threshold.find_bounds([700], [3000], lambda count, _: [count(rows)], tie, 10)
    below, inside = bounds.classify(rows, tie)
    below[inside] = bounds.settle(threshold.KeyedRows(key[inside], ids[inside]), tie)
    assert sorted(ids[below].tolist()) == list(range(700))


def test_words_keep_the_order_of_numbers_and_come_back() -> None:
    values = np.array([-np.inf, -3.5, -1e-300, -0.0, 0.0, 5e-324, 2.0, np.inf])
    words = sortable_bits(values)
    assert (np.diff(words.astype(object)) >= 0).all()
    assert words[3] == words[4]
    assert [value_of(int(word)) for word in words] == values.tolist()
    assert (sortable_bits(np.array([3, -2, 7])) == sortable_bits(np.array([3.0, -2.0, 7.0]))).all()
    with pytest.raises(InputError, match=r"integers beyond 2\^53, \d+ for example"):
        sortable_bits(np.array([2**60, 1, -(2**60)]))


@SMALL
@given(st.integers(1, 10**6), st.floats(0.001, 1), st.floats(0, 1))
def test_budgets_add_up(n: int, keep: float, alpha: float) -> None:
    if round(keep * n) < 1:
        with pytest.raises(InputError, match="raise keep"):
            total_budget(keep, n)
        return
    m = total_budget(keep, n)
    budget = split_budget(n, m, alpha)
    assert budget.signal + budget.exploration == m == round(keep * n)
    assert budget.signal == round(alpha * m)


@SMALL
@given(st.lists(st.integers(0, 400), min_size=1, max_size=30), st.floats(0, 1))
def test_trap_08_and_09_group_budgets_are_the_largest_remainders(sizes: list[int], keep: float) -> None:
    n = sum(sizes)
    m = round(keep * n)
    if n == 0:
        return
    got = proportional(m, sizes, list(range(len(sizes))))
    exact = oracle.quotas(m, sizes)
    assert sum(got) == m
    assert all(int(share) <= budget <= int(share) + (share.denominator > 1) for share, budget in zip(exact, got))
    assert all(budget <= size for budget, size in zip(got, sizes))
    up = [share - int(share) for share, budget in zip(exact, got) if budget > int(share)]
    down = [share - int(share) for share, budget in zip(exact, got) if budget == int(share)]
    assert not up or not down or min(up) >= max(down)
