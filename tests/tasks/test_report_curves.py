"""Curves of accuracy against keep: every arm is drawn, panels, edges, and a file that stands alone."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tasks.report.curves import MOST_ARMS, ErrorAxis, curve_figure, curve_section, panels_of
from tests.tasks.drawn import Element, corners, marks, parse, words


def results(means: dict[str, list[float]], *, keeps: tuple[float, ...] = (0.01, 0.1, 1.0), **more: Any) -> dict[str, Any]:
    """Return results of arms with these means at the keeps; an arm's score stands before the colon of its name."""
    arms = [
        {
            "name": name, "keep": keep, "mean": mean, "ci95": [mean - 0.5, mean + 0.5], "accuracy": [mean - 0.2, mean + 0.2],
            "protocol": "random" if name == "random" else "exact", "full": name == "full",
            "score": None if name in ("random", "full") else name.partition(":")[0],
        }
        for name, values in means.items()
        for keep, mean in zip(keeps, values)
    ]  # fmt: skip
    return {"arms": arms, "dataset": {"n_train": 1000, "n_test": 200}, **more}


def figure(found: dict[str, Any]) -> Element:
    data = curve_figure(found)
    assert data is not None
    return parse(data)


def test_every_arm_has_a_curve_its_intervals_and_a_name() -> None:
    root = figure(results({"random": [80, 90, 95], "el2n:a": [20, 92, 96], "<b>&\a": [70, 91, 95.5]}))
    assert len(marks(root, "line")) == 3 and len(marks(root, "symbol")) == len(marks(root, "rule")) == 3 * 3
    assert {"random", "el2n:a", "<b>&\\x07", "1 %", "10 %", "100 %"} <= set(words(root))
    assert [line.get("stroke") for line in marks(root, "line")] == ["var(--random)", "var(--c0)", "var(--c1)"]
    assert len({mark.get("d") for mark in marks(root, "symbol")}) == 3, "a shape an arm"


def test_higher_accuracies_are_higher_up_and_inside() -> None:
    root = figure(results({"random": [0, 50, 100], "el2n:a": [9.5, 99, 99.9]}))
    height = float(str(root.get("height")))
    for line in marks(root, "line"):
        spots = [y for _, y in corners(line)]
        assert len(spots) == 3 and spots == sorted(spots, reverse=True) and spots[-1] > 0 and spots[0] < height


def test_accuracies_are_spaced_by_the_logarithm_of_the_error() -> None:
    axis = ErrorAxis([80.0, 99.0], 1000)
    assert axis.place(98.0) - axis.place(80.0) == pytest.approx(1.0)
    assert axis.place(50.0) == axis.low and axis.place(100.0) == axis.high, "beyond the axis: at its end"
    # Half an example of 1,000 is the least error.
    assert ErrorAxis([80.0, 100.0], 1000).place(100.0) == pytest.approx(1.301, abs=1e-3)
    line = marks(figure(results({"random": [80, 90, 95]})), "line")[0]
    (_, first), (_, second), (_, third) = corners(line)
    assert first - second == pytest.approx(second - third, abs=0.1), "20 %, 10 % and 5 % of errors are equally apart"


@pytest.mark.parametrize("values", [[81, 84, 88], [60, 70, 78], [96, 97], [99.2, 99.4], [12, 45], [0, 100], [50, 50],
                                    [99.99, 100.0]])
def test_every_axis_has_marks(values: list[float]) -> None:
    axis = ErrorAxis(values, 10_000)
    marked = axis.marks()
    assert 3 <= len(marked) <= 8 and marked == sorted(marked) and axis.low <= marked[0] and marked[-1] <= axis.high


def test_names_that_differ_in_their_middle_are_different_in_the_legend() -> None:
    names = [f"prototype_band el2n beta={beta} width=0.2" for beta in (0.02, 0.1, 0.3)]
    assert set(names) <= set(words(figure(results({"random": [80, 90, 95]} | {name: [80, 90, 96] for name in names}))))


def test_equal_accuracies_and_missing_intervals_are_drawn() -> None:
    found = results({"random": [100, 100, 100]})
    for arm in found["arms"]:
        arm["ci95"] = None
    assert marks(figure(found), "rule") == [] and len(marks(figure(found), "symbol")) == 3


def test_many_arms_are_spread_over_panels_with_random_in_each() -> None:
    means = {"random": [80.0, 90.0, 95.0], "full": [99.0] * 3}
    means |= {f"{score}:{i}": [70.0, 85.0, 90.0] for score, arms in (("el2n", 11), ("margin", 3)) for i in range(arms)}
    panels = panels_of(results(means))
    assert [name for name, _ in panels] == ["el2n, 1 of 2", "el2n, 2 of 2", "margin"]
    drawn = [name for _, curves in panels for name, *_ in curves]
    assert sorted(set(drawn)) == sorted(means) and drawn.count("random") == drawn.count("full") == 3
    assert all(len(curves) - 2 <= MOST_ARMS for _, curves in panels)
    assert len(marks(figure(results(means)), "line")) == 14 + 2 * 3


def test_one_keep_has_no_curves() -> None:
    found = results({"random": [80.0], "el2n:a": [70.0]}, keeps=(0.1,))
    assert curve_figure(found) is None and curve_section(found) == ""


def test_the_figure_stands_alone_and_the_section_says_what_the_grid_was() -> None:
    found = results({"random": [80, 90, 95], "el2n:a": [20, 92, 96]}, sweep={"sentence": "4 combinations & more"})
    text = (curve_figure(found) or b"").decode()
    assert not re.search(r"<script|href|url\(|@import|<image", text) and "prefers-color-scheme:dark" in text
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", text))
    assert used and all(text.count(f"{name}:") == 2 for name in used), "each colour for light and for dark"
    assert "4 combinations &amp; more" in curve_section(found)
    assert curve_figure(found) == curve_figure(found)


@pytest.mark.parametrize("gap", [1.001, 1.05])
def test_keeps_too_close_for_labels_have_one(gap: float) -> None:
    root = figure(results({"random": [80, 81, 90]}, keeps=(0.1, 0.1 * gap, 1.0)))
    shown = [text for text in root.iter("text") if text.get("opacity") != "0"]
    said = ["".join(text.itertext()) for text in shown]
    assert [one for one in said if one.endswith(" %")] == ["10 %", "100 %"]
