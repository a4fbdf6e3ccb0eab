"""Processes stopped (SIGSTOP) at every write of a stage, given up, overtaken, and woken up again: they change nothing."""

from __future__ import annotations

import pytest

from tests.faults.forked import run_points

PLACES = ("proxy:objects:late", "score:objects:late", "merge:objects:late", "subset:objects:late", "train:objects:late")

pytestmark = pytest.mark.timeout(900)


def test_a_late_writer_adopts_what_is_sealed_and_rewrites_nothing() -> None:
    found = run_points(PLACES)
    wrong = [line for place in found.values() for line in place["wrong"]]
    assert not wrong, "\n".join(wrong)
    points = {name: place["points"] for name, place in found.items()}
    print(f"{sum(points.values())} points: {points}")
    assert min(points.values()) >= 4, points
    assert sum(points.values()) >= 40, points
    # It was stopped before its seal, its parts, its checkpoints and its lease alike.
    for part in ("/seal.json", "/parts/", "/work/model/", "/work/lease/00000001.json"):
        assert any(part in call for call in found["proxy:objects:late"]["calls"]), part
