"""The real pool and the real commit protocol on a cluster of pretend GPUs in this machine, with work that only waits.

What a shard computes is a stub, a wait of 40 ms on average; what hands it out, publishes its part, meets a dead node and seals
is what runs. Parts of `python -m benchmarks.scale`.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import scale_calls
from benchmarks.tiny_parts import KEY, publish
from cluster.record import Part, Unit
from cluster.storage import Store
from tasks.pool import FunctionWorker
from tasks.spec import Resources

SLOTS = 2
"""Of a node."""
NODES, ITEMS = 4, 10_000
WARM = 8
MEAN_SECONDS = 0.04
STRAGGLERS, STRAGGLER_SECONDS = 20, 4.0
RESOURCES = Resources(cpus=1, gpus=1)
SIZES = (10, 30, 100, 300, 1000, 3000, ITEMS)
FINISHED = (("files", 10), ("files", 100), ("s3", 10), ("s3", 30), ("files", 1000), ("files", 10_000))


@contextlib.contextmanager
def small_cluster(nodes: int) -> Iterator[Any]:
    """Yield a Ray cluster in this machine: a head without slots, and nodes of SLOTS CPUs and pretend GPUs each."""
    from cluster.session import prepare_local

    os.environ["PYTHONPATH"] = str(Path.cwd())
    prepare_local()
    import ray
    from ray.cluster_utils import Cluster

    options: dict[str, Any] = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **options})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=SLOTS, num_gpus=SLOTS, object_store_memory=80 * 2**20)
        ray.init(address=str(cluster.address), log_to_driver=False, logging_level="ERROR", namespace="scale")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def durations(items: int, stragglers: int = 0) -> list[float]:
    """Return how long each item waits, MEAN_SECONDS on average, and STRAGGLER_SECONDS the stragglers, evenly strewn."""
    seconds = np.random.default_rng(0).gamma(4.0, MEAN_SECONDS / 4, items)
    if stragglers:
        seconds[np.linspace(0, items - 1, stragglers + 1, dtype=np.int64)[1:]] = STRAGGLER_SECONDS
    return [float(one) for one in seconds]


def wait_and_publish(store: str, item: tuple[int, float]) -> tuple[Part, float]:
    """Do one item, and return its part and the seconds that it took."""
    start = time.perf_counter()
    time.sleep(item[1])
    part = publish(store, item[0])
    return part, time.perf_counter() - start


def run_items(seconds: Sequence[float], lose_node: Callable[[], None] | None = None) -> dict[str, Any]:
    """Publish and seal one part an item through the pool, whose workers are warm, and return what it took.

    `lose_node` is called in a thread when four tenths are done.
    """
    from cluster.pool import RayPool

    pool = RayPool()
    with tempfile.TemporaryDirectory() as folder:
        make = partial(FunctionWorker, partial(wait_and_publish, folder))
        for _ in pool.map(make, [(number, 0.2) for number in range(-WARM, 0)], label="warm", resources=RESOURCES):
            pass
        parts: list[Part] = []
        took: list[float] = []
        lost, killer = None, None
        start = time.perf_counter()
        for _, (part, each) in pool.map(make, list(enumerate(seconds)), label="stub", resources=RESOURCES):
            parts.append(part)
            took.append(each)
            if lose_node is not None and lost is None and len(parts) >= 0.4 * len(seconds):
                lost = time.perf_counter() - start
                killer = threading.Thread(target=lose_node)
                killer.start()
        Unit(Store(folder), "tiny", KEY).publish_seal(parts)
        makespan = time.perf_counter() - start
        if killer is not None:
            killer.join()
        pool.release()
        seal = Unit(Store(folder), "tiny", KEY).seal()
        there = len(Store(folder).list(Unit(Store(folder), "tiny", KEY).folder)) - 1
        names = len({part.name for part in parts})
        if seal is None or not len(seal.parts) == names == len(seconds) == there - WARM:
            raise RuntimeError(f"{len(seconds)} items came to {names} parts and {there} objects: something was lost")
    return {"makespan": makespan, "wait": sum(seconds), "work": sum(took), "longest": max(took), "node_lost_at": lost}


def run_sizes(out: Path, repeats: int) -> None:
    """Measure the makespan of more and more items, none of which takes long: what the fit is made of, and what it says last."""
    from benchmarks.scale import known_lines, note

    if len(known_lines(out, "pool")) == len(SIZES):
        return
    with small_cluster(NODES):
        for items in SIZES:
            note(out, "pool", {"items": items, "slots": SLOTS * NODES}, 0, partial(run_items, durations(items)))


def run_stragglers(out: Path, repeats: int) -> None:
    """Measure ITEMS items with stragglers, and again while a node dies."""
    from benchmarks.scale import note

    for dies in (False, True):

        def measure(dies: bool = dies) -> dict[str, Any]:
            with small_cluster(NODES) as cluster:
                node = sorted(cluster.worker_nodes, key=lambda node: node.node_id)[0]
                lose = partial(cluster.remove_node, node, allow_graceful=False)
                return run_items(durations(ITEMS, STRAGGLERS), lose if dies else None)

        note(out, "makespan", {"items": ITEMS, "slots": SLOTS * NODES, "node dies": dies}, 0, measure)


def run_nodes(out: Path, repeats: int) -> None:
    """Measure the same work a slot on more and more nodes."""
    from benchmarks.scale import note

    for nodes in (1, 2, 4, 8):

        def measure(nodes: int = nodes) -> dict[str, Any]:
            start = time.perf_counter()
            with small_cluster(nodes):
                begun = time.perf_counter() - start
                return {"start": begun, **run_items(durations(200 * SLOTS * nodes))}

        note(out, "nodes", {"nodes": nodes, "slots": SLOTS * nodes}, 0, measure)


def run_waits(out: Path, repeats: int) -> None:
    """Measure what the driver asks Ray each time round its loop, with so many calls in flight."""
    from benchmarks.scale import note

    sizes = (16, 50, 160, 500, 1600, 5000, 16_000)
    with small_cluster(1):
        import ray

        blocked = ray.remote(_Blocked).options(num_cpus=0).remote()
        refs = [blocked.wait.remote()]

        def measure(size: int) -> dict[str, Any]:
            while len(refs) < size:
                refs.append(blocked.wait.remote())
            times = []
            for _ in range(30):
                start = time.perf_counter()
                # Nothing is done: the first call is what a look at all of them costs without waiting.
                ray.wait(refs, num_returns=len(refs), timeout=0)
                times.append(time.perf_counter() - start)
            return {"seconds": float(np.median(times))}

        for size in sizes:
            note(out, "wait", {"in flight": size}, 0, partial(measure, size))
        ray.kill(blocked, no_restart=True)


class _Blocked:
    """Be an actor whose calls do not end by themselves."""

    def wait(self) -> None:
        """Wait to be killed."""
        threading.Event().wait()


def run_finished(out: Path, repeats: int) -> None:
    """Count what `plan` and a finished run ask of the store."""
    from benchmarks.scale import note

    for store, shards in FINISHED:
        note(out, "finished", {"shards": shards, "store": store}, 0, partial(scale_calls.measure, shards, store == "s3"))


PARTS: dict[str, Callable[[Path, int], None]] = {
    "pool": run_sizes, "makespan": run_stragglers, "nodes": run_nodes, "wait": run_waits, "finished": run_finished,
}  # fmt: skip
