"""The race as pure functions: the family, who stays, the frozen winner, the answer, what it costs."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.errors import InputError
from tasks.policy.answer import Costs, answer_of
from tasks.policy.family import FAMILY, FIELDS, family_at, read_family
from tasks.policy.halving import RANDOM, Race, race_size, run_race, staying
from tasks.policy.spec import PolicySpec
from tasks.samplers.registry import PROTOCOLS
from tasks.selection.spec import SelectionSpec
from tests.oracles import policy as oracle


def accuracies(rng: random.Random, names: list[str], replicates: int, digits: int = 2) -> dict[tuple[str, int], float]:
    """Return made-up accuracies, so coarse that means tie."""
    return {(name, one): round(rng.uniform(80, 80.5), digits) for name in [RANDOM, *names] for one in range(replicates)}


def test_who_stays_and_who_wins_is_what_the_oracle_says() -> None:
    rng = random.Random(0)
    for case in range(300):
        names = [f"arm{number}" for number in rng.sample(range(100), rng.randint(1, 9))]
        rungs = sorted(rng.sample(range(1, 7), rng.randint(1, 3)))
        stay = Fraction(1, rng.choice((2, 3, 4)))
        known = accuracies(rng, names, rungs[-1], digits=case % 3)
        race = run_race(names, rungs, float(stay), known)
        assert race.decided and [one.replicates for one in race.rungs] == rungs
        kept = [[one.name for one in rung.standings if one.stays] for rung in race.rungs]
        expected = oracle.survivors(names, rungs, stay, known)
        assert [sorted(one, key=names.index) for one in kept] == expected
        assert race.winner == oracle.winner_of(names, rungs, stay, known)


def test_a_race_goes_on_rung_by_rung_and_later_results_change_no_earlier_decision() -> None:
    rng = random.Random(1)
    names = [f"arm{number}" for number in range(9)]
    known = accuracies(rng, names, 8)
    whole = run_race(names, (2, 4, 8), 1 / 3, known)
    told: dict[tuple[str, int], float] = {}
    for number in range(3):
        race = run_race(names, (2, 4, 8), 1 / 3, told)
        assert race.rungs == whole.rungs[:number] and not race.decided and race.winner is None
        asked = [pair for pair in race.trainings() if pair not in told]
        # One that is missing keeps the rung open, whichever it is.
        for pair in asked:
            partly = told | {other: known[other] for other in asked if other != pair}
            assert run_race(names, (2, 4, 8), 1 / 3, partly).rungs == whole.rungs[:number]
        told |= {pair: known[pair] for pair in asked}
        assert len(asked) == race_size(9, (2, 4, 8), 1 / 3)[number]
    assert run_race(names, (2, 4, 8), 1 / 3, told) == whole
    # What a race did not ask for decides nothing.
    assert set(whole.trainings()) == set(told) and len(told) < len(known)
    noise = {pair: 99.0 for pair in known if pair not in told}
    assert run_race(names, (2, 4, 8), 1 / 3, told | noise) == whole


def test_random_runs_in_every_rung_and_at_least_one_stays() -> None:
    known = accuracies(random.Random(2), ["a", "b"], 3)
    race = run_race(["a", "b"], (1, 2, 3), 0.1, known)
    assert {pair for pair in race.trainings() if pair[0] == RANDOM} == {(RANDOM, one) for one in range(3)}
    assert [len(rung.standings) for rung in race.rungs] == [2, 1, 1]
    assert [staying(number, 1 / 3) for number in (1, 2, 3, 4, 15, 16)] == [1, 1, 1, 2, 5, 6]


def test_no_candidate_above_random_is_no_winner() -> None:
    known = {(RANDOM, 0): 80.0, ("a", 0): 80.0, ("b", 0): 79.0}
    race = run_race(["a", "b"], (1,), 0.5, known)
    assert race.decided and race.winner is None
    assert run_race(["a", "b"], (1,), 0.5, known | {("b", 0): 80.01}).winner == "b"
    # Rounding noise is no gain, and ties are broken by the family's order.
    assert run_race(["a"], (1,), 0.5, {(RANDOM, 0): 80.0, ("a", 0): 80.0 + 1e-12}).winner is None
    assert run_race(["b", "a"], (1,), 0.5, {(RANDOM, 0): 80.0, ("a", 0): 81.0, ("b", 0): 81.0}).winner == "b"


@pytest.mark.parametrize(
    ("winner", "verdict", "answer"),
    [("a", "better", "a"), ("a", "worse", RANDOM), ("a", "equivalent", RANDOM), ("a", "undecided", RANDOM),
     ("a", None, RANDOM), (None, None, RANDOM)],
)  # fmt: skip
def test_only_a_confirmed_gain_is_an_answer_other_than_random(winner: str | None, verdict: str | None, answer: str) -> None:
    assert answer_of(winner, verdict) == answer


def test_costs_are_steps_and_full_trainings() -> None:
    costs = Costs(scoring=2700, scored=162_165, race=10_000, confirmation=6000, full=6345, later=300)
    assert costs.steps == 18_700 and costs.full_trainings == pytest.approx(18_700 / 6345)
    assert costs.record()["steps"] == 18_700 and costs.record()["scored_examples"] == 162_165
    assert Costs(None, None, 100, 0, 50, 10).full_trainings == 2.0


def test_the_default_family_is_valid_and_has_both_ends_and_no_line_twice() -> None:
    assert read_family(FAMILY) == FAMILY
    wide = family_at(FAMILY, 0.01, ["el2n"], "exclude")
    assert len(wide.candidates) == len(FAMILY) and not wide.left_out
    assert {spec.direction for spec in wide.candidates.values()} == {"high", "low"}
    assert {spec.protocol for spec in wide.candidates.values()} >= {
        "topk", "exact", "approximate", "tempered", "raked", "ccs", "band", "prototype_band", "pps"
    }  # fmt: skip
    assert all(PROTOCOLS[str(line["protocol"])].ranks for line in FAMILY)
    # What a race costs at most: it is stated in docs/decisions/0013-the-race.md.
    assert len(FAMILY) == 19 and sum(race_size(19, (2, 4, 8), 1 / 3)) == 72
    names = {name for keep in (0.01, 0.05, 0.1, 0.3) for name in family_at(FAMILY, keep, ["el2n"], "exclude").candidates}
    assert names == set(wide.candidates)


def test_what_cannot_be_drawn_at_a_keep_is_left_out_with_the_reason() -> None:
    found = family_at(FAMILY, 0.1, ["el2n"], "exclude")
    assert list(found.left_out) == ["band el2n beta=0.02 width=0.08", "prototype_band el2n beta=0.02 width=0.08"]
    assert "only 0.08" in found.left_out["band el2n beta=0.02 width=0.08"]
    # Of a score that is kept low pps draws nothing, and the ends are the other way round.
    margin = family_at(FAMILY, 0.01, ["margin"], "exclude")
    assert list(margin.left_out) == ["pps margin"]
    assert margin.candidates["topk margin"].direction == "low" and margin.candidates["topk margin easy"].direction == "high"
    both = family_at(FAMILY, 0.01, ["el2n", "margin"], "exclude")
    assert len(both.candidates) + len(both.left_out) == 2 * len(FAMILY)
    same = family_at(({"protocol": "topk"}, {"protocol": "topk", "end": "hard"}), 0.1, ["el2n"], "exclude")
    assert list(same.candidates) == ["topk el2n"]
    with pytest.raises(InputError, match=r"no candidate that can be drawn at keep 0\.5"):
        family_at(read_family(["band"]), 0.5, ["el2n"], "exclude")
    with pytest.raises(InputError, match=r"policy\.direction"):
        family_at(FAMILY, 0.1, ["mine"], "exclude")
    assert family_at(FAMILY, 0.01, ["mine"], "exclude", "high").candidates["topk mine"].direction == "high"


def test_a_family_takes_every_setting_of_a_selection() -> None:
    elsewhere = {"keep", "score", "missing", "direction"}
    assert set(FIELDS) == (set(SelectionSpec.model_fields) - elsewhere) | {"end"}


def test_a_family_may_be_restricted_or_be_your_own() -> None:
    assert [line["protocol"] for line in read_family(["band", "pps"])] == ["band"] * 3 + ["pps"]
    own = read_family([{"protocol": "ccs", "beta": 0.2}, "topk"])
    assert own[0] == {"protocol": "ccs", "beta": 0.2} and len(own) == 3


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("always", "policy is 'always': give auto"),
        ({"family": []}, "policy.family is"),
        ({"family": "band"}, "policy.family is"),
        ({"family": ["bandd"]}, "did you mean 'band'"),
        ({"family": ["band", "band"]}, "twice"),
        ({"family": [{"beta": 0.1}]}, "names no protocol"),
        ({"family": [{"protocol": "ccs", "betta": 0.1}]}, "did you mean 'beta'"),
        ({"family": [{"protocol": "ccs", "keep": 0.1}]}, "give it as select.keep"),
        ({"family": [{"protocol": "ccz"}]}, "ccz"),
        ({"family": [{"protocol": "random"}]}, "what all are compared with"),
        ({"family": [{"protocol": "topk", "end": "left"}]}, "give hard or easy"),
        ({"family": [3]}, "policy.family holds '3'"),
        ({"family": [{"protocol": "exact", "alpha": 1.7}]}, "alpha is 1.7"),
        ({"family": [{"protocol": "ccs", "beta": "abc"}]}, "beta is 'abc'"),
        ({"family": [{"protocol": "exact", "alpha": 0.2, "gamma": 0.3}]}, "gamma"),
        ({"family": [{"protocol": "band", "beta": 0.9, "width": 0.4}]}, "beta"),
        ({"rungs": [2, 2]}, "policy.rungs"),
        ({"rungs": [0, 2]}, "policy.rungs"),
        ({"scores": ["el2n", "el2n"]}, "lists a score twice"),
        ({"confirm": 4}, "greater than or equal to 5"),
        ({"stay": 1}, "less than 1"),
        ({"replicates": 2}, "not permitted"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(policy: Any, message: str) -> None:
    with pytest.raises((InputError, ValidationError), match=message):
        PolicySpec.model_validate(policy)


def test_auto_is_the_whole_family() -> None:
    assert PolicySpec.model_validate("auto") == PolicySpec()
    assert PolicySpec().family == FAMILY and PolicySpec().rungs == (2, 4, 8) and PolicySpec().confirm == 10


def test_a_rung_needs_every_replicate_of_random_too() -> None:
    known = {("a", 0): 81.0, ("a", 1): 81.0, (RANDOM, 0): 80.0}
    race = run_race(["a"], (2,), 0.5, known)
    assert race == Race((), ("a",), 2, None)


def test_equal_arms_leave_the_answer_at_random_in_nearly_all_races() -> None:
    from benchmarks.policy import tally

    found = tally(1, (0.0,) * 15, 60)
    assert found.random >= 57 and found.naive > 10
    # A gain of nearly two spreads of a paired difference is found.
    assert tally(8, (2.0, *(0.0,) * 14), 10).random == 0
