"""Alpha by theory against the formula worked out for every signal size, and against all possible draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cluster.errors import InputError
from tasks.selection import allocation
from tasks.selection.allocation import FLAT, Allocation, Pair, allocate
from tasks.selection.exact_sum import ExactSum
from tests.oracles import allocation as oracle

Array = npt.NDArray[Any]


class CutPairs:
    """Give pairs in given pieces."""

    def __init__(self, pieces: Sequence[Pair]) -> None:
        self._pieces = list(pieces)
        self.num_rows = sum(len(piece.score) for piece in pieces)

    def pieces(self) -> Sequence[Pair]:
        return self._pieces

    def read(self, piece: Pair) -> Iterator[Pair]:
        half = len(piece.score) // 2
        yield Pair(piece.score[:half], piece.norm[:half])
        yield Pair(piece.score[half:], piece.norm[half:])


def cut(score: Array, norm: Array, shards: int = 1, order: int = 0) -> CutPairs:
    """Return the rows, shuffled where there is more than one shard."""
    if shards == 1:
        return CutPairs([Pair(score, norm)])
    generator = np.random.default_rng(order)
    cuts = np.sort(generator.integers(0, len(score) + 1, shards - 1))
    return CutPairs([Pair(score[part], norm[part]) for part in np.split(generator.permutation(len(score)), cuts)])


def drawn(n: int, seed: int, distinct: int | None = None) -> tuple[Array, Array]:
    """Return heavy-tailed norms and a score that follows them with noise, `distinct` values of it where given."""
    generator = np.random.default_rng(seed)
    log = generator.standard_normal(n)
    score = 0.9 * log + 0.4 * generator.standard_normal(n)
    if distinct is not None:
        score = np.floor(score * distinct / 6)
    return score.astype(np.float32), np.exp(1.5 * log).astype(np.float32)


def check(got: Allocation, truth: list[Fraction], n: int) -> None:
    """Compare with the truth at every point of the curve, in the minimum and in the flat stretch."""
    m = len(truth)
    assert (got.n, got.kept) == (n, m)
    assert truth[got.signal] <= min(truth) * (1 + Fraction(1, 10**12))
    assert round(got.alpha * m) == got.signal
    assert got.ratio == pytest.approx(float(truth[got.signal] / truth[0]), rel=1e-12)
    for alpha, ratio in got.curve:
        assert ratio == pytest.approx(float(truth[round(alpha * m)] / truth[0]), rel=1e-12)
    near = [value <= min(truth) * (1 + Fraction(FLAT)) for value in truth]
    low, high = (round(end * m) for end in got.flat)
    assert all(near[low : high + 1]) and low <= got.signal <= high
    assert not (low and near[low - 1]) and not (high < m - 1 and near[high + 1])
    assert got.stretches == sum(now and not before for before, now in zip([False, *near], near))


@pytest.mark.parametrize("direction", ["high", "low"])
@pytest.mark.parametrize("distinct", [None, 12, 1])
@pytest.mark.parametrize("kept", [1, 7, 90, 299])
def test_is_the_formula_at_every_signal_size(kept: int, distinct: int | None, direction: str) -> None:
    score, norm = drawn(300, seed=kept, distinct=distinct)
    score = score if direction == "high" else -score
    truth = oracle.variances([(score.tolist(), norm.tolist())], kept, direction)
    check(allocate([cut(score, norm)], kept, direction), truth, 300)


def test_folds_are_added() -> None:
    folds = [drawn(200, seed) for seed in range(3)]
    truth = oracle.variances([(score.tolist(), norm.tolist()) for score, norm in folds], 60, "high")
    check(allocate([cut(*fold) for fold in folds], 60, "high"), truth, 200)


def test_ties_take_their_mean_over_all_orders() -> None:
    score, norm = [3.0, 2.0, 2.0, 2.0, 1.0, 1.0], [4.0, 1.0, 5.0, 3.0, 2.0, 6.0]
    orders = [(0, *one, *two) for one in permutations([1, 2, 3]) for two in permutations([4, 5])]
    for kept in range(1, 6):
        mean = [Fraction(0)] * kept
        for order in orders:
            # Scores without ties, in this order.
            found = oracle.variances([([-float(place) for place in range(6)], [norm[i] for i in order])], kept, "high")
            mean = [total + value / len(orders) for total, value in zip(mean, found)]
        got = allocate([cut(np.array(score), np.array(norm))], kept, "high")
        assert [ratio for _, ratio in got.curve] == pytest.approx([float(value / mean[0]) for value in mean], rel=1e-12)


def test_bounds_the_variance_over_all_draws() -> None:
    generator = np.random.default_rng(7)
    vectors = [[Fraction(int(value)) for value in row] for row in generator.integers(-9, 10, (8, 3))]
    # Opposite pairs have mean 0, and there the bound is the variance itself.
    opposed = [row for half in vectors[:4] for row in (half, [-value for value in half])]
    for ranked, sharp in ((vectors, False), (opposed, True)):
        squares = [sum(value * value for value in row) for row in ranked]
        for kept in range(1, 8):
            for signal in range(0, kept, 2):
                explored, left = kept - signal, 8 - signal
                bound = Fraction(left, 8) ** 2 * (1 - Fraction(explored, left)) / explored * sum(squares[signal:]) / (left - 1)
                found = oracle.drawn_variance(ranked, signal, explored)
                assert found == bound if sharp else found <= bound


@pytest.mark.parametrize("distinct", [None, 40, 3])
def test_is_the_same_for_any_shards_and_threads(distinct: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    score, norm = drawn(20_000, seed=3, distinct=distinct)
    whole = allocate([cut(score, norm)], 6000, "high")
    # A small limit makes the threshold be sought by repeated passes, as in tables of many rows.
    monkeypatch.setattr(allocation, "_OPEN_ROWS", 100)
    for shards, threads in ((1, 1), (7, 1), (23, 3)):
        assert allocate([cut(score, norm, shards, order=shards)], 6000, "high", threads) == whole
    small = allocate([cut(score, norm, 5, order=1)], 60, "high")
    truth = oracle.complement_squares(score.tolist(), norm.tolist(), "high")[:60]
    best = [squares * Fraction(20_000 - k, (19_999 - k) * (60 - k)) for k, squares in enumerate(truth)]
    assert small.signal == best.index(min(best))
    assert small.ratio == pytest.approx(float(min(best) / best[0]), rel=1e-12)


def test_exploration_alone_where_norms_do_not_differ() -> None:
    score = np.random.default_rng(0).random(500)
    got = allocate([cut(score, np.ones(500))], 100, "high")
    assert (got.signal, got.alpha, got.ratio) == (0, 0.0, 1.0)


def test_takes_all_of_a_heavy_top() -> None:
    norm = np.concatenate([np.full(5, 1e6), np.full(995, 1e-3)])
    got = allocate([cut(norm, norm)], 100, "high")
    # All five are taken, and what is left is not lost beside them: one more costs a little, one less nearly all.
    assert got.signal == 5
    assert got.ratio == pytest.approx(995 * 1e-6 * 995 / 994 / 95 / (5e12 * 1000 / 999 / 100), rel=1e-9)
    assert [round(end * 100) for end in got.flat] == [5, 9]


def test_no_variance_to_divide() -> None:
    score, norm = drawn(50, seed=1)
    for got in (allocate([cut(score, norm)], 50, "high"), allocate([cut(score, np.zeros(50))], 10, "high")):
        assert (got.signal, got.ratio, got.curve) == (0, None, [])


@pytest.mark.parametrize(
    ("norm", "said"), [(-1.0, "1 of 10 gradient norms are negative"), (np.nan, "missing, infinite"), (1e200, "too large")]
)
def test_refuses_what_is_no_norm(norm: float, said: str) -> None:
    norms = np.ones(20)
    norms[3] = norm
    with pytest.raises(InputError, match=said):
        allocate([cut(np.arange(20.0), norms)], 5, "high")


def test_sums_are_exact_in_any_order() -> None:
    generator = np.random.default_rng(5)
    values = np.concatenate([np.ldexp(generator.random(3000), generator.integers(-900, 900, 3000)), [0.0, 5e-324]])
    truth = float(sum(map(Fraction, values.tolist()), Fraction(0)))
    for parts in (1, 13):
        total = ExactSum()
        for part in np.split(generator.permutation(values), np.sort(generator.integers(0, len(values), parts - 1))):
            one = ExactSum()
            one.add(part)
            total.merge(one)
        assert total.value == truth
    assert ExactSum().value == 0.0
