"""Each protocol's inclusion probabilities and weights, and the figures that judge a design."""

from __future__ import annotations

import importlib
import re

import numpy as np
import pytest

from cluster.errors import InputError
from tasks.samplers import approximate, exact, tempered, topk, uniform
from tasks.samplers.design import (
    Budget,
    covered,
    design_effect,
    make_design,
    split_budget,
    weight_counts,
    weight_figures,
)
from tasks.samplers.registry import PROTOCOLS, design_of, protocol_info
from tasks.selection import SelectionSpec

BUDGET = split_budget(60000, 6000, 0.5)


def _sum(budgets: list[Budget], name: str, gamma: float | None = None) -> float:
    return float(weight_figures(weight_counts(budgets, design_of(name, budgets, gamma)))["weight_sum"])


def test_exact_weights_follow_the_formula() -> None:
    design = exact.design([BUDGET])
    alpha, r = 0.5, 0.1
    factor = (1 - alpha * r) / ((1 - alpha) * r)
    assert BUDGET.explore_factor == pytest.approx(factor) == pytest.approx(19)
    assert design.signal_weight[0] == pytest.approx(0.1)
    assert design.explore_weight[0] == pytest.approx(1.9)
    assert design.explore_prob[0] == pytest.approx(1 / 19)


def test_the_effective_sample_size_is_the_one_of_the_methods_page() -> None:
    figures = weight_figures(weight_counts([BUDGET], exact.design([BUDGET])))
    assert figures["ess"] / 6000 == pytest.approx(0.552, abs=5e-4)
    assert figures["weight_quantiles"]["min"] == pytest.approx(0.1)
    assert figures["weight_quantiles"]["max"] == pytest.approx(1.9)


def test_weights_add_up_to_the_budget() -> None:
    for name in ("random", "topk", "exact", "approximate"):
        budget = split_budget(997, 101, {"random": 0.0, "topk": 1.0}.get(name, 0.37))
        assert _sum([budget], name) == pytest.approx(101, rel=1e-12)
    for gamma in (0.0, 0.5, 1.0):
        assert _sum([split_budget(997, 101, 0.37)], "tempered", gamma) == pytest.approx(101, rel=1e-12)


def test_random_weighs_one_and_topk_covers_nothing_else() -> None:
    assert uniform.design([split_budget(70, 7, 0)]).explore_weight[0] == pytest.approx(1, abs=1e-15)
    design = topk.design([split_budget(70, 7, 1)])
    assert (design.explore_prob[0], design.signal_weight[0]) == (0, 1)


def test_tempered_lies_between_approximate_and_exact() -> None:
    ends = approximate.design([BUDGET]), exact.design([BUDGET])
    for gamma, end in zip((0.0, 1.0), ends):
        design = tempered.design([BUDGET], gamma)
        assert design.signal_weight[0] == pytest.approx(end.signal_weight[0], rel=1e-12)
        assert design.explore_weight[0] == pytest.approx(end.explore_weight[0], rel=1e-12)
    middle = tempered.design([BUDGET], 0.5)
    assert middle.explore_weight[0] / middle.signal_weight[0] == pytest.approx(19**0.5)


def test_exact_without_exploration_is_refused_unless_all_is_kept() -> None:
    with pytest.raises(InputError, match="no exploration"):
        exact.design([split_budget(10, 2, 0.9)])
    with pytest.raises(InputError, match=r"5 kept of a group of 10, all of it signal, .* lower alpha"):
        exact.design([split_budget(10, 5, 0.4), split_budget(10, 5, 1.0)])
    with pytest.raises(InputError, match=r"0 kept of a group of 10: its budget rounds to nothing, .* raise keep") as caught:
        exact.design([split_budget(10, 5, 0.4), split_budget(10, 0, 0.4)])
    assert "all of it signal" not in str(caught.value) and "lower alpha" not in str(caught.value)
    design = exact.design([split_budget(10, 10, 1.0)])
    assert (design.explore_prob[0], design.signal_weight[0]) == (1, 1)


def test_trap_20_groups_without_a_budget_are_not_weighted_as_if_covered() -> None:
    budgets = [split_budget(90, 9, 0), split_budget(3, 0, 0)]
    design = uniform.design(budgets)
    assert covered(budgets) == 90
    # 9 rows with weight 1 speak for 90 examples, not for 93.
    assert design.explore_weight[0] == pytest.approx(1)
    assert design.explore_prob[1] == 0


def test_exact_without_signal_is_random_where_a_group_gets_nothing() -> None:
    budgets = [split_budget(90, 9, 0), split_budget(3, 0, 0), split_budget(41, 4, 0)]
    got, plain = exact.design(budgets), uniform.design(budgets)
    for field in ("explore_prob", "signal_weight", "explore_weight"):
        assert getattr(got, field).tolist() == getattr(plain, field).tolist()
    # Where all groups are covered the weights are those of any alpha: m/n W.
    budgets = [split_budget(90, 9, 0), split_budget(30, 1, 0)]
    assert exact.design(budgets).explore_weight.tolist() == [90 / 9 * (10 / 120), 30 / 1 * (10 / 120)]


def test_every_sampler_states_its_formula_its_source_and_what_it_guarantees() -> None:
    for info in PROTOCOLS.values():
        said = importlib.import_module(info.module).__doc__ or ""
        assert re.search(r"\bpi(_i)?\b", said), f"{info.name}: no inclusion probability"
        assert re.search(r"\b(19|20)\d\d\b", said), f"{info.name}: no dated source"
        assert re.search("Guarantee|unbiased|no design", said), f"{info.name}: nothing of what it guarantees"


def test_design_effect_is_the_simulated_one() -> None:
    generator = np.random.default_rng(0)
    n, m = 200, 40
    signal_share = np.array([10, 6, 0])
    rest = np.array([60, 60, 64])
    full = signal_share + rest
    classes = np.repeat(np.arange(3), rest)
    budget = Budget(n, 16, m - 16)
    one_hot = np.eye(3)[classes]
    for name, gamma in (("exact", None), ("approximate", None), ("tempered", 0.5)):
        design = design_of(name, [budget], gamma)
        order = np.argsort(generator.random((20000, len(classes))), axis=1)[:, : budget.exploration]
        drawn = one_hot[order].sum(axis=1)
        totals = n / m * (design.signal_weight[0] * signal_share + design.explore_weight[0] * drawn)
        error = ((totals - full) ** 2).sum(axis=1).mean()
        plain = np.argsort(generator.random((20000, n)), axis=1)[:, :m]
        labels = np.eye(3)[np.repeat(np.arange(3), full)]
        base = ((n / m * labels[plain].sum(axis=1) - full) ** 2).sum(axis=1).mean()
        assert design_effect(budget, design, full, signal_share) == pytest.approx(error / base, rel=0.03)
    everything = split_budget(200, 200, 0.5)
    assert design_effect(everything, exact.design([everything]), full, full // 2) is None


def test_random_has_design_effect_one() -> None:
    budget = split_budget(1000, 100, 0)
    counts = np.array([300, 700])
    assert design_effect(budget, uniform.design([budget]), counts, np.array([0, 0])) == pytest.approx(1)


def test_groups_without_exploration_have_no_weight_to_give() -> None:
    design = make_design([split_budget(4, 4, 1)], [1.0], [0.0])
    assert design.explore_prob[0] == 1
    assert weight_counts([split_budget(4, 4, 1)], design) == [(1.0, 4)]


def test_an_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'exact'"):
        protocol_info("exat")
    assert set(PROTOCOLS) == {
        "random", "topk", "exact", "approximate", "tempered", "ccs", "band", "prototype_band", "pps", "raked", "rs2", "rotate",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "exact", "score": "el2n"}, "needs alpha"),
        ({"protocol": "exact", "score": "el2n", "alpha": 1}, "no weight makes the estimate unbiased"),
        ({"protocol": "topk", "score": "el2n", "alpha": 0.5}, "always 1"),
        ({"protocol": "random", "alpha": 0.5}, "always 0"),
        ({"protocol": "random", "score": "el2n"}, "reads no score"),
        ({"protocol": "random", "direction": "high"}, "no kept end"),
        ({"protocol": "topk"}, "needs a score"),
        ({"protocol": "topk", "score": "mine"}, "give direction"),
        ({"protocol": "tempered", "score": "el2n", "alpha": 0.5}, "needs gamma"),
        ({"protocol": "exact", "score": "el2n", "alpha": 0.5, "gamma": 0.5}, "takes no gamma"),
        ({"protocol": "top", "score": "el2n"}, "did you mean 'topk'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SelectionSpec(keep=0.5, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"keep": 0}, {"keep": 1.1}, {"keep": 0.5, "alhpa": 0.5}, {}])
def test_trap_15_a_misspelt_or_impossible_setting_is_an_error(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"keep|alhpa"):
        SelectionSpec(protocol="topk", score="el2n", **settings)  # type: ignore[arg-type]


def test_trap_15_samplers_swallow_no_option() -> None:
    for name, info in PROTOCOLS.items():
        with pytest.raises(TypeError):
            design_of.__globals__["importlib"].import_module(info.module).design([BUDGET], 0.5, gama=0.5)
        assert protocol_info(name) is info


def test_trap_02_each_score_keeps_its_own_end() -> None:
    ends = {"el2n": "high", "el2n@0.1": "high", "margin": "low", "aum": "low", "entropy": "high", "el2n_s2": "high"}
    for column, end in ends.items():
        assert SelectionSpec(protocol="topk", score=column, keep=0.5).kept_end == end
    assert SelectionSpec(protocol="topk", score="margin", keep=0.5, direction="high").kept_end == "high"
