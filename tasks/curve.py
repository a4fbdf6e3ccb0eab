"""The accuracies of a training along its way: at which steps, how they are kept, and how long it had trained by then."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from cluster.self_digest import decode_json, encode_json

if TYPE_CHECKING:
    from cluster.record import Unit

TIMES = "times.json"
MOST_POINTS = 1000


def grid(points: int, steps: int) -> list[int]:
    """Return the steps at which a training of `steps` is evaluated: ceil(i steps / points) for i of 1..points, each once."""
    return sorted({-(-number * steps // points) for number in range(1, points + 1)})


Accuracies = tuple[float | None, float | None]
"""Of the test split and of the validation split, in percent; None where a split has no example."""


@dataclass
class Curve:
    """Gather the points of one training. Its clock runs from `begin` on, and stands while a point is evaluated.

    `state` goes into the checkpoints that a training resumes from, so that a resumed one has all of its points, and the
    seconds of the steps that stand, however often it was stopped.
    """

    steps: Sequence[int]
    found: dict[int, Accuracies] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    _spent: float = 0.0
    _since: float | None = None

    def begin(self, state: Mapping[str, Any] | None = None) -> None:
        """Start the clock, from what `state` returned where the training is resumed."""
        if state is not None:
            self.found = {int(step): (pair[0], pair[1]) for step, pair in state["found"].items()}
            self.seconds = {int(step): float(value) for step, value in state["seconds"].items()}
            self._spent = float(state["spent"])
        self._since = time.monotonic()

    def pause(self) -> float:
        """Stop the clock and return the seconds trained so far."""
        if self._since is not None:
            self._spent += time.monotonic() - self._since
            self._since = None
        return self._spent

    def add(self, step: int, accuracies: Accuracies) -> None:
        """Add a point while the clock stands, and let it run on."""
        self.found[step] = accuracies
        self.seconds[step] = self._spent
        self._since = time.monotonic()

    def state(self) -> dict[str, Any]:
        """Return the points and the seconds so far as plain values; the clock runs on."""
        running = 0.0 if self._since is None else time.monotonic() - self._since
        found = {step: list(pair) for step, pair in self.found.items()}
        return {"found": found, "seconds": dict(self.seconds), "spent": self._spent + running}

    def record(self) -> dict[str, Any]:
        """Return what the training's seal states: steps, and the accuracies there; no times, which are no function of a key."""
        steps = sorted(self.found)
        test, validation = ([self.found[step][split] for step in steps] for split in (0, 1))
        return {"steps": steps, "accuracy": test, "validation_accuracy": None if None in validation else validation}

    def publish_times(self, unit: Unit) -> None:
        """Put the seconds by the end of each step beside the parts, create-only and unsealed: a measurement, for reports."""
        steps = sorted(self.seconds)
        body = {"key": unit.key, "steps": steps, "seconds": [round(self.seconds[step], 4) for step in steps]}
        name = f"{unit.folder}/{TIMES}"
        unit.store.create(name, encode_json(body, name))


def read_times(unit: Unit, steps: Sequence[int]) -> list[float] | None:
    """Return the measured seconds at these steps of a sealed training; None where they are not there or make no sense."""
    try:
        name = f"{unit.folder}/{TIMES}"
        body = decode_json(unit.store.read(name), name)
        seconds = [float(value) for value in body["seconds"]]
        fits = body["key"] == unit.key and body["steps"] == list(steps)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    rises = len(seconds) == len(steps) and all(0 <= one <= other < math.inf for one, other in pairwise([0.0, *seconds]))
    return seconds if fits and rises else None
