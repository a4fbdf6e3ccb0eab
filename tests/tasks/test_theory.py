"""The closed forms of benchmarks/theory against slow independent truths, and the shipped code against the closed forms.

Seeds are fixed, so nothing here is flaky. Tolerances of five standard errors would fail once in 10^6 for a normal
estimate, were the seeds drawn anew.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.integrate import quad

from benchmarks.theory import inconsistency, learners, moments, population, weak_limit
from benchmarks.theory.drawing import Panel, Series, figure
from benchmarks.theory.laws import NORMAL, UNIFORM, empirical, kolmogorov, wasserstein
from benchmarks.theory.outcome import slope
from benchmarks.theory.weak_limit import Arm, Case, expected_distance, limit_law
from tasks.selection import ArrayRows, SelectionSpec, calibrated_selection

CASES = weak_limit.CASES
ARMS = (*weak_limit.ARMS, Arm("random"), Arm("approximate", 0.2))
STANDARD_ERRORS = 5.0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.base.name)
@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.label)
def test_limit_laws_are_what_quadrature_of_their_density_says(case: Case, arm: Arm) -> None:
    keep = 0.2
    law = limit_law(case, arm, keep)
    mass, share = arm.signal * keep, arm.share(keep)

    def data(x: float) -> float:
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi) if case.base is NORMAL else float(0 < x < 1)

    def density(x: float) -> float:
        on = bool(case.kept(np.array([x]), mass)[0]) if mass else False
        return data(x) * (share / mass if on else (1 - share) / (1 - mass))

    ends = (-8.0, 8.0) if case.base is NORMAL else (0.0, 1.0)
    points = np.linspace(*ends, 23)
    cuts = sorted({*law.breaks, *ends})

    def integral(of: Callable[[float], float], to: float) -> float:
        edges = [cut for cut in cuts if cut < to] + [to]
        return sum(quad(of, a, b, epsabs=1e-12)[0] for a, b in itertools.pairwise(edges))

    for x in points[1:]:
        assert law.cdf(np.array([x]))[0] == pytest.approx(integral(density, x), abs=1e-9)
        assert law.below(np.array([x]))[0] == pytest.approx(integral(lambda t, x=x: (x - t) * density(t), x), abs=1e-8)
    assert law.mean == pytest.approx(integral(lambda t: t * density(t), ends[1]), abs=1e-8)
    levels = np.linspace(0.01, 0.99, 21)
    assert np.allclose(law.cdf(law.quantile(levels)), levels, atol=1e-12)
    # Total variation to the data law: half the integral of the difference of densities.
    spread = 0.5 * integral(lambda t: abs(density(t) - data(t)), ends[1])
    assert spread == pytest.approx(abs(share - mass), abs=1e-8)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.base.name)
def test_distances_are_those_of_a_dense_grid(case: Case) -> None:
    generator = np.random.default_rng(1)
    law = limit_law(case, Arm("approximate", 0.5), 0.3)
    points = case.base.draw(generator, 7)
    weights = generator.uniform(0.2, 2.0, 7)
    at, steps = empirical(points, weights)
    grid = np.linspace(*((-9.0, 9.0) if case.base is NORMAL else (0.0, 1.0)), 400_001)
    below = np.array([weights[points <= x].sum() for x in [*sorted(points), np.inf]]) / weights.sum()
    found = np.concatenate([[0.0], below])[np.searchsorted(np.sort(points), grid, side="right")]
    gap = np.abs(found - law.cdf(grid))
    assert kolmogorov(at, steps, law) == pytest.approx(float(gap.max()), abs=1e-4)
    assert wasserstein(at, steps, law) == pytest.approx(float(np.trapezoid(gap, grid)), abs=1e-4)


def test_the_constant_of_a_random_draw_is_known() -> None:
    # sqrt(m) (F_m - F) is a Brownian bridge: the integral of sqrt(t (1 - t)) over [0, 1] is pi / 8.
    known = math.sqrt(2 / math.pi) * math.pi / 8 / math.sqrt(0.3)
    assert expected_distance(CASES[1], Arm("random"), 0.3) == pytest.approx(known, rel=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.base.name)
@pytest.mark.parametrize("arm", weak_limit.ARMS, ids=lambda arm: arm.label)
def test_the_constants_are_those_of_a_slow_simulation(case: Case, arm: Arm) -> None:
    n, keep, replicates = 2000, 0.3, 200
    generator = np.random.default_rng(3)
    law = limit_law(case, arm, keep)
    kept, signal = round(keep * n), round(arm.signal * keep * n)
    found = []
    for _ in range(replicates):
        x = case.base.draw(generator, n)
        order = np.argsort(np.abs(x - case.centre) * (1 if case.direction == "low" else -1))
        explored = generator.permutation(order[signal:])[: kept - signal]
        share = arm.share(keep)
        weights = np.repeat([share / signal, (1 - share) / max(kept - signal, 1)], [signal, kept - signal])
        found.append(wasserstein(*empirical(x[np.concatenate([order[:signal], explored])], weights), law) * math.sqrt(n))
    error = float(np.std(found, ddof=1)) / math.sqrt(replicates)
    # 2 % beside the error of the simulation: the constant is a limit, n = 2000 is not.
    constant = expected_distance(case, arm, keep)
    assert abs(float(np.mean(found)) - constant) < STANDARD_ERRORS * error + 0.02 * constant


def test_what_the_shipped_code_keeps_tends_to_its_limit_at_the_rate_of_the_theory() -> None:
    for arm in weak_limit.ARMS:
        got = weak_limit.measure(CASES[1], arm, 0.3, [300, 30_000], 20)
        ratio = got.wasserstein[1] * math.sqrt(30_000) / expected_distance(CASES[1], arm, 0.3)
        error = float(ratio.std(ddof=1)) / math.sqrt(20)
        assert abs(float(ratio.mean()) - 1) < STANDARD_ERRORS * error + 0.02
        # Two decades of n: a factor 10.
        assert 4 < got.kolmogorov[0].mean() / got.kolmogorov[1].mean() < 25
        assert abs(float(got.shift[1].mean()) - (arm.share(0.3) - arm.signal * 0.3)) < 0.02


def test_the_slope_of_a_power_is_its_exponent() -> None:
    sizes = np.array([100.0, 1000.0, 10_000.0])
    noise = np.exp(0.1 * np.random.default_rng(0).standard_normal((3, 400)))
    found, half = slope(sizes, 3 * sizes[:, None] ** -0.5 * noise)
    assert abs(found + 0.5) < 2.5 * half
    assert half == pytest.approx(1.96 * 0.1 / math.sqrt(2 * 400 * math.log(10) ** 2), rel=0.1)


def _slow_excess(decide: Callable[[float], bool]) -> float:
    grid = (np.arange(20_000) + 0.5) / 20_000
    wrong = [decide(x) != (x < learners.FIRST or x > learners.SECOND) for x in grid]
    return learners.MARGIN * float(np.mean(wrong))


@pytest.mark.parametrize("size", [5, 40, 121])
def test_learners_are_what_their_definitions_say(size: int) -> None:
    generator = np.random.default_rng(size)
    x, offset = generator.random(size), 0.37
    signs = 2.0 * learners.draw_labels(x, generator) - 1.0
    weights = generator.choice([0.1, 1.9], size)
    cells = k = math.ceil(math.sqrt(size))

    def by_cell(at: float) -> bool:
        votes = [w * s for point, s, w in zip(x, signs, weights) if int(point * cells + offset) == int(at * cells + offset)]
        return sum(votes) > 0

    def by_neighbours(at: float) -> bool:
        nearest = sorted(range(size), key=lambda i: abs(x[i] - at))[:k]
        return sum(weights[i] * signs[i] for i in nearest) > 1e-9

    # Between the two grids a decision is misplaced by at most one step at each of its changes.
    assert learners.Histogram().excess(x, signs, weights, offset) == pytest.approx(_slow_excess(by_cell), abs=2e-3)
    assert learners.Neighbours().excess(x, signs, weights, offset) == pytest.approx(_slow_excess(by_neighbours), abs=4e-3)


@pytest.mark.parametrize("keep", inconsistency.KEEPS)
def test_limits_are_integrals_of_what_is_said_outside(keep: float) -> None:
    low, high = learners.region(keep)

    def bayes(x: float) -> bool:
        return x < learners.FIRST or x > learners.SECOND

    said_by_default = _slow_excess(lambda x: bayes(x) if low < x < high else bool(learners.DEFAULT))
    said_by_edge = _slow_excess(lambda x: bayes(min(max(x, low), high)))
    assert learners.Histogram().limit(keep) == pytest.approx(said_by_default, abs=2e-4)
    assert learners.Neighbours().limit(keep) == pytest.approx(said_by_edge, abs=2e-4)


def test_topk_stays_at_its_limit_and_exact_goes_to_zero() -> None:
    sizes, keep = (300, 30_000), 0.1
    topk = inconsistency.measure(keep, Arm("topk"), sizes, 20)
    for number, learner in enumerate(inconsistency.LEARNERS):
        error = float(topk[number, 1].std(ddof=1)) / math.sqrt(20)
        room = STANDARD_ERRORS * error + learner.reach(keep, round(keep * sizes[1]))
        assert abs(float(topk[number, 1].mean()) - learner.limit(keep)) < room
        for alpha in (0.2, 0.8):
            exact = inconsistency.measure(keep, Arm("exact", alpha), sizes, 20)[number].mean(axis=1)
            assert exact[1] < exact[0] / 4
            assert exact[1] < topk[number, 1].mean() / 8


@pytest.mark.parametrize(("protocol", "gamma"), [*moments.ARMS, ("tempered", 0.0), ("tempered", 1.0)])
def test_bias_and_variance_are_those_of_all_possible_draws(protocol: str, gamma: float | None) -> None:
    generator = np.random.default_rng(7)
    n, keep, alpha = 9, 5 / 9, 0.4
    people = population.Population(generator.exponential(size=n), generator.random(n))
    rows = ArrayRows(np.arange(n, dtype=np.int64), people.score)
    chosen = SelectionSpec(score="s", protocol=protocol, keep=keep, alpha=alpha, gamma=gamma, direction="high")
    table = calibrated_selection(rows, chosen, 0)
    signal, explored = len(table.signal_id), len(table.explore_id)
    assert (signal, explored) == (2, 3)
    on, off = (Fraction(float(weight[0])) for weight in (table.design.signal_weight, table.design.explore_weight))
    value = [Fraction(float(v)) for v in people.value]
    rest = sorted(set(range(n)) - set(table.signal_id.tolist()))
    top = sum((value[i] for i in table.signal_id.tolist()), Fraction(0))
    draws = [(on * top + off * sum(value[i] for i in drawn)) / 5 for drawn in itertools.combinations(rest, explored)]
    mean = sum(draws) / len(draws)
    share = population.signal_share(protocol, n, signal, explored, gamma)
    bias, variance = people.moments(signal, explored, share)
    assert float(mean - sum(value) / n) == pytest.approx(bias, abs=1e-12)
    assert float(sum((draw - mean) ** 2 for draw in draws) / len(draws)) == pytest.approx(variance, rel=1e-12)


def test_the_variance_curve_and_its_least_are_those_of_brute_force() -> None:
    for seed in range(20):
        people = population.log_normal(60, [1.0, 0.9, 0.3][seed % 3], seed)
        for kept in (3, 12, 40):
            curve = population.variance_curve(people.ranked, kept)
            slow = [people.moments(k, kept - k, k / 60)[1] for k in range(kept)]
            assert curve == pytest.approx(slow, rel=1e-9)
            assert int(curve.argmin()) == moments.brute_force(people, kept)
            # The rule stops where the next step is the first that does not lower the variance.
            stop = population.take_all(people.ranked, kept)
            assert all(slow[k + 1] < slow[k] for k in range(stop))
            assert stop == kept - 1 or slow[stop + 1] >= slow[stop]


def test_simulated_moments_are_the_closed_ones() -> None:
    people = population.log_normal(moments.EXAMPLES, moments.RHO, moments.POPULATION_SEED)
    for protocol, gamma in (("exact", None), ("tempered", 0.5), ("approximate", None)):
        got = moments.check(people, protocol, 0.5, gamma, range(1000))
        assert abs(got.z_bias) < STANDARD_ERRORS
        assert abs(got.z_variance(got.fourth)) < STANDARD_ERRORS


@pytest.mark.timeout(300)
def test_every_command_writes_its_tables_and_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--sizes", "100", "200", "400", "--replicates", "3"]
    weak_limit.main([*tiny, "--out", str(tmp_path)])
    inconsistency.main([*tiny, "--out", str(tmp_path)])
    moments.main(["--replicates", "20", "--search-replicates", "20", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for name in ("weak_limit", "inconsistency", "moments"):
        text = (tmp_path / f"{name}.md").read_text()
        assert f"`python -m benchmarks.theory.{name} " in text
        assert f"]({name}.svg)" in text
        assert text.count("\n| --- |") == text.count("\n## ")
        assert "nan" not in text + printed
        for table in text.split("\n## ")[1:]:
            rows = [line.replace("\\|", "").count("|") for line in table.splitlines() if line.startswith("|")]
            assert len(rows) > 2
            assert len(set(rows)) == 1
        drawn = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme:dark" in (tmp_path / f"{name}.svg").read_text()


def test_a_figure_says_its_words_escaped_and_cuts_what_has_no_logarithm() -> None:
    line = Series("a < b & c", 0, [(1, 0.5, -0.1, 0.9), (10, 0.05, 0.04, 0.06)])
    drawn = figure("x < y", [Panel("p", "n", "d", [1, 10], [line])], "caption")
    assert "a &lt; b &amp; c" in drawn
    assert "nan" not in drawn
    ElementTree.fromstring(drawn)


def test_uniform_and_normal_base_laws_invert() -> None:
    levels = np.linspace(0.01, 0.99, 9)
    for base in (NORMAL, UNIFORM):
        assert np.allclose(base.cdf(base.ppf(levels)), levels)
