"""Races: rung by rung to a frozen winner and an answer, killed anywhere, with test results that nobody sees before."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.record import Unit
from cluster.storage import Store
from flows.config import load_config, parse_config
from flows.lineage import load_lineage
from flows.plan import Plan, find_states, make_plan
from flows.race_plan import Sources, describe, race_scores, race_units
from flows.verify import verify_run
from tasks.policy.halving import Race
from tasks.report.publish import read_results, report_name
from tests.flows.race_case import POLICY, Stop, make_config, race_serially, timeless
from tests.flows.test_cli import command
from tests.flows.verify_case import edit_seal, flip, tree

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
ROUNDS = ("rung 1", "rung 2", "confirm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a folder with the data, and with the store of a finished race."""
    folder = tmp_path_factory.mktemp("race")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECATEUR_CACHE", str(folder / "cache"))
        race_serially(make_plan(make_config(folder)), Store(str(folder / "store")))
        yield folder


def finished(folder: Path) -> tuple[Plan, Store, dict[str, Any]]:
    plan, store = make_plan(make_config(folder)), Store(str(folder / "store"))
    results = read_results(store, plan.run_name)
    assert results is not None
    return plan, store, results


def stages(store: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(store).items() if name.startswith("stages/")}


def test_a_race_ends_with_an_answer_its_evidence_and_its_cost(folder: Path) -> None:
    plan, store, results = finished(folder)
    for entry, keep in zip(results["policy"]["keeps"], (0.1, 0.2), strict=True):
        assert entry["keep"] == keep and list(entry["candidates"]) == ["exact clean alpha=0.5", "topk clean easy", "topk clean"]
        assert [rung["replicates"] for rung in entry["rungs"]] == [1, 2]
        assert [len(rung["candidates"]) for rung in entry["rungs"]] == [3, 2]
        # 40 % of the train labels are wrong, and one candidate takes none of them.
        assert entry["winner"] == "topk clean"
        best = entry["rungs"][-1]["candidates"][0]
        assert best["name"] == "topk clean" and best["stays"] and best["mean_difference"] > 0 and len(best["differences"]) == 2
        row = next(row for row in results["comparisons"] if row["keep"] == keep)
        confirmation = entry["confirmation"]
        assert row["family"] == 1 and row["adjustment"] == "paired t" and confirmation["verdict"] == row["verdict"]
        assert confirmation["replicates"] == 10 and confirmation["ci95"] == row["ci95"]
        assert entry["answer"] == ("topk clean" if row["verdict"] == "better" else "random")
        # 3 + 2 candidates and random, a replicate each rung; one full training has the 15 steps of every training.
        kept = round(keep * results["dataset"]["n_train"])
        assert entry["examples_touched"] == dict.fromkeys(["random", *entry["candidates"]], kept)
        costs = entry["costs"]
        assert costs["race_steps"] == (4 + 3) * 15 and costs["confirmation_steps"] == 2 * 10 * 15
        assert costs["scoring_steps"] is None and costs["full_trainings"] == 27.0
        said = entry["sentence"]
        assert said.startswith(f"Keep {100 * keep:.0f} %: ") and "cost 27.0 full trainings (405 steps" in said
        assert said.endswith(f"every later training {100 * keep:.0f} % of the data and 100 % of the steps.")
    assert results["headline"].startswith("Keep 10 %: ")
    assert [arm["name"] for arm in results["arms"]] == ["random", "topk clean"] * 2
    page = store.read(report_name(plan.run_name, "index.html")).decode()
    assert page.count('<th scope="col">distinct examples touched</th>') == 2
    assert page.index("Keep 10 %: ") < page.index("How the arm was found") < page.index("Before you believe")
    assert all(state.left == 0 for state in find_states(plan, store))
    # Everything that was computed is a unit of the run.
    known = {unit.folder for _, unit in plan.units(store)}
    assert {name.rpartition("/")[0] for name in stages(folder / "store") if name.endswith("/seal.json")} == known




def test_a_run_is_named_by_its_configuration_alone(folder: Path) -> None:
    plan, store, _ = finished(folder)
    grown = plan.grown(store)
    assert grown.run_name == plan.run_name and grown.keys() == plan.keys() and len(grown.trainings) > len(plan.trainings)
    # The configuration alone makes the first rung: random and three candidates at two keeps.
    assert len(plan.trainings) == 8 and len(grown.trainings) == 2 * (4 + 3 + 20)
    record = json.loads(store.read(f"runs/{plan.run_name}/run.json"))
    assert record["keys"] == plan.keys() and record["config"]["policy"]["family"] == POLICY["family"]
    assert parse_config(record["config"]) == plan.config
    # Runs without a policy are named as before there was one.
    quickstart = load_config(str(ROOT / "configs/quickstart.yaml"))
    assert "policy" not in quickstart.identity() and "policy" in plan.config.identity()


def test_the_confirmation_has_seeds_that_the_race_never_had(folder: Path) -> None:
    plan, store, results = finished(folder)
    grown = plan.grown(store)
    raced = [one for one in grown.trainings if one.replicate < 2]
    fresh = [one for one in grown.trainings if one.replicate >= 2]
    # Ten replicates at each of two keeps, whose races are two.
    assert len({one.seed for one in fresh}) == 20 and not {one.seed for one in raced} & {one.seed for one in fresh}

    def selection_seeds(trainings: list[Any]) -> set[int]:
        return {grown.selections[one.arm, one.keep, one.replicate][1].seed for one in trainings}

    assert len(selection_seeds(fresh)) == 20 and not selection_seeds(raced) & selection_seeds(fresh)
    for arm in results["arms"]:
        assert arm["seeds"] == list(dict.fromkeys(one.seed for one in fresh if one.keep == arm["keep"]))
    # Nor has any run with named arms: theirs are those of the race.
    named = make_plan(parse_config(plan.config.model_dump() | {
        "policy": None, "select": {"keep": 0.1, "arms": [{"protocol": "topk", "score": "clean", "direction": "high"}]}
    }))  # fmt: skip
    assert not {one.seed for one in named.trainings} & {one.seed for one in fresh}
    assert {one.key for one in named.trainings} & {one.key for one in raced}


def confirming_seeds(folder: Path, keep: float = 0.1, **changes: Any) -> set[int]:
    """Return the seeds, of trainings and selections, by which a race whose winner is plain top-k would confirm it."""
    plan = make_plan(make_config(folder, **changes))
    decided = Race((), (), 0, "topk clean")
    selections, trainings = race_units(Sources(plan.config, plan.shard, plan.merge, plan.code), {keep: decided}, {})
    assert plan.config.policy is not None and len(trainings) == 2 * plan.config.policy.confirm
    seeds = {one.seed for one in trainings} | {chosen.seed for _, chosen in selections.values()}
    # Random and the winner share both seeds of a replicate.
    assert len(seeds) == 2 * plan.config.policy.confirm
    return seeds


def test_another_race_is_confirmed_by_other_seeds_and_the_same_race_by_its_own(folder: Path) -> None:
    # Whatever a reader of the test result may change to ask again.
    others: list[dict[str, Any]] = [
        {"policy": POLICY | {"family": [POLICY["family"][0], POLICY["family"][2]]}},
        {"policy": POLICY | {"family": ["topk"]}},
        {"policy": POLICY | {"rungs": [1]}},
        {"policy": POLICY | {"rungs": [1, 3]}},
        {"policy": POLICY | {"stay": 0.6}},
        {"policy": POLICY | {"confirm": 11}},
        {"train": {"model": {"use": "mlp", "args": {"hidden": [4]}}, "steps": 16, "batch_size": 16, "lr": 0.03, "full": False}},
        {"seed": 1},
    ]
    mine = confirming_seeds(folder)
    seen = [mine, confirming_seeds(folder, 0.2)]
    assert not seen[0] & seen[1]
    for changes in others:
        seeds = confirming_seeds(folder, **changes)
        assert not any(seeds & before for before in seen), changes
        seen.append(seeds)
    # What changes nothing of a race leaves it the same one: another name or margin, and without the other keep.
    for same in ({}, {"name": "other", "report": {"margin_points": 1.0}}, {"select": {"keep": 0.1}}):
        assert confirming_seeds(folder, **same) == mine
    # And they are those that the finished race was confirmed by, however often it is asked.
    plan, store, results = finished(folder)
    for _ in range(2):
        fresh = [one for one in plan.grown(store).trainings if one.keep == 0.1 and one.replicate >= 2]
        assert {one.seed for one in fresh} < mine
    assert all(set(arm["seeds"]) < mine for arm in results["arms"] if arm["keep"] == 0.1)


def test_a_race_that_was_killed_in_every_rung_ends_with_the_same_winner_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    plan, _, results = finished(folder)
    store = Store(str(tmp_path / "store"))
    before: dict[str, bytes] = {}
    for number, stop in enumerate(ROUNDS):
        trained: list[str] = []

        def kill(name: str, stop: str = stop, trained: list[str] = trained) -> None:
            trained.append(name)
            if name == stop:
                raise Stop

        with pytest.raises(Stop):
            race_serially(plan, store, kill)
        # An attempt goes on with the round after the one in which the last was killed.
        assert trained == [stop]
        races = plan.grown(store).races.values()
        assert [len(race.rungs) for race in races] == [min(number + 1, 2)] * 2
        now = stages(tmp_path / "store")
        assert {name: now[name] for name in before} == before and len(now) > len(before)
        before = now
    _, resumed = race_serially(plan, store)
    assert timeless(resumed) == timeless(results)
    assert stages(tmp_path / "store") == before == stages(folder / "store")


def test_half_a_rung_decides_nothing(folder: Path, tmp_path: Path) -> None:
    plan, _, _ = finished(folder)
    shutil.copytree(folder / "store", tmp_path / "store")
    store = Store(str(tmp_path / "store"))
    lost = next(one for one in plan.grown(store).trainings if (one.keep, one.arm, one.replicate) == (0.1, "random", 1))
    unit = Unit(store, "train", lost.key)
    store.remove(f"{unit.folder}/{unit.seal_name}")
    first, second = (plan.grown(store).races[keep] for keep in (0.1, 0.2))
    assert len(first.rungs) == 1 and not first.decided and first.winner is None and second.winner == "topk clean"
    states = {state.stage: state for state in find_states(plan, store)}
    assert states["train"].left == 1 and states["train"].total == 7 + 7 + 20


class Blind(Store):
    """Refuse every look at test predictions."""

    def read(self, name: str) -> bytes:
        assert not name.endswith("test.parquet"), "a test part was read before the winner was frozen"
        return super().read(name)

    def open(self, name: str) -> Any:
        assert not name.endswith("test.parquet"), "a test part was read before the winner was frozen"
        return super().open(name)


def test_test_results_are_read_by_nobody_before_the_winner_is_frozen(folder: Path, tmp_path: Path) -> None:
    plan, store, _ = finished(folder)
    expected = plan.grown(store)
    assert plan.grown(Blind(store.uri)).races == expected.races
    # And whatever they are, the race is the same: here every sealed test accuracy is another one.
    shutil.copytree(folder / "store", tmp_path / "store")
    other = Store(str(tmp_path / "store"))
    for number, one in enumerate(expected.trainings):
        unit = Unit(other, "train", one.key)

        def change(body: dict[str, Any], number: int = number) -> None:
            body["meta"]["accuracy"] = float(number * 37 % 100)
            body["meta"]["class_accuracy"] = [float(number * 11 % 100)] * 2

        edit_seal(tmp_path / "store" / unit.folder / unit.seal_name, change, forge=True)
    assert plan.grown(other).races == expected.races
    for path in (tmp_path / "store").glob("stages/train-*/parts/test.parquet"):
        path.unlink()
    assert plan.grown(other).races == expected.races


def test_candidates_that_are_random_in_other_words_leave_the_answer_at_random(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = {"protocol": "band", "beta": 0.1, "width": 0.05}
    policy = POLICY | {"family": [{"protocol": "exact", "alpha": 0.0}, narrow]}
    plan = make_plan(make_config(folder, policy=policy))
    ended, results = race_serially(plan, Store(str(tmp_path / "store")))
    told = "1 candidate and random; left out, by reasons that `secateur plan` gives: band clean beta=0.1 width=0.05"
    assert f"race    keep 10 %: {told}\n" in capsys.readouterr().err
    assert all(list(entry["left_out"]) == ["band clean beta=0.1 width=0.05"] for entry in results["policy"]["keeps"])
    for entry in results["policy"]["keeps"]:
        assert entry["winner"] is None and entry["confirmation"] is None and entry["answer"] == "random"
        assert [one["mean_difference"] for rung in entry["rungs"] for one in rung["candidates"]] == [0.0, 0.0]
        assert entry["costs"]["confirmation_steps"] == 0
        assert "random; none of 1 candidate ended the race above it on validation, so none was tested" in entry["sentence"]
    # Nothing was confirmed, so there is nothing beyond the race: random and the candidate, two replicates, two keeps.
    assert len(ended.trainings) == 8 and results["comparisons"] == []
    assert all("no candidate was tested" in row["sentence"] for row in results["keeps"])


def test_scoring_is_counted_where_it_was_done(folder: Path, tmp_path: Path) -> None:
    proxy = {"model": {"use": "mlp", "args": {"hidden": [4]}}, "seeds": 2, "steps": 10, "batch_size": 32}
    policy = POLICY | {"family": ["topk"], "scores": None, "direction": None}
    policy = {name: value for name, value in policy.items() if value is not None}
    config = make_config(
        folder, scores=None, proxy=proxy, score={"scores": ["el2n"]}, policy=policy, select={"keep": 0.2},
        train={"model": proxy["model"], "epochs": 5, "min_steps": 20, "batch_size": 16, "full": True},
    )
    assert race_scores(config) == ("el2n",)
    ended, results = race_serially(make_plan(config), Store(str(tmp_path / "store")))
    (entry,) = results["policy"]["keeps"]
    costs, kept = entry["costs"], results["dataset"]["n_train"]
    full = 5 * -(-kept // 16)
    assert costs["scoring_steps"] == 20 and costs["scored_examples"] == 2 * kept and costs["full_training_steps"] == full
    later = max(20, 5 * -(-round(0.2 * kept) // 16))
    tested = 2 * 10 * later if entry["winner"] else 0
    assert costs["race_steps"] == (3 + 2) * later and costs["confirmation_steps"] == tested
    assert costs["full_trainings"] == pytest.approx((20 + 5 * later + tested) / full, abs=1e-6)
    assert "scoring and search cost" in entry["sentence"]
    assert {arm["name"] for arm in results["arms"]} <= {"random", "full", entry["winner"]}
    assert all(race.decided for race in ended.races.values())


def test_plan_and_status_say_what_is_known_and_that_the_rest_depends_on_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(folder / "cache"))
    plan, _, results = finished(folder)
    path = tmp_path / "race.yaml"
    path.write_text(json.dumps(plan.config.model_dump(mode="json")))
    code, out, _ = command(monkeypatch, capsys, "plan", str(path), "--store", str(tmp_path / "empty"))
    assert code == 0 and "train 8 of 8 to compute" in " ".join(out.split())
    assert "rung 1 of 2 is open: 3 of them and random, 1 replicates in all" in out
    assert "only the size is known, 3 trainings: their arms depend on it; then 20 to confirm" in out
    assert "candidate topk clean easy" in out
    assert not (tmp_path / "empty").exists()
    code, out, _ = command(monkeypatch, capsys, "plan", str(path), "--store", str(folder / "store"), "--json")
    document = json.loads(out)
    assert code == 0 and document["changed"] == [] and document["policy"] == describe(plan.grown(Store(str(folder / "store"))))
    assert {stage["left"] for stage in document["stages"]} == {0}
    code, out, _ = command(monkeypatch, capsys, "status", plan.run_name, "--store", str(folder / "store"))
    assert code == 0 and out.count("frozen: topk clean, confirmed or not by 10 fresh replicates on test") == 2
    # All is sealed: the answer comes from the store, and opens with the sentence of each keep.
    before = tree(folder / "store")
    code, out, error = command(monkeypatch, capsys, "run", str(path), "--store", str(folder / "store"))
    said = " ".join(out.split())
    assert code == 0 and "is finished" in error and said.startswith("Keep 10 %: ")
    assert results["policy"]["keeps"][1]["sentence"] in said
    assert tree(folder / "store") == before


def test_verify_reads_every_rung_and_names_what_is_damaged(folder: Path, tmp_path: Path) -> None:
    plan, store, _ = finished(folder)
    found = verify_run(load_lineage(plan.run_name, store), store)
    assert found.damage == [] and found.not_computed == []
    assert found.units == len({(unit.stage, unit.key) for _, unit in plan.units(store)})
    shutil.copytree(folder / "store", tmp_path / "store")
    other = Store(str(tmp_path / "store"))
    last = plan.grown(store).trainings[-1]
    flip(tmp_path / "store" / Unit(other, "train", last.key).folder / "parts/test.parquet")
    first = plan.trainings[0]
    flip(tmp_path / "store" / Unit(other, "train", first.key).folder / "seal.json")
    found = verify_run(load_lineage(plan.run_name, other), other)
    # Later rungs follow from a seal that tells nothing now: they are read once it is healed, and until then it is said.
    assert [one.key for one in found.damage if one.what == "seal"] == [first.key]
    assert "later rungs of the race" in found.not_computed[-1]
    flip(tmp_path / "store" / Unit(other, "train", first.key).folder / "seal.json")
    damage = verify_run(load_lineage(plan.run_name, other), other).damage
    assert [(one.what, one.key) for one in damage] == [("part", last.key)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select": {"keep": 0.1, "arms": [{"protocol": "topk", "score": "el2n"}]}}, "leave one of the two"),
        ({"sweep": {"protocol": "topk", "score": "el2n"}}, "leave one of the two"),
        ({"policy": None}, "select.arms is empty"),
        ({"policy": "auto"}, "policy.scores"),
        ({"policy": POLICY | {"direction": None}}, "policy.direction"),
        ({"policy": POLICY | {"famly": []}}, "famly"),
        ({"select": {"keep": 1.0}, "policy": POLICY | {"family": ["band"]}}, "no candidate"),
        ({"policy": POLICY | {"confirm": 9}}, "policy.confirm is 9: a verdict takes at least 10 where several"),
        ({"select": {"keep": 0.1}, "policy": POLICY | {"confirm": 4}}, "policy.confirm"),
    ],
)
def test_a_race_that_makes_no_sense_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make_config(folder, **copy.deepcopy(changes))
    assert "\n" not in str(caught.value)


def test_what_a_race_cannot_do_without_is_asked_for(folder: Path) -> None:
    digits = str(ROOT / "configs/policy_digits.yaml")
    with pytest.raises(InputError, match="validation"):
        load_config(digits, ["data.validation=0"])
    with pytest.raises(InputError, match=r"policy\.rungs and policy\.confirm"):
        load_config(digits, ["train.replicates=3"])
    with pytest.raises(InputError, match=r"train\.own_schedule beside `policy`"):
        load_config(digits, ["train.full=true", "train.own_schedule=true"])
    with pytest.raises(InputError, match="el2n"):
        load_config(digits, ["policy={scores: [el2m]}"])
    assert load_config(digits, ["policy={scores: [el2n_s0]}"]).policy is not None
    for name in ("policy", "policy_digits"):
        assert load_config(str(ROOT / f"configs/{name}.yaml")).policy is not None
