"""How long a training is: optimiser steps from steps or epochs, and the distinct examples they touch."""

from __future__ import annotations

import math

from cluster.errors import InputError


def check_length(what: str, steps: int | None, epochs: float | None) -> None:
    """Raise InputError unless exactly one of steps and epochs is given."""
    if (steps is None) == (epochs is None):
        got = "neither" if steps is None else "both"
        raise InputError(f"{what}: {got} of steps and epochs given; give exactly one of them")


def batches_of(num_examples: int, batch_size: int) -> int:
    """Return the batches of an epoch; the last one may be short."""
    return -(-num_examples // batch_size)


def steps_of(steps: int | None, epochs: float | None, batch_size: int, num_examples: int) -> int:
    """Return `steps`, or ceil(epochs * batches of an epoch): whole epochs show every example equally often."""
    if steps is not None:
        return steps
    assert epochs is not None
    # 1e-9: 0.1 * 30 is 3.0000000000000004, and is meant to be 3 steps.
    return max(1, math.ceil(epochs * batches_of(num_examples, batch_size) - 1e-9))


def examples_touched(steps: int, batch_size: int, num_examples: int) -> int:
    """Return the distinct examples shown in `steps` steps that draw without replacement within an epoch."""
    return min(steps * batch_size, num_examples)
