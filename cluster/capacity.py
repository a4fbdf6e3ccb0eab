"""What a cluster can hold: how many workers of a shape fit, now or after it has grown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from cluster.errors import InputError

# An autoscaler without a limit says so with a huge number; a pool of more workers than this gains nothing.
MOST_WORKERS = 4096


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


def fitting(have: Mapping[str, float], shape: Shape) -> int:
    """Return how many workers of `shape` fit into the resources `have` of one node."""
    slots = int(have.get("CPU", 0) / shape.cpus + 1e-6)
    if shape.gpus >= 1:
        slots = min(slots, int(have.get("GPU", 0) // shape.gpus))
    elif shape.gpus > 0:
        # A share never spans two GPUs.
        slots = min(slots, int(have.get("GPU", 0)) * round(1 / shape.gpus))
    return slots


def _nodes() -> list[dict[str, Any]]:
    import ray

    if not ray.is_initialized():
        # ray.nodes() would start a Ray of its own.
        raise RuntimeError("there is no Ray session: enter a RaySession first")
    return [node for node in cast(Any, ray).nodes() if node["Alive"]]


def slots_now(shape: Shape) -> int:
    """Return how many workers of `shape` the nodes that are up could hold, were they empty."""
    return sum(fitting(node["Resources"], shape) for node in _nodes())


def slots_at_most(shape: Shape) -> int:
    """Return how many workers of `shape` the cluster could hold after its autoscaler, if any, has added all it may."""
    from ray._private.state import state

    most = state.get_max_resources_from_cluster_config() or {}
    return min(MOST_WORKERS, max(slots_now(shape), fitting(most, shape)))


def describe() -> str:
    """Return what the cluster's nodes have, for people."""
    nodes: list[str] = []
    for node in _nodes():
        have = node["Resources"]
        nodes.append(f"{node['NodeManagerAddress']}: {have.get('CPU', 0):g} CPU, {have.get('GPU', 0):g} GPU")
    return "; ".join(nodes[:8]) + (f"; and {len(nodes) - 8} more" if len(nodes) > 8 else "")


def check_fits(shape: Shape, label: str, workers: int = 1) -> int:
    """Return the most workers of `shape` the cluster can hold. Raises InputError below `workers` of them."""
    slots = slots_at_most(shape)
    if slots < workers:
        wanted = f"a worker needs {shape}" if workers == 1 else f"{workers} workers need {shape} each"
        raise InputError(
            f"{label}: {wanted}, and the cluster has room for {slots} such ({describe()}); lower `resources` of this "
            "stage, or name a cluster that has them with --ray"
        )
    return slots
