"""What one worker takes, and which shapes can be scheduled at all."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.errors import InputError


@dataclass(frozen=True)
class Shape:
    """What one worker takes."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU and {self.gpus:g} GPU"


def check_shape(cpus: float, gpus: float) -> Shape:
    """Return the shape. Raises InputError unless Ray can schedule it: whole numbers, or a GPU share that divides 1."""
    if cpus > 1 and cpus != int(cpus):
        raise InputError(f"resources: cpus is {cpus:g}; above 1 it must be a whole number")
    if gpus > 1 and gpus != int(gpus):
        raise InputError(f"resources: gpus is {gpus:g}; above 1 it must be a whole number")
    if 0 < gpus < 1 and abs(1 / gpus - round(1 / gpus)) > 1e-6:
        raise InputError(
            f"resources: gpus is {gpus:g}, of which {int(1 / gpus)} fit a GPU and leave a rest; a share must divide 1 "
            f"evenly: use {1 / math.ceil(1 / gpus):g} or {1 / int(1 / gpus):g}"
        )
    return Shape(cpus, gpus)
