"""Every crash point of the commit protocol and of every stage: resumed, each ends with the bytes of an undisturbed run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.forked import run_points

STAGES = ("shard", "proxy", "score", "merge", "select", "subset", "shift", "train", "report")

# place:storage:faults. `files` counts single steps of the kernel, `objects` calls on a store of files, `bucket` calls on
# an fsspec file system that puts objects whole. `crashes` are before each and after the last, `before` before each.
CRASHES = (
    "protocol:files:before", "protocol:objects:crashes", "protocol:bucket:crashes", "score:files:before",
    *(f"{stage}:objects:crashes" for stage in STAGES),
)  # fmt: skip
# An I/O error before and after each call, each call sent twice, each slow; every read cut short.
ERRORS = (
    "protocol:bucket:errors", "proxy:objects:errors", "score:bucket:errors",
    "proxy:objects:reads", "score:objects:reads", "merge:objects:reads", "subset:objects:reads",
)  # fmt: skip

# One process: both tests look at what one enumeration found.
pytestmark = [pytest.mark.xdist_group("crash-points"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return run_points((*CRASHES, *ERRORS))


def assert_right(found: dict[str, Any], places: tuple[str, ...], least: int) -> None:
    wrong = [line for name in places for line in found[name]["wrong"]]
    assert not wrong, "\n".join(wrong)
    points = {name: found[name]["points"] for name in places}
    print(f"{sum(points.values())} points: {points}")
    assert min(points.values()) >= 4, points
    # A floor, so that an enumeration that misses its calls is seen.
    assert sum(points.values()) >= least, points


def test_a_crash_at_any_point_is_resumed_to_the_same_bytes(found: dict[str, Any]) -> None:
    assert_right(found, CRASHES, 140)
    # The enumeration saw what the protocol is made of.
    calls = found["protocol:files:before"]["calls"]
    assert sum(call.startswith("os.link ") for call in calls) == 4
    assert sum(call.startswith("os.remove ") for call in calls) == 4
    assert any("/quarantine/" in call for call in found["shard:objects:crashes"]["calls"])
    for stage in ("shard", "proxy", "score", "merge", "select", "subset", "shift", "train"):
        assert any("/seal" in call for call in found[f"{stage}:objects:crashes"]["calls"]), stage


def test_errors_repeats_and_short_reads_never_end_in_other_bytes(found: dict[str, Any]) -> None:
    assert_right(found, ERRORS, 120)
