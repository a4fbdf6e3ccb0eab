"""The report's section about what each selection changes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cluster.fingerprint import sha256
from cluster.record import Seal
from cluster.storage import Store
from tasks.report.inputs import MeasuredArm, PageInputs, ShiftResult
from tasks.report.page import render_page
from tasks.report.results import build_results
from tasks.report.shift import HEADERS, HEIGHT, meanings, projection_chart, shift_record, shift_section
from tasks.report.vega import WIDTH
from tests.tasks import report_case as case
from tests.tasks.drawn import marks, parse

DENSITY: dict[str, Any] = {"x": [-2.0, 2.0], "y": [-1.0, 1.0], "counts": [[0, 3], [100, 1]]}


def _shift(*names: str, keeps: tuple[float, ...] = (0.1,)) -> ShiftResult:
    features = Seal(
        "features", sha256(b"f"), (),
        {"features": "inputs", "sample": 9987, "values": 4096, "of_values": 150528, "components": 40, "explained": 0.81234,
         "scale": 1.0, "cells": 50, "pairs": 3000, "mean_distance": 3.1, "density": DENSITY},
    )  # fmt: skip
    arms = []
    for keep in keeps:
        for name in names:
            uneven = "exact" in name
            pair = {"raw": 0.25, "weighted": 0.0} if uneven else {"raw": 0.25, "weighted": 0.25}
            figures = {
                "score": "el2n", "num_kept": 5406, "num_compared": 5406, "bins": 20, "cells": 50, "weights_differ": uneven,
                "class_tv": pair, "score_tv": pair, "auc": {"raw": 0.77, "weighted": 0.51 if uneven else 0.77},
                "energy": {"raw": 0.01234, "weighted": -0.00012 if uneven else 0.01234},
                "partition_tv": None if name == "band" else pair,
                "closed_form": {"raw": None, "weighted": 0.0} if name == "pps" else pair,
                "empty_cells": 7, "empty_share": 0.14, "empty_mass": 0.116, "points": [[0, 0.0, 0.5], [1, -9.0, 9.0]],
            }  # fmt: skip
            meta = {"num_kept": 5406, "ess": 2703.0, "design_effect": None, "weight_quantiles": {"min": 1.0, "max": 1.0}}
            arms.append(
                MeasuredArm(name, keep, Seal("select", sha256(b"s"), (), meta), Seal("shift", sha256(b"m"), (), figures))
            )
    return ShiftResult(features, arms)


def _section(shift: ShiftResult) -> str:
    return shift_section({"shift": shift_record(shift)}, PageInputs(shift=shift))


def test_every_arm_has_a_row_and_a_picture_at_every_keep() -> None:
    shift = _shift("random", "exact el2n <b>", "pps", "band", keeps=(0.01, 0.1))
    section = _section(shift)
    assert section.count("<svg ") == 8 and section.count("<details open>") == 1
    assert "exact el2n &lt;b&gt;" in section and "<b>" not in section
    assert section.count('<th scope="col">') == 2 * len(HEADERS)
    assert "0.770 → 0.510" in section and "1.23 → −0.01" in section and "25.0 → 0.0" in section
    assert "14.0" in section and "11.6" in section and "50.0" in section
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', section)
    assert all(cells.count("<td>") == len(HEADERS) - 1 for _, cells in rows)
    assert not re.search(r"\bNone\b|\bnan\b", section)
    # No network, no script.
    assert "http" not in section and "<script" not in section


def test_the_record_holds_what_the_figures_rest_on() -> None:
    record = shift_record(_shift("random", "exact"))
    assert (record["replicate"], record["sample"], record["of_values"], record["cells"]) == (0, 9987, 150528, 50)
    [first, second] = record["arms"]
    assert (first["arm"], first["keep"], first["ess"], first["design_effect"]) == ("random", 0.1, 2703.0, None)
    assert first["weight_design_effect"] == 2.0 and first["weight_caveat"] == "" and "random draw" in first["no_design_effect"]
    assert "points" not in first and second["auc"] == {"raw": 0.77, "weighted": 0.51}
    said = meanings(record)["what it rests on"]
    assert "9,987" in said and "4,096 values of 150,528" in said and "81.2 %" in said


def test_points_outside_the_sample_stand_at_its_edge() -> None:
    chart = parse(projection_chart(DENSITY, [[0, 0.0, 0.0], [1, -99.0, 99.0]], "arm"))
    exploration, signal = marks(chart, "symbol")
    assert (exploration.get("fill"), signal.get("fill")) == ("var(--exploration)", "var(--signal)")
    assert exploration.get("transform") == "translate(0,0)", "the upper left corner"
    # A square for each that holds examples, the fullest the strongest; neighbours of one level are one mark.
    strengths = [float(str(mark.get("opacity"))) for mark in marks(chart, "rect")]
    assert max(strengths) == pytest.approx(0.505, abs=0.01)
    width, height = (float(side) for side in re.findall(r"h([\d.]+)v([\d.]+)h", str(marks(chart, "rect")[0].get("d")))[0])
    assert (width, height, len(strengths)) == (WIDTH / 2, HEIGHT / 2, 3)
    row = {**DENSITY, "counts": [[5, 5, 0, 5]]}
    assert len(marks(parse(projection_chart(row, [], "arm")), "rect")) == 2
    only = parse(projection_chart(DENSITY, [[1, 0.0, 0.0]], "random"))
    assert [mark.get("fill") for mark in marks(only, "symbol")] == ["var(--exploration)"]


def test_a_page_without_figures_has_no_section(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    arms = [case.arm(store, "random", "random", 0.1, [90]), case.arm(store, "top", "topk", 0.1, [91], score="el2n")]
    results = build_results("r", case.index_seal(), arms, 0.5, store)
    assert "What each selection changes" not in render_page(results)
    shift = _shift("random", "topk el2n")
    page = render_page({**results, "shift": shift_record(shift)}, PageInputs(shift=shift))
    assert "What each selection changes" in page and page.count("</section>") == page.count("<section>")
