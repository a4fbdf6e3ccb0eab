"""How many workers of a shape fit a node."""

from __future__ import annotations

import pytest

from cluster.capacity import fitting
from cluster.errors import InputError
from cluster.shape import Shape, check_shape
from tasks.spec import Resources


@pytest.mark.parametrize(
    ("cpus", "gpus", "have", "slots"),
    [
        (1, 0, {"CPU": 8.0}, 8),
        (3, 0, {"CPU": 8.0, "GPU": 4.0}, 2),
        (0.1, 0, {"CPU": 1.0}, 10),
        (1, 1, {"CPU": 8.0, "GPU": 4.0}, 4),
        (1, 1, {"CPU": 2.0, "GPU": 4.0}, 2),
        (1, 1, {"CPU": 2.0}, 0),
        (1, 2, {"CPU": 8.0, "GPU": 5.0}, 2),
        (0.5, 0.25, {"CPU": 8.0, "GPU": 1.0}, 4),
        (0.5, 1 / 3, {"CPU": 8.0, "GPU": 2.0}, 6),
        (1, 0, {}, 0),
    ],
)
def test_fitting(cpus: float, gpus: float, have: dict[str, float], slots: int) -> None:
    assert fitting(have, check_shape(cpus, gpus)) == slots


@pytest.mark.parametrize("share", [1, 0.5, 0.25, 0.2, 0.1, 1 / 3, 0.333333333, 2, 8])
def test_shares_that_divide_one(share: float) -> None:
    assert check_shape(1, share) == Shape(1, share)


@pytest.mark.parametrize(("share", "hint"), [(0.4, "use 0.333333 or 0.5"), (0.7, "use 0.5 or 1"), (0.15, "use 0.142857 or")])
def test_shares_that_leave_a_rest(share: float, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        check_shape(1, share)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gpus": 0.4}, "divide 1 evenly: use 0.333333 or 0.5"),
        ({"gpus": 1.5}, "gpus is 1.5; above 1 it must be a whole number"),
        ({"cpus": 2.5}, "cpus is 2.5; above 1 it must be a whole number"),
    ],
)
def test_what_no_cluster_can_schedule_is_refused_when_it_is_said(fields: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Resources.model_validate(fields)
