"""results.json: its shape, its honesty, what it refuses, and the report's place in the store."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import CorruptError, InputError
from cluster.fingerprint import sha256
from cluster.record import Seal
from cluster.storage import Store
from tasks.report.inputs import ArmResult
from tasks.report.publish import read_results, write_report
from tasks.report.results import build_results, results_bytes
from tasks.report.wording import bounds, keep_sentence, signed
from tests.tasks import report_case as case

GAINS = [0.9, 1.1, 1.0, 0.8, 1.2]
RANDOM = [90.0, 90.4, 89.8, 90.1, 90.2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def pair(store: Store, replicates: int = 5, **arm: Any) -> list[ArmResult]:
    """Return a random arm and one that gains about a point, at keep 0.1."""
    base, gains = RANDOM[:replicates], GAINS[:replicates]
    return [
        case.arm(store, "random", "random", 0.1, base),
        case.arm(store, arm.pop("name", "el2n-exact"), "exact", 0.1, [a + g for a, g in zip(base, gains)],
                 alpha=0.5, score="el2n", **arm),
    ]  # fmt: skip


def build(store: Store, arms: list[ArmResult], margin: float = 0.5, **options: Any) -> dict[str, Any]:
    index = case.index_seal(limit=options.pop("limit", None))
    return build_results("mnist-abc", index, arms, margin, store, **options)


def test_shape_is_that_of_the_contract(store: Store) -> None:
    results = build(store, [*pair(store), case.arm(store, "full", "full", 0.1, [98.0, 98.1, 98.2, 98.0, 98.1])])
    assert results["run"] == "mnist-abc"
    dataset = results["dataset"]
    assert (dataset["n_train"], dataset["n_validation"], dataset["n_test"]) == (54000, 6000, 2000)
    for arm in results["arms"]:
        assert {"name", "score", "protocol", "keep", "alpha", "n_kept", "steps", "batch_size", "examples_touched",
                "accuracy", "mean", "ci95"} <= set(arm)  # fmt: skip
        assert len(arm["accuracy"]) == 5 and arm["ci95"][0] <= arm["mean"] <= arm["ci95"][1]
        assert arm["worst_class"]["accuracy"] == min(arm["class_accuracy"])
    assert [(row["arm"], row["versus"], row["keep"]) for row in results["comparisons"]] == [
        ("el2n-exact", "random", 0.1), ("full", "random", 0.1),
    ]  # fmt: skip
    for row in results["comparisons"]:
        assert {"arm", "versus", "mean_difference", "ci95", "verdict", "needed_replicates"} <= set(row)
        assert row["verdict"] == "better"
    exact = results["arms"][1]
    assert exact["epochs"] == pytest.approx(690 / 43)
    assert exact["selection"]["ess"] / exact["n_kept"] == pytest.approx(0.552, abs=0.001)
    assert "conditional on the proxy set" in " ".join(results["notes"])


def test_json_is_deterministic_and_strict(store: Store) -> None:
    first = results_bytes(build(store, pair(store)))
    assert first == results_bytes(build(store, pair(store)))
    text = first.decode()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text)["comparisons"][0]["differences"] == pytest.approx(GAINS, abs=0.051)


@pytest.mark.parametrize("replicates", [1, 2, 4])
def test_few_replicates_give_no_verdict_and_say_so(store: Store, replicates: int) -> None:
    results = build(store, pair(store, replicates))
    assert [row["verdict"] for row in results["comparisons"]] == ["undecided"]
    assert results["headline"].startswith("No verdict yet")
    assert "at least 5" in results["keeps"][0]["sentence"]
    assert (results["arms"][0]["ci95"] is None) == (replicates == 1)
    results_bytes(results)


def test_slice_is_marked(store: Store) -> None:
    assert build(store, pair(store), limit=3000)["notes"][0].startswith("Slice of the data: data.limit = 3,000")
    assert not any(note.startswith("Slice") for note in build(store, pair(store))["notes"])


def test_every_keep_is_compared_with_its_own_random_and_full_with_each(store: Store) -> None:
    results = build(store, case.sweep(store))
    assert [entry["keep"] for entry in results["keeps"]] == list(case.KEEPS)
    for keep in case.KEEPS:
        rows = [row for row in results["comparisons"] if row["keep"] == keep]
        assert {row["arm"] for row in rows} == {"full", *(f"el2n-{protocol}" for protocol in case.PROTOCOLS)}
        for row in rows:
            means = {arm["name"]: arm["mean"] for arm in results["arms"] if arm["keep"] == keep}
            assert row["mean_difference"] == pytest.approx(means[row["arm"]] - means["random"], abs=1e-6)
    row = max((row for row in results["comparisons"] if row["verdict"] == "better" and row["arm"] != "full"),
              key=lambda row: row["mean_difference"])  # fmt: skip
    low, high = row["ci95"]
    assert results["headline"].startswith("4 arms were compared with random: better in 3 of 12 comparisons (")
    found = f"{row['arm']} by {row['mean_difference']:.2f} [{low:+.2f}, {high:+.2f}]"
    said = f"most at keep 10 % {found} (points with 95 % intervals, "
    assert said in results["headline"] and results["headline"].endswith("replicates, this test set).")
    assert any("choose on validation" in note for note in results["notes"])


def test_pruned_arms_are_one_family_and_full_is_judged_by_itself(store: Store) -> None:
    results = build(store, case.sweep(store))
    for row in results["comparisons"]:
        assert (row["family"], row["adjustment"] == "paired t") == ((1, True) if row["arm"] == "full" else (4, False))
    for entry in results["keeps"]:
        rows = [row for row in results["comparisons"] if row["keep"] == entry["keep"] and row["arm"] != "full"]
        assert len({row["adjustment"] for row in rows}) == 1
        assert f"4 comparisons with random, adjusted by {rows[0]['adjustment']}" in entry["adjustment"]
    alone = build(store, pair(store))
    assert alone["keeps"][0]["adjustment"] == "One comparison with random: paired t, no adjustment."


def test_worst_class_is_that_of_each_replicate_with_its_paired_difference(store: Store) -> None:
    arms = pair(store)
    results = build(store, arms)
    worst = [[min(seal.meta["class_accuracy"]) for seal in arm.trains] for arm in arms]
    for row, values in zip(results["arms"], worst):
        assert row["worst_class_accuracy"] == pytest.approx(values)
        assert row["worst_class_mean"] == pytest.approx(sum(values) / 5)
        assert row["worst_class_mean"] <= row["worst_class"]["accuracy"] + 1e-9
        assert row["worst_class_ci95"][0] <= row["worst_class_mean"] <= row["worst_class_ci95"][1]
    found = results["comparisons"][0]
    gaps = [a - b for a, b in zip(worst[1], worst[0])]
    assert found["worst_class_difference"] == pytest.approx(sum(gaps) / 5)
    assert len(found["class_differences"]) == 10
    assert sum(found["class_differences"]) / 10 == pytest.approx(found["mean_difference"], abs=1e-6)


def test_a_loss_that_is_ruled_out_is_said(store: Store) -> None:
    # Means differ by 0.1, spread about 0.4; the interval includes 0, its lower end lies above -1.
    base = [90.0, 90.4, 89.8, 90.1, 90.2, 89.9]
    arms = [
        case.arm(store, "random", "random", 0.1, base, test=10000),
        case.arm(store, "top", "topk", 0.1, [a + g for a, g in zip(base, (0.5, -0.2, 0.3, -0.4, 0.4, 0.0))], test=10000,
                 score="el2n"),
    ]  # fmt: skip
    row = build(store, arms, 0.2, non_inferiority_points=1.0)["comparisons"][0]
    assert (row["verdict"], row["non_inferior"]) == ("undecided", True)
    assert "non-inferior: a loss of the margin is ruled out" in row["sentence"]
    assert build(store, arms, 0.2, non_inferiority_points=0.1)["comparisons"][0]["non_inferior"] is not True


def test_keeps_with_many_digits_and_keeps_without_random(store: Store) -> None:
    arms = [
        case.arm(store, "random", "random", 1 / 3, RANDOM),
        case.arm(store, "top", "topk", 1 / 3, [value + 1 for value in RANDOM], score="el2n"),
        case.arm(store, "alone", "topk", 0.5, RANDOM, score="el2n"),
    ]
    results = build(store, arms)
    assert "top (" in results["keeps"][0]["sentence"]
    assert "nothing was compared" in results["keeps"][1]["sentence"]
    assert "better" not in keep_sentence(results, 0.5)


def edit(arm: ArmResult, replicate: int, **meta: Any) -> ArmResult:
    trains = [Seal(seal.stage, seal.key, seal.parts, {**seal.meta, **(meta if number == replicate else {})})
              for number, seal in enumerate(arm.trains)]  # fmt: skip
    return replace(arm, trains=trains)


def test_what_cannot_be_compared_is_refused(store: Store) -> None:
    random, exact = pair(store)
    assert exact.selections is not None
    cases: list[tuple[list[ArmResult], str]] = [
        ([], "at least one trained arm"),
        ([random, exact, exact], "two arms are called"),
        ([random, replace(random, name="random2"), exact], "2 random arms"),
        ([random, edit(exact, 1, seed=1000)], "seeds"),
        ([random, edit(exact, 1, seed=77)], "not paired"),
        ([random, edit(exact, 1, steps=5)], "differ in steps"),
        ([random, replace(exact, selections=[exact.selections[0]] * 5)], "selection seeds"),
        ([random, replace(exact, selections=exact.selections[:3])], "fresh selection"),
        ([random, replace(exact, trains=[], selections=[])], "no trained replicate"),
        ([random, edit(exact, 0, accuracy=None)], "on no example"),
    ]
    for arms, words in cases:
        with pytest.raises(InputError, match=words):
            build(store, arms)


def test_accuracy_that_its_predictions_do_not_give_is_refused(store: Store) -> None:
    random, exact = pair(store)
    with pytest.raises(CorruptError, match="seal states"):
        build(store, [random, edit(exact, 2, accuracy=99.5)])


def test_other_test_examples_are_refused(store: Store) -> None:
    random = case.arm(store, "random", "random", 0.1, RANDOM)
    other = case.arm(store, "other", "exact", 0.1, RANDOM, alpha=0.5, score="el2n", test=1000)
    with pytest.raises(InputError, match="one test set"):
        build(store, [random, other])


def test_rows_of_test_tables_are_matched_by_id(tmp_path: Path) -> None:
    found = []
    for order in (True, False):
        store = Store(str(tmp_path / str(order)))
        random, exact = pair(store)
        trains = [
            case.train_seal(store, "again", i, a + g, kept=5400, order=order)
            for i, (a, g) in enumerate(zip(RANDOM, GAINS))
        ]
        row = build(store, [random, replace(exact, trains=trains)])["comparisons"][0]
        found.append((row["se_test"], row["two_way_ci95"]))
    assert found[0] == found[1]


def test_class_without_test_examples_has_no_accuracy_and_is_not_the_worst(store: Store) -> None:
    random, exact = pair(store)
    for number in range(5):
        values = list(exact.trains[number].meta["class_accuracy"])
        exact = edit(exact, number, class_accuracy=[None, *values[1:]])
    row = build(store, [random, exact])["arms"][1]
    assert row["class_accuracy"][0] is None and row["worst_class"]["label"] != 0
    results_bytes(row)


def test_report_is_written_seal_last_and_read_back(store: Store) -> None:
    arms = pair(store)
    results = build(store, arms)
    assert read_results(store, "mnist-abc") is None
    address = write_report(store, "mnist-abc", results, case.page_inputs(arms))
    assert address.endswith("runs/mnist-abc/report/index.html")
    seal = json.loads(store.read("runs/mnist-abc/report/seal.json"))
    for name in ("results.json", "index.html"):
        assert seal["sha256"][name] == sha256(store.read(f"runs/mnist-abc/report/{name}"))
    assert read_results(store, "mnist-abc") == results
    store.replace("runs/mnist-abc/report/results.json", b"{}")
    with pytest.raises(CorruptError, match="secateur report mnist-abc"):
        read_results(store, "mnist-abc")


def test_figures_never_contradict_their_verdict() -> None:
    assert bounds((0.002, 0.4)) == "[+0.002, +0.40]"
    assert bounds((-0.3, -0.0004)) == "[-0.30, -0.0004]"
    assert bounds((0.0, 0.0)) == "[0.00, 0.00]"
    assert signed(-0.001) == "0.00"


def test_importing_the_report_is_light() -> None:
    code = (
        "import sys, tasks.comparison, tasks.report.results, tasks.report.page, tasks.report.publish;"
        "import tasks.report.terminal;"
        "print([m for m in ('torch','numpy','scipy','pyarrow','sklearn','PIL','rich','yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
