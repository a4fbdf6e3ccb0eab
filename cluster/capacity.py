"""What a cluster can hold: how many workers of a shape fit, now or after it has grown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from cluster.errors import InputError
from cluster.shape import Shape

# An autoscaler without a limit says so with a huge number; a pool of more workers than this gains nothing.
MOST_WORKERS = 4096


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
